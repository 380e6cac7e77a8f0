"""Kernels of norms: their text, how they are cut, what they take of a GPU, who launches them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fuser.lowering.norm.generated.backward import Needs
from fuser.lowering.norm.generated.build import TEXTS
from fuser.lowering.norm.generated.catalogue import Entry, recording
from fuser.lowering.norm.generated.config import Sizes, Way, cut, parts, programs, way
from fuser.lowering.norm.generated.layout import Layout
from fuser.lowering.norm.generated.workloads import builtin
from fuser.lowering.triton.aot import Resources
from fuser.lowering.triton.launch import TARGETS
from fuser.lowering.triton.pool import compile_all
from fuser.specs import NormSpec
from tests import accepted
from tests.lowering.compiling import Compiled, assert_room, compiled_sample, texts
from tests.lowering.norms import (
    HALF,
    generated,
    itself,
    modulated,
    modulated_again,
    norm,
    operands,
    outcome,
    permuted,
    rotated,
    rotated_back,
    row_norm,
    scaled,
    total,
)
from tests.lowering.opened import opened as launches_of

FOLDER = "triton/norm"
WHOLE = (["whole_kernel"], ["whole_backward_kernel"])
LONG = (["long_kernel"], ["long_backward_kernel"])
SPLIT = (["part_kernel", "apply_kernel"], ["part_backward_kernel", "apply_backward_kernel"])


@dataclass(frozen=True)
class Kind:
    """A norm, and the shapes of the operands that it trains on; `order` is that of the first."""

    spec: NormSpec
    shapes: Sequence[Sequence[int]]
    order: Sequence[int] = ()

    def launched(self) -> list[Entry]:
        """The kernels of a step of training."""
        x = operands(*self.shapes, dtype=HALF)
        if self.order:
            x[0] = permuted(x[0], *self.order)
        with recording() as found:
            outcome(generated, self.spec, x)
        return list(found.values())


LAYER = norm(dtype=HALF)
KINDS = {
    "layer_affine_silu": Kind(LAYER, row_norm(4, 48)),
    "layer_long": Kind(LAYER, row_norm(4, 600)),
    "residual_rms": Kind(
        norm(total, scaled, centred=False, dtype=HALF, kept=HALF), [(4, 48), (4, 48), (1, 48)]
    ),
    "group_channels_last": Kind(
        norm(inner=2, dtype=HALF), [(1, 3, 4, 200), (1, 3, 4, 1), (1, 3, 4, 1)], (0, 3, 1, 2)
    ),
    "rotated_halves": Kind(
        norm(itself, rotated, rotated_back, centred=False, dtype=HALF, paired=True),
        [(2, 3, 8, 2), (1, 1, 8, 2), (1, 3, 8, 2), (1, 3, 8, 2)],
        (0, 1, 3, 2),
    ),
    "modulated_twice": Kind(
        norm(itself, modulated, modulated_again, dtype=HALF), [(4, 48), *[(1, 48)] * 4]
    ),
}
SAMPLE = {
    ("RMS norm of long rows, float32", "long_backward"): ["sm_80", "sm_90"],
    ("RMS norm of long rows, bfloat16", "whole"): ["sm_90"],
    ("gate, residual, layer norm, modulate, bfloat16", "whole_backward"): ["sm_80", "sm_100"],
    ("group norm, SiLU, channels_last, bfloat16", "part"): ["sm_90"],
    ("group norm, SiLU, 5-D, bfloat16", "apply_backward"): ["sm_90", "gfx942"],
    ("norm of queries, rotated in halves, bfloat16", "whole_backward"): ["sm_80", "sm_100"],
    ("layer norm, modulated twice, float32", "whole_backward"): ["sm_90"],
    ("RMS norm, quantised by group, float32", "whole"): ["sm_80", "gfx942"],
    ("SwiGLU, quantised by row, float32", "whole"): ["sm_90", "sm_100"],
}
"""Kernels that take the most there."""


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_golden_file(name: str) -> None:
    accepted.check(f"{FOLDER}/{name}.txt", texts(KINDS[name].launched()))


def test_golden_files_are_of_the_kinds_and_have_every_stage() -> None:
    files = list((accepted.GOLDEN / FOLDER).iterdir())
    assert {path.stem for path in files} == set(KINDS)
    lines = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [stage for stage in TEXTS if f"\ndef {stage}_kernel(" not in lines] == []


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compiled_sample(SAMPLE, builtin())


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_the_largest_kernels_have_room(compiled: Compiled, arch: str) -> None:
    assert_room(compiled, arch)


def test_five_operands_of_short_rows_have_room() -> None:
    """With sixteen elements of each, two warps spilled 100 bytes on sm_80 and 332 on sm_100."""
    label = "gate, residual, layer norm, modulate, float32"
    of = next(e for e in builtin() if (e.label, e.stage) == (label, "whole_backward"))
    short = replace(
        of,
        layout=replace(of.layout, inner=(40,), lead=0, rest=of.layout.outer),
        arguments=(Needs(("c0",), (0,), True),),
        sizes=Sizes(15, 15, (40,)),
        numbers=replace(of.numbers, multiples=()),
    )
    kernels = {arch: short.kernels(arch)[0] for arch in ("sm_80", "sm_90", "sm_100")}
    assert [k.num_warps for k in kernels.values()] == [4, 2, 4]
    for found in compile_all([(kernels[arch], arch) for arch in ("sm_80", "sm_100")], 2):
        assert isinstance(found, Resources), found.message
        assert found.spills == 0


def test_the_catalogue_has_every_stage() -> None:
    assert {e.stage for e in builtin()} == set(TEXTS)


# -- the rule

H200 = replace(TARGETS["sm_90"], processors=132)


def rows_of(length: int | None) -> Layout:
    of = norm(itself, lambda n: n)
    return Layout(of, (HALF,), 0, 1, (length,), (("c0", (True, True)),), False, False)


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [
        (1, 4096, Way.WHOLE), (1 << 17, 16384, Way.WHOLE), (1 << 17, 16385, Way.LONG),
        (1, 16384, Way.WHOLE), (8, 16385, Way.SPLIT), (131, 1 << 20, Way.SPLIT),
        (132, 1 << 20, Way.LONG),
    ],
)  # fmt: skip
def test_rows_are_split_where_there_are_too_few_of_them(
    rows: int, length: int, expected: Way
) -> None:
    sizes = Sizes(rows, rows, (length,))
    assert way(rows_of(length), sizes, H200, backward=False) is expected


def test_a_length_that_is_not_known_is_read_in_pieces() -> None:
    sizes = Sizes(1 << 17, 1 << 17, (128,))
    assert way(rows_of(None), sizes, H200, backward=False) is Way.LONG


@pytest.mark.parametrize("tiles", [1, 2, 32, 131])
def test_parts_fill_the_device(tiles: int) -> None:
    found = parts(10_000, tiles, H200)
    assert found * tiles >= 132
    assert parts(3, tiles, H200) == 3


def test_sums_over_rows_have_few_owners() -> None:
    assert programs(1 << 17, 1, H200) == 4 * 132
    assert programs(5, 1, H200) == 5
    assert programs(1 << 17, 4, H200) == 132


@pytest.mark.parametrize("arch", [*TARGETS, "interpreter"])
@pytest.mark.parametrize("backward", [False, True])
def test_every_cut_is_one_that_triton_has(arch: str, backward: bool) -> None:
    """Blocks are powers of two; a tile of whole rows has all of them."""
    target = replace(H200, arch=arch)
    for length in (1, 3, 129, 4096, 5000, 100_000):
        for rows in (1, 7, 5000):
            sizes = Sizes(rows, rows, (length,))
            by = way(rows_of(length), sizes, target, backward=backward)
            config = cut(rows_of(length), sizes, target, by, backward=backward)
            blocks = [config.block_m, config.block_u, config.block_f, config.num_warps]
            assert all(b > 0 and b & (b - 1) == 0 for b in blocks), (sizes, config)
            assert by is not Way.WHOLE or config.block_f >= length


# -- on a GPU


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The launches of every case."""
    return launches_of("open_norms")


