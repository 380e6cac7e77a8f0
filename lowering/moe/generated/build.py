"""From a layout to kernels."""

from __future__ import annotations

from collections.abc import Callable

from ...triton.build import builder_of
from .backward import bias_text, hidden_text, matrix_text, tokens_text
from .forward import down_text, up_text
from .sort import count_text, place_text, scan_text
from .text import Text

TEXTS: dict[str, Callable[..., Text]] = {
    "count": count_text, "scan": scan_text, "place": place_text, "up": up_text, "down": down_text,
    "hidden": hidden_text, "tokens": tokens_text, "matrix": matrix_text, "bias": bias_text,
}  # fmt: skip

build = builder_of(TEXTS)
"""A kernel for a layout."""
