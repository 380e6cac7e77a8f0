"""From a layout to kernels."""

from __future__ import annotations

from collections.abc import Callable

from ...triton.build import builder_of
from . import backward, forward
from .text import Text

TEXTS: dict[str, Callable[..., Text]] = {
    "whole": forward.whole_text, "long": forward.long_text, "part": forward.part_text,
    "apply": forward.apply_text, "whole_backward": backward.whole_text,
    "long_backward": backward.long_text, "part_backward": backward.part_text,
    "apply_backward": backward.apply_text,
}  # fmt: skip

build = builder_of(TEXTS)
"""A kernel for a layout."""
