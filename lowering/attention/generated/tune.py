"""Configs of the generated kernels by measurement, where the user asks for that.

The rule's config has neighbours: tiles of another size that fit too, other numbers of warps and
stages, tiles that are loaded by descriptors, warps with tasks of their own. Each is timed by
running the whole forward, or that part of the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuser import measure
from fuser.torch_private import hint, kernels_launched

from ...triton.aot import Failure
from ...triton.launch import Target
from ...triton.pool import compile_all
from ...triton.tuning import Question, Tuner
from .catalogue import recording
from .config import DECODING, SHAPES, Config, _fits, choose
from .layout import AXES, Layout

if TYPE_CHECKING:
    from .problem import Problem

STAGES = ("forward", "rows", "keys", "dk", "dv", "tiles", "delta")
"""What is tuned; adding up parts of the keys takes no time."""
NEARBY = 2
"""Other tiles that are tried: so many larger ones and so many smaller ones."""
TUNER = Tuner("an attention", Config)


def lookup(
    layout: Layout,
    stage: str,
    target: Target,
    sizes: Mapping[str, int | torch.SymInt],
    visits: float,
    device: torch.device,
) -> Config | None:
    """The config that was measured to be the fastest, here or by another process, or is now.

    Args:
        layout: of the attention.
        stage: one of `build.STAGES`.
        target: what the rule knows of the device.
        sizes: `B`, `H`, `HKV`, `GROUP`, `SQ` and `SK`.
        visits: positions that a program goes over.
        device: where it runs.

    Returns:
        None where the rule is to choose: nothing is to be measured, or that is impossible.
    """

    def question() -> Question[Config] | None:
        known = {name: hint(size) for name, size in sizes.items()}
        numbers = {name: size for name, size in known.items() if size is not None}
        if len(numbers) < len(known) or any(c.rank >= 0 for c in layout.captured):
            return None  # indices of a table that is made up may lie outside of it
        return Question(
            _about(layout, numbers),
            lambda: runner(_problem(layout, numbers, device), stage),
            lambda run: _safe(
                run, stage, target,
                neighbours(layout, stage, target, rows=together(numbers), visits=visits),
            ),
        )  # fmt: skip

    return TUNER.lookup(stage, target, device, question) if stage in STAGES else None


def _about(layout: Layout, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What the fastest config depends on; sizes by powers of two."""
    return {
        **{f.name: repr(getattr(layout, f.name)) for f in fields(layout)},
        "spec": layout.spec.to_text(),
        "sizes": {name: measure.bucket(size) for name, size in sizes.items()},
    }


def together(sizes: Mapping[str, int]) -> int:
    """Queries that are rows of one problem: those of all heads that share a key head, if few."""
    from .run_forward import PACKED_ROWS

    few = sizes["GROUP"] > 1 and sizes["SQ"] <= PACKED_ROWS
    return sizes["SQ"] * sizes["GROUP"] if few else sizes["SQ"]


def neighbours(
    layout: Layout, stage: str, target: Target, *, rows: int, visits: float = math.inf
) -> list[Config]:
    """The rule's config, first, and those around it that fit."""
    rule = choose(stage, layout, target, rows=rows, visits=visits)
    shapes = DECODING if stage == "forward" and rows <= 16 else SHAPES[stage]
    tiles = list(dict.fromkeys((c.block_m, c.block_n) for c in shapes))
    own = (rule.block_m, rule.block_n)
    at = tiles.index(own) if own in tiles else 0
    nearby = tiles[max(0, at - NEARBY) : at + NEARBY + 1]
    near = [c for c in shapes if (c.block_m, c.block_n) in nearby]
    found = dict.fromkeys([rule, *near, *_varied(rule, target)])
    return [c for c in found if c == rule or _fits(stage, layout, c, target)]


def _varied(config: Config, target: Target) -> Iterator[Config]:
    """The same tiles, cut otherwise: other warps or stages, and what only some devices have."""
    for warps in (config.num_warps // 2, config.num_warps * 2):
        if 1 <= warps <= 16:
            yield replace(config, num_warps=warps)
    for stages in (config.num_stages - 1, config.num_stages + 1):
        if stages >= 1:
            yield replace(config, num_stages=stages)
    if target.tma:
        yield replace(config, tma=not config.tma)
    for warps in (4, 8) if target.warp_specialize else ():
        yield replace(config, num_warps=warps, tma=True, warp_specialize=True)


def _safe(
    run: Callable[[], object], stage: str, target: Target, configs: Sequence[Config]
) -> list[Config]:
    """The configs without those that Triton's compiler cannot specialise warps for.

    It may end the process that asks, which is therefore another one.
    """
    asked = [c for c in configs if c.warp_specialize]
    if not asked:
        return list(configs)
    with recording() as entries:
        TUNER.making(run, stage, configs[0])()
    kernels = [e for e in entries.values() if e.stage == stage]
    tasks = [(e.cut(c), target.arch) for c in asked for e in kernels]
    found = iter(compile_all(tasks))
    fails = {c for c in asked for _ in kernels if isinstance(next(found), Failure)}
    return [c for c in configs if c not in fails]


def runner(of: Problem, stage: str) -> Callable[[], object]:
    """Runs one stage, or with others that do not depend on its config.

    Args:
        of: its operands.
        stage: one of `STAGES`.
    """
    from .run_backward import backward
    from .run_forward import forward

    if stage == "forward":
        return partial(forward, of)
    layout = of.layout
    with TUNER.trying({}), kernels_launched():
        out, row_max, row_sum = forward(of)
    grad = torch.randn_like(out)
    count, captured = len(of.q), len(of.captured)
    floating = [c.dtype.is_floating_point for c in layout.captured]
    tiles = [
        f and {"q", "k"} <= set(c.axes) for f, c in zip(floating, layout.captured, strict=True)
    ]
    rows = [f and "k" not in c.axes for f, c in zip(floating, layout.captured, strict=True)]
    wanted = {
        "rows": [True] * count + [False] * (count + 1 + captured),
        "keys": [False] * count + [True] * (count + 1) + [False] * captured,
        "dk": [False] * count + [True] * count + [False] * (captured + 1),
        "dv": [False] * (2 * count) + [True] + [False] * captured,
        "tiles": [False] * (2 * count + 1) + tiles,
        "delta": [False] * (2 * count + 1) + rows,
    }[stage]
    return lambda: backward(of, grad, out, row_max, row_sum, wanted)


def _problem(layout: Layout, sizes: Mapping[str, int], device: torch.device) -> Any:
    from .problem import Problem, target_of

    batch, heads, key_heads = sizes["B"], sizes["H"], sizes["HKV"]
    rows, keys = sizes["SQ"], sizes["SK"]

    def made(*shape: int, dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, device=device, dtype=dtype)
        return torch.ones(shape, device=device, dtype=dtype)

    q = [made(batch, heads, rows, x.features, dtype=x.dtype) for x in layout.q]
    k = [made(batch, key_heads, keys, x.features, dtype=x.dtype) for x in layout.k]
    v = made(batch, key_heads, keys, layout.v.features, dtype=layout.v.dtype)
    along = dict(zip(AXES, (batch, heads, rows, keys), strict=True))
    captured = [
        made(
            *(() if c.is_scalar else (along[a] if a in c.axes else 1 for a in AXES)), dtype=c.dtype
        )
        for c in layout.captured
    ]
    seed = torch.zeros(1, dtype=torch.int64, device=device) if layout.spec.dropout else None
    return Problem(layout, q, k, v, captured, seed, "", target_of(device))
