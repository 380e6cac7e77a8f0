"""Kernels of mixtures: their text, how they are cut, what they take of a GPU, who launches them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuser.lowering.moe import cost
from fuser.lowering.moe.generated.build import TEXTS
from fuser.lowering.moe.generated.catalogue import Entry, builtin, recording
from fuser.lowering.moe.generated.config import STAGES, choose
from fuser.lowering.triton.launch import TARGETS
from tests import accepted
from tests.lowering.compiling import Compiled, assert_room, compiled_sample, texts
from tests.lowering.mixtures import clamped, in_runs, mixture, outcome, swiglu
from tests.lowering.opened import opened as launches_of
from tests.lowering.test_generated_moe import generated

FOLDER = "triton/moe"
FORWARD = [("place_kernel", ["order", "starts"]), ("up_kernel", ["hidden", "saved"]),
           ("down_kernel", ["y"])]  # fmt: skip
SORTED = [("count_kernel", ["counts"]), ("scan_kernel", ["counts"]), *FORWARD]
BACKWARD = [("hidden_kernel", ["again", "dh", "partial"]), ("tokens_kernel", ["dx"])]
MATRICES = [("matrix_kernel", ["dm0"]), ("matrix_kernel", ["dm0"]), ("matrix_kernel", ["dm1"])]
OWN_NUMBER = (None, None)
"""What the program itself reads of the device."""
KINDS: dict[str, dict[str, Any]] = {
    "stacked_many_tokens": {"activation": swiglu, "tokens": 520, "features": 16, "hidden": 16},
    "pairs_biases_first": {
        "activation": clamped, "in_pairs": True, "biases": True, "first": True, "experts": 3,
    },
    "separate": {"activation": swiglu, "separate": True, "products": 2, "experts": 3},
    "runs": {"counts": (9, 0, 12), "activation": swiglu},
}  # fmt: skip
SAMPLE = {
    ("SwiGLU, 128 experts, bfloat16", "up"): ["sm_90", "gfx942"],
    ("SwiGLU, 128 experts, bfloat16", "down"): ["sm_90"],
    ("SwiGLU in pairs, biases, bfloat16", "hidden"): ["sm_80", "sm_90"],
    ("SwiGLU in pairs, biases, bfloat16", "place"): ["sm_90"],
    ("SwiGLU, weights first, float16", "matrix"): ["sm_90"],
    ("SwiGLU, 8 experts apart, bfloat16", "tokens"): ["sm_100"],
}
"""Kernels that take the most there."""


def launched(**kind: Any) -> list[Entry]:
    """The kernels of a step of training."""
    make = in_runs if "counts" in kind else mixture
    spec, x = make(dtype=torch.bfloat16, **kind)
    with recording() as found:
        outcome(generated, spec, x)
    return list(found.values())


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_golden_file(name: str) -> None:
    accepted.check(f"{FOLDER}/{name}.txt", texts(launched(**KINDS[name])))


def test_golden_files_are_of_the_kinds_and_have_every_stage() -> None:
    files = list((accepted.GOLDEN / FOLDER).iterdir())
    assert {path.stem for path in files} == set(KINDS)
    lines = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [stage for stage in STAGES if f"\ndef {stage}_kernel(" not in lines] == []
    assert set(STAGES) == set(TEXTS)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compiled_sample(SAMPLE, builtin())


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_the_largest_kernels_have_room(compiled: Compiled, arch: str) -> None:
    assert_room(compiled, arch)


@pytest.mark.parametrize("arch", sorted(TARGETS))
@pytest.mark.parametrize("rows", [0.1, 16.0, 17.0, 64.0, 5000.0])
def test_every_cut_is_one_that_triton_has(arch: str, rows: float) -> None:
    """Blocks are powers of two, and a tile of a product is 16 wide at least."""
    for entry in builtin():
        if entry.stage in ("count", "scan", "place"):
            continue
        config = choose(entry.stage, replace(entry.layout, interpreted=False), arch, rows)
        blocks = (config.block_m, config.block_n // config.parts, config.block_k)
        assert all(block >= 16 and block & (block - 1) == 0 for block in blocks), (entry, config)


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The launches of every case."""
    return launches_of("open_mixtures")


def _own(name: str) -> tuple[str, list[str]]:
    return ("matrix_kernel", [f"{name}_{e}" for e in range(5)])


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        ("stacked", FORWARD, [*BACKWARD, *MATRICES, ("bias_kernel", ["db0"]),
                              ("bias_kernel", ["db0"]), ("bias_kernel", ["db1"])]),
        ("separate", FORWARD, [*BACKWARD, _own("dm0"), _own("dm1"), _own("dm2")]),
        ("weights first", FORWARD, [*BACKWARD, *MATRICES]),
        ("many tokens", SORTED, [*BACKWARD, *MATRICES]),
        ("dynamic", SORTED, [*BACKWARD, *MATRICES]),
        ("library", [], []),
        ("runs", FORWARD[1:], [*BACKWARD, *MATRICES, ("bias_kernel", ["db0"]),
                               ("bias_kernel", ["db0"]), ("bias_kernel", ["db1"])]),
        ("runs, dynamic", FORWARD[1:], [*BACKWARD, *MATRICES]),
        ("runs, counted", [*FORWARD[1:], OWN_NUMBER], [*BACKWARD, *MATRICES]),
        ("router", [("router_kernel", ["indices", "weights"])],
         [("router_backward_kernel", ["dlogits"])]),
    ],
)  # fmt: skip
def test_kernels_are_launched_where_the_inner_backend_sees_them(
    opened: dict[str, Any], case: str, forward: Any, backward: Any
) -> None:
    """Nothing else is: no result for which the host would wait, no copy of what is only read."""
    for which, expected in (("forward", forward), ("backward", backward)):
        found = opened[case][which]
        assert [(e.get("kernel"), e.get("writes")) for e in found] == expected, found


def test_work_on_a_gpu_follows_what_was_measured() -> None:
    few, many = cost.FASTER, cost.SLOWER
    assert few < cost.LIBRARY < many
