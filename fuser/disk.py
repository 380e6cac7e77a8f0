"""What is kept on disk: generated modules and measurements, beside Inductor's cache."""

from __future__ import annotations

import os
import tempfile
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
