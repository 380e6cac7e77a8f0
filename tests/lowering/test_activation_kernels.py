"""Kernels of activations: their text, how they are cut, what they take of a GPU, who launches them,
and what is saved for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fuser.lowering.activation.generated.catalogue import Entry, recording
from fuser.lowering.activation.generated.config import Sizes, cut, programs
from fuser.lowering.activation.generated.kernels import TEXTS
from fuser.lowering.activation.generated.workloads import builtin
from fuser.lowering.triton.launch import TARGETS
from fuser.specs import ActivationSpec
from tests import accepted
from tests.lowering.activations import (
    HALF,
    activation,
    biased,
    clamped,
    dyt,
    generated,
    halves,
    operands,
    ordered,
    outcome,
    residual,
)
from tests.lowering.compiling import Compiled, assert_room, compiled_sample, texts
from tests.lowering.opened import opened as launches_of

FOLDER = "triton/activation"


@dataclass(frozen=True)
class Kind:
    """An activation, and the shapes of the operands that it trains on; `order` is the first's."""

    spec: ActivationSpec
    shapes: Sequence[Sequence[int]]
    order: Sequence[int] = ()

    def launched(self) -> list[Entry]:
        """The kernels of a step of training."""
        x = operands(*self.shapes, dtype=HALF)
        if self.order:
            x[0] = ordered(x[0], *self.order)
        with recording() as found:
            outcome(generated, self.spec, x)
        return list(found.values())


KINDS = {
    "swiglu_of_halves": Kind(activation(halves, 2, dtype=HALF), [(2, 4, 48)], (1, 0, 2)),
    "clamped_in_turn": Kind(activation(clamped, 2, dtype=HALF), [(2, 4, 48)], (1, 2, 0)),
    "biased_gelu": Kind(activation(biased, 1, 1, dtype=HALF), [(1, 4, 48), (1, 1, 48)]),
    "dyt": Kind(
        activation(dyt, 1, 1, 1, 1, dtype=HALF), [(1, 4, 48), (1, 1, 1), (1, 1, 48), (1, 1, 48)]
    ),
    "residual_by_batch": Kind(
        activation(residual, 1, 1, 1, dtype=HALF), [(1, 2, 4, 48), (1, 2, 1, 48), (1, 2, 4, 48)]
    ),
}
SAMPLE = {
    ("DyT, bfloat16", "backward"): ["sm_80"],
    ("GEGLU of halves, float32", "backward"): ["sm_90"],
    ("clamped SwiGLU in turns, bfloat16", "backward"): ["sm_100", "gfx942"],
}
"""Kernels that take much there."""


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_golden_file(name: str) -> None:
    accepted.check(f"{FOLDER}/{name}.txt", texts(KINDS[name].launched()))


def test_golden_files_are_of_the_kinds() -> None:
    files = list((accepted.GOLDEN / FOLDER).iterdir())
    assert {path.stem for path in files} == set(KINDS)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compiled_sample(SAMPLE, builtin())


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_the_largest_kernels_have_room(compiled: Compiled, arch: str) -> None:
    assert_room(compiled, arch)


def test_the_catalogue_has_every_stage_and_dtype() -> None:
    assert {e.stage for e in builtin()} == set(TEXTS)
    assert {e.layout.spec.dtype for e in builtin()} == {torch.bfloat16, torch.float32}


# -- the rule


def test_sums_over_rows_have_few_owners() -> None:
    device, config = TARGETS["sm_90"], cut(Sizes(1, 1 << 17, 1024), TARGETS["sm_90"])
    assert programs(Sizes(1, 1 << 17, 1024), config, device) == 4 * 132
    assert programs(Sizes(1, 5, 1024), config, device) == 5
    assert programs(Sizes(4, 1 << 17, 2048), config, device) == 4 * 132 // 8


@pytest.mark.parametrize("arch", [*TARGETS, "interpreter"])
def test_every_cut_is_one_that_triton_has(arch: str) -> None:
    target = replace(TARGETS["sm_90"], arch=arch)
    for columns in (1, 3, 129, 4096, 5000, 1 << 20):
        for rows in (1, 7, 5000):
            config = cut(Sizes(1, rows, columns), target)
            blocks = [config.block_m, config.block_f, config.num_warps]
            assert all(b > 0 and b & (b - 1) == 0 for b in blocks), config


# -- on a GPU


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The launches of every case, and what is saved."""
    return launches_of("open_activations")


@pytest.mark.parametrize(
    ("case", "written"),
    [
        ("halves", {"dc0"}), ("in turn", {"dc0"}), ("dyt", {"dc0", "dc1", "dc2", "dc3"}),
        ("residual", {"dc0", "dc1", "dc2"}), ("dynamic", {"dc0", "dc1"}),
        ("dynamic dyt", {"dc0", "dc1", "dc2", "dc3"}),
    ],
)  # fmt: skip
def test_kernels_are_launched_where_the_inner_backend_sees_them(
    opened: dict[str, Any], case: str, written: set[str]
) -> None:
    """One each way; halves have one gradient, and nothing that is only read is copied."""
    found = opened["launches"][case]
    forward, backward = found["forward"], found["backward"]
    assert [e["kernel"] for e in (*forward, *backward)] == ["forward_kernel", "backward_kernel"]
    assert set(forward[0]["writes"]) == {"y"}
    assert set(backward[0]["writes"]) == written
    assert found["fastest"] == [1]


def test_sizes_that_are_not_known_are_arguments(opened: dict[str, Any]) -> None:
    assert opened["launches"]["dynamic dyt"]["backward"][0]["symbolic"]


@pytest.mark.parametrize("case", ["between", "block", "residual"])
def test_no_more_is_saved_than_inductor_saves(opened: dict[str, Any], case: str) -> None:
    """Gate and up; behind which a product stands, their product; nothing of a residual."""
    ours, theirs = opened["saved"][case]
    assert ours == theirs
