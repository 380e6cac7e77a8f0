"""Text of a generated module: written line by line, kept on disk, imported once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

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


def folder() -> Path:
    """Where generated modules are kept: beside Inductor's, for the user to read."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "fuser"


@lru_cache(maxsize=4096)
def load(text: str) -> ModuleType:
    """The module with this text, from a file that is named by its content."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder() / f"kernel_{digest}.py"
    if not path.exists() or path.read_text() != text:
        _write(path, text)
    name = f"fuser_generated.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _write(path: Path, text: str) -> None:
    """In one step, as another process may read or write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".py")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
