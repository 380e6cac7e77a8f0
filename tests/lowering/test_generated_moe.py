"""Generated kernels of mixtures, in Triton's interpreter or on the device of `FUSER_DEVICE`.

`FUSER_EVERY=1` takes float16 too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.lowering.moe.generated import catalogue
from fuser.lowering.moe.generated.layout import LARGEST, Matrix, layout_of
from fuser.lowering.moe.generated.sort import part
from fuser.lowering.moe.library import library_moe
from fuser.specs import Columns, MoeSpec
from tests.compiled import Run, assert_near
from tests.every import EVERY, some
from tests.lowering.generated import DEVICE, FACTOR
from tests.lowering.mixtures import Operands, clamped, in_fp64, mixture, outcome, squared, swiglu

DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if EVERY else [])]
REFERENCE = torch.ops.fuser.moe


def generated(*operands: Any, keep: bool = True) -> Tensor:
    return torch.ops.fuser.generated_moe(*operands, "a test", keep)[0]


def check(spec: MoeSpec, x: Operands, operator: Any = generated) -> Run:
    """As near to fp64 as the reference: the result, and the gradients of everything."""
    ours = outcome(operator, spec, x)
    exact = outcome(REFERENCE, in_fp64(spec), x.wide())
    assert_near(ours, outcome(REFERENCE, spec, x), exact, factor=FACTOR)
    return ours


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize("first", [False, True], ids=["after", "first"])
@pytest.mark.parametrize("separate", [False, True], ids=["stacked", "separate"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_kinds(dtype: torch.dtype, first: bool, separate: bool, biases: bool) -> None:
    check(*mixture(dtype=dtype, first=first, separate=separate, biases=biases))


@pytest.mark.parametrize(
    ("activation", "more"),
    [
        (swiglu, {"in_pairs": True, "biases": True}),
        (swiglu, {"products": 2, "biases": True}),
        (swiglu, {"transposed": True}),
        (clamped, {"in_pairs": True, "biases": True}),
        (squared, {}),
        (lambda h0: F.gelu(h0, approximate="tanh"), {"biases": True}),
        (lambda h0, h1, h2: h0 * torch.sigmoid(h1) + torch.tanh(h2), {"biases": True}),
    ],
    ids=["pairs", "apart", "transposed", "clamped", "squared", "gelu", "three"],
)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_experts(
    activation: Callable[..., Tensor], more: dict[str, Any], dtype: torch.dtype
) -> None:
    check(*mixture(activation, dtype=dtype, **more))


@pytest.mark.parametrize("tokens", [0, 1, 17, 70])
@pytest.mark.parametrize(("experts", "choices"), [(1, 1), (3, 3), (7, 2)])
def test_numbers_of_tokens(tokens: int, experts: int, choices: int) -> None:
    """Few experts have tiles of their own; many rows of one expert are several tiles."""
    check(*mixture(tokens=tokens, experts=experts, choices=choices, biases=True))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 5, 3), (33, 31, 65), (64, 32, 64)], ids=str)
def test_odd_numbers_of_features(sizes: tuple[int, int, int]) -> None:
    features, hidden, width = sizes
    check(*mixture(features=features, hidden=hidden, width=width, biases=True))


def test_choices_of_many_parts() -> None:
    """Counts of more parts than one program adds up at a time, of more experts than it has."""
    spec, x = mixture(tokens=270, experts=300, choices=4, features=4, hidden=4, width=4)
    layout = layout_of(
        spec, torch.float32, torch.float32, [Matrix(*m.shape[1:], m.dtype) for m in x.matrices], []
    )
    assert x.indices.numel() > 64 * part(layout)
    operands = (x.x, x.indices, x.weights, x.matrices, x.biases, spec.to_text())
    with torch.no_grad():
        torch.testing.assert_close(generated(*operands), REFERENCE(*operands))


def test_one_expert_has_all_tokens_and_others_none() -> None:
    spec, x = mixture(tokens=50)
    indices = torch.tensor([[1, 3]], device=DEVICE).expand(50, 2)
    ours = check(spec, replace(x, indices=indices))
    of_first = ours.grads[2]
    assert of_first is not None
    assert [bool(g.any()) for g in of_first] == [False, True, False, True, False]


def test_an_expert_twice_and_indices_from_the_end() -> None:
    spec, x = mixture(tokens=6)
    pairs = [[2, 2], [-1, 4], [-5, 0], [1, -4], [3, 3], [0, -1]]
    check(spec, replace(x, indices=torch.tensor(pairs, device=DEVICE)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_dtypes_of_indices(dtype: torch.dtype) -> None:
    spec, x = mixture()
    check(spec, replace(x, indices=x.indices.to(dtype)))


@pytest.mark.parametrize("wrong", [5, -6, 1 << 40])
def test_an_index_of_no_expert_gives_nan_to_its_token_alone(wrong: int) -> None:
    spec, x = mixture(tokens=9)
    indices = x.indices.clone()
    indices[4, 1] = wrong
    ours = generated(x.x, indices, x.weights, x.matrices, x.biases, spec.to_text())
    assert ours.isnan().all(1).tolist() == [t == 4 for t in range(9)]


def test_operands_of_several_dtypes() -> None:
    """Autocast: parameters in fp32, products in bf16."""
    spec, x = mixture(biases=True)
    spec = replace(spec, product_dtype=torch.bfloat16, dtype=torch.bfloat16)
    check(spec, x)


def test_strided_operands() -> None:
    spec, x = mixture(tokens=8)
    leaves = [torch.stack([t.detach()] * 2, -1)[..., 0].requires_grad_() for t in x.leaves]
    indices = torch.stack([x.indices] * 3)[1]
    check(spec, replace(x.with_leaves(leaves), indices=indices.T.contiguous().T))


def test_experts_with_matrices_in_different_layouts() -> None:
    spec, x = mixture(separate=True)
    matrices = [m.detach() for m in x.matrices]
    matrices[1] = matrices[1].T.contiguous().T
    leaves = [x.x, x.weights, *(m.requires_grad_() for m in matrices)]
    check(spec, x.with_leaves(leaves))


@pytest.mark.parametrize("first", [False, True])
def test_the_backward_computes_again_what_was_not_kept(first: bool) -> None:
    spec, x = mixture(biases=True, first=first)
    kept, again = (outcome(partial(generated, keep=k), spec, x) for k in (True, False))
    for a, b in zip(kept.grads, again.grads, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [5], [0, 3], [1, 4]], ids=str)
def test_gradients_of_a_part(wanted: list[int]) -> None:
    """Where parameters are frozen, the others' gradients are the same."""
    spec, x = mixture(biases=True)
    every = outcome(generated, spec, x).grads
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(x.leaves)]
    found = outcome(generated, spec, x.with_leaves(leaves)).grads
    for place, grad in zip(wanted, found, strict=True):
        full = every[place]
        assert full is not None
        assert grad is not None
        assert torch.equal(grad, full)


