"""What is kept on disk: generated modules, measurements and mismatches, beside Inductor's cache."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

from .torch_private import cache_dir


def folder() -> Path:
    """Where it is kept, for the user to read."""
    return Path(cache_dir()) / "fuser"


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step, as another process may read or write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def free(place: Path, stem: str, suffix: str) -> Path:
    """The first of `stem_0`, `stem_1`, ... in a directory that no process has; now we have it."""
    return next(p for n in count() if _taken(p := place / f"{stem}_{n}{suffix}"))


def _taken(path: Path) -> bool:
    """Takes a name for us, unless a file, perhaps of another process, has it."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
