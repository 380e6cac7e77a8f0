"""Text of a generated module: written line by line, kept on disk, imported once."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

from fuser.disk import folder, write_whole

_STEP = "    "


class Source:
    """Python text under construction."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 0

    def __call__(self, line: str = "") -> None:
        """Adds a line at the present indentation."""
        self.lines.append(_STEP * self._depth + line if line else "")

    @contextmanager
    def block(self, head: str) -> Generator[None]:
        """A line that opens a block, and what is written meanwhile inside it."""
        self(head)
        self._depth += 1
        yield
        self._depth -= 1

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@lru_cache(maxsize=4096)
def load(text: str) -> ModuleType:
    """The module with this text, from a file that is named by its content."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder() / f"kernel_{digest}.py"
    if not path.exists() or path.read_text() != text:
        write_whole(path, text)
    name = f"fuser_generated.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