def test_columns_that_nobody_reads_have_no_gradient() -> None:
    spec, x = mixture()
    spec = replace(spec, columns=(Columns(0, 0, 20), Columns(0, 28)))
    matrices = [x.matrices[0], x.matrices[1].detach()[..., :20].contiguous().requires_grad_()]
    ours = check(spec, replace(x, matrices=matrices))
    of_first = ours.grads[2]
    assert of_first is not None
    assert not of_first[:, 20:28].any()


def test_results_are_the_same_in_every_run() -> None:
    spec, x = mixture(tokens=60, biases=True)
    once, twice = outcome(generated, spec, x), outcome(generated, spec, x)
    assert all(torch.equal(a, b) for a, b in zip(once.outputs, twice.outputs, strict=True))
    for a, b in zip(once.grads, twice.grads, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_a_nan_stays_with_the_tokens_of_its_expert() -> None:
    spec, x = mixture()
    matrices = [m.detach().clone() for m in x.matrices]
    matrices[0][3, 0, 0] = torch.nan
    ours = generated(x.x, x.indices, x.weights, matrices, x.biases, spec.to_text())
    assert torch.equal(ours.isnan().any(1), (x.indices == 3).any(1))


@pytest.mark.parametrize(
    ("columns", "sizes", "reason"),
    [
        ((Columns(0, 0, 8), Columns(0, 4, 12)), (16, 8), "read the same column"),
        ((Columns(0, 0, 8), Columns(0, 8, 12)), (16, 8), "columns of another number"),
        ((Columns(0, 8, 0, -1), Columns(0, 8)), (16, 8), "columns of another number"),
    ],
)
def test_what_has_no_kernels(
    columns: tuple[Columns, ...], sizes: tuple[int, int], reason: str
) -> None:
    spec, _ = mixture()
    spec, fp32 = replace(spec, columns=columns), torch.float32
    matrices = [Matrix(sizes[0], 32, fp32), Matrix(32, sizes[1], fp32)]
    with pytest.raises(match=reason):
        layout_of(spec, fp32, fp32, matrices, [])


def test_a_matrix_that_is_too_large() -> None:
    spec, _ = mixture()
    fp32 = torch.float32
    matrices = [Matrix(48, LARGEST // 48 + 1, fp32), Matrix(32, 24, fp32)]
    with pytest.raises(match="elements or more"):
        layout_of(spec, fp32, fp32, matrices, [])


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_grouped_products_of_the_library(in_pairs: bool, first: bool, biases: bool) -> None:
    """bf16, with sizes that it takes."""
    sizes = {"features": 32, "hidden": 16, "width": 24, "tokens": 40}
    spec, x = mixture(dtype=torch.bfloat16, biases=biases, first=first, in_pairs=in_pairs, **sizes)
    check(spec, x, library_moe)


def test_opcheck() -> None:
    spec, x = mixture(tokens=5, biases=True)
    text = spec.to_text()
    operands = (x.x, x.indices, x.weights, x.matrices, x.biases, text)
    torch.library.opcheck(torch.ops.fuser.generated_moe.default, (*operands, "", True))
    detached = [t.detach() for t in x.leaves]
    n = len(x.matrices)
    plain = (detached[0], x.indices, detached[1], detached[2 : 2 + n], detached[2 + n :], text)
    torch.library.opcheck(torch.ops.fuser.interpreted_moe.default, (*plain, "", True))
    out, *saved = torch.ops.fuser.generated_moe(*plain, "", True)
    needs = [True] * len(detached)
    given = (torch.ones_like(out), *saved, *plain, "", True, needs)
    torch.library.opcheck(torch.ops.fuser.interpreted_moe_backward.default, given)


def test_entries_are_read_as_they_are_written() -> None:
    spec, x = mixture(biases=True, first=True)
    with catalogue.recording() as found:
        outcome(generated, spec, x)
    stages = {entry.stage for entry in found.values()}
    assert stages == {"place", "up", "down", "hidden", "tokens", "matrix", "bias"}
    for line, entry in found.items():
        again = catalogue.Entry.from_json(line)
        assert again.to_json() == line
        assert again.kernels("sm_90") == entry.kernels("sm_90")


@pytest.mark.parametrize("name", ["generated", "library"])
@pytest.mark.parametrize("first", [False, True])
def test_dropped_choices_give_nothing(name: str, first: bool) -> None:
    """Not to the result, and to no gradient, whatever their weights are."""
    dtype = torch.float32 if name == "generated" else torch.bfloat16
    sizes = {"features": 32, "hidden": 16, "width": 24, "tokens": 30}
    spec, x = mixture(dtype=dtype, biases=True, first=first, **sizes)
    spec = replace(spec, dropping=True)
    indices = x.indices.clone()
    indices[::3, 0], indices[1::5, 1] = 5, -2
    operator = generated if name == "generated" else library_moe
    ours = check(spec, replace(x, indices=indices), operator)
    of_weights = ours.grads[1]
    assert of_weights is not None
    assert not of_weights[::3, 0].any()
    assert not of_weights[1::5, 1].any()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("first", [False, True])
def test_a_weight_that_is_no_number_stays_with_its_expert(number: float, first: bool) -> None:
    """Tiles have rows that are not there, and stand for the first token."""
    spec, x = mixture(biases=True, first=first, tokens=6)
    weights = x.weights.detach().clone()
    weights[0, 0] = number
    chosen = int(x.indices[0, 0])
    ours = outcome(generated, spec, replace(x, weights=weights.requires_grad_()))
    for grad in ours.grads[2:]:
        assert grad is not None
        for expert in set(range(spec.experts)) - {chosen}:
            assert grad[expert].isfinite().all()
