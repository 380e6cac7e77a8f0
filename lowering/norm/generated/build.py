"""From a layout to kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fuser.torch_private import differentiable, eager_world

from ...triton.kernel import Kernel
from . import backward, forward
from .config import Config
from .layout import Layout
from .text import Text

TEXTS: dict[str, Callable[..., Text]] = {
    "whole": forward.whole_text, "long": forward.long_text, "part": forward.part_text,
    "apply": forward.apply_text, "whole_backward": backward.whole_text,
    "long_backward": backward.long_text, "part_backward": backward.part_text,
    "apply_backward": backward.apply_text,
}  # fmt: skip


@lru_cache(maxsize=4096)
def build(
    layout: Layout, stage: str, arguments: tuple[Any, ...], config: Config, origin: str = ""
) -> Kernel:
    """A kernel for a layout.

    Args:
        layout: what it is specialised on.
        stage: one of `TEXTS`.
        arguments: of the stage.
        config: how it is cut.
        origin: pattern and source lines, for the header.
    """
    # below autograd, where operators run, no derivative could be traced
    with eager_world(), differentiable():
        return TEXTS[stage](layout, config, *arguments).kernel(origin)