@pytest.mark.parametrize(
    ("case", "expected", "fastest"),
    [
        ("layer", WHOLE, [1]), ("residual", WHOLE, [1]), ("modulate", WHOLE, [2]),
        ("long", LONG, [1]), ("group", SPLIT, [3]), ("channels_last", SPLIT, [2]),
        ("dynamic", WHOLE, [1]), ("dynamic group", SPLIT, [3]), ("twice", WHOLE, [1]),
        ("halves", WHOLE, [3]), ("neighbours", WHOLE, [4]),
    ],
)  # fmt: skip
def test_kernels_are_launched_where_the_inner_backend_sees_them(
    opened: dict[str, Any], case: str, expected: tuple[list[str], list[str]], fastest: list[int]
) -> None:
    """Results have the order in memory of the operand that is not broadcast."""
    found = opened[case]
    forward, backward = ([e["kernel"] for e in found[w]] for w in ("forward", "backward"))
    assert (forward, backward) == expected
    assert all(own == fastest for own in found["fastest"])


def test_what_is_only_read_is_not_copied(opened: dict[str, Any]) -> None:
    launches = [e for of in opened.values() for w in ("forward", "backward") for e in of[w]]
    ours = re.compile(r"means|lows|scales|sums|(y_\d|x_out|dc\d)[ab]?")
    assert all(e["writes"] and all(map(ours.fullmatch, e["writes"])) for e in launches)


def test_sizes_that_are_not_known_are_arguments(opened: dict[str, Any]) -> None:
    assert opened["dynamic"]["forward"][0]["symbolic"] == ["ROWS"]
    assert "N3" in opened["dynamic group"]["forward"][0]["symbolic"]


def test_dtypes_have_their_own_entries() -> None:
    assert {e.layout.spec.dtypes[-1] for e in builtin()} == {torch.bfloat16, torch.float32}
