"""From a layout to kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fuser.torch_private import differentiable, eager_world

from ...triton.kernel import Kernel
from .backward import bias_text, hidden_text, matrix_text, tokens_text
from .config import Config
from .forward import down_text, up_text
from .layout import Layout
from .sort import count_text, place_text, scan_text
from .text import Text

TEXTS: dict[str, Callable[..., Text]] = {
    "count": count_text, "scan": scan_text, "place": place_text, "up": up_text, "down": down_text,
    "hidden": hidden_text, "tokens": tokens_text, "matrix": matrix_text, "bias": bias_text,
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
