"""From a layout to kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from fuser.torch_private import differentiable, eager_world

from ...triton.kernel import Kernel
from .backward import Needs, delta_text, keys_text, rows_text, tiles_text
from .block_table import table_text
from .combine import combine_text
from .config import Config
from .forward import forward_text
from .kernel_text import KernelText, header
from .layout import Layout

STAGES: dict[str, Callable[..., KernelText]] = {
    "forward": forward_text, "combine": combine_text, "delta": delta_text, "rows": rows_text,
    "keys": keys_text, "dk": keys_text, "dv": keys_text, "tiles": tiles_text, "table": table_text,
}  # fmt: skip
"""What a kernel of an attention is for."""


@lru_cache(maxsize=4096)
def _text(layout: Layout, stage: str, arguments: tuple[Any, ...]) -> KernelText:
    # below autograd, where operators run, no derivative could be traced
    with eager_world(), differentiable():
        return STAGES[stage](layout, *arguments)


def build(
    layout: Layout,
    stage: str,
    arguments: tuple[Any, ...],
    config: Config,
    origin: str = "",
    *,
    whole: tuple[bool, bool] = (False, False),
) -> Kernel:
    """A kernel for a layout.

    Args:
        layout: what it is specialised on.
        stage: one of `STAGES`.
        arguments: of the stage.
        config: how it is cut.
        origin: pattern and source lines, for the header.
        whole: whether all tiles of queries, and all tiles of keys, are full.
    """
    layout = replace(
        layout, tma=config.tma, warp_specialize=config.warp_specialize, hoists=config.hoists,
        whole_rows=whole[0], whole_keys=whole[1],
    )  # fmt: skip
    text = _text(layout, stage, arguments)
    source = f"{header(layout, origin, text.tile.functions)}\n\n{text.text()}"
    constants = (("BLOCK_M", config.block_m), ("BLOCK_N", config.block_n))
    return Kernel(
        text.name,
        source,
        text.signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


__all__ = ["STAGES", "Needs", "build"]


def check(layout: Layout, *, training: bool) -> None:
    """Writes the text of an attention's kernels without a use for it.

    Raises:
        NotPrintable: an operator of its programs has no Triton text.
    """
    _text(layout, "forward", ())
    if training:
        floating = [i for i, c in enumerate(layout.captured) if c.dtype.is_floating_point]
        needs = Needs(True, True, True, tuple(i for i in floating if layout.captured[i].rank < 0))
        _text(layout, "rows", (needs,))
