"""Texts that were looked at and accepted, under `tests/golden`.

All of them are accepted anew, to be looked at in `git diff`, with

    FUSER_ACCEPT=1 make test ARGS="-k golden"
"""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check(name: str, text: str) -> None:
    """Whether a text is the accepted one, byte for byte.

    Args:
        name: of a file under `tests/golden`.
        text: what it should hold.
    """
    path = GOLDEN / name
    if os.environ.get("FUSER_ACCEPT") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; see tests/accepted.py"
