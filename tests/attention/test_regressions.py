"""Cases that once gave wrong numbers or crashed; each stands for a kind."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from tests.compiled import TOLERANCES, assert_near, compiled, run, wide


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.4).softmax(-1) @ v


def _inputs(*lengths: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(1, 2, n, 8, generator=generator).to(dtype) for n in lengths]
    return [t.requires_grad_(grad) for t in tensors]


def test_result_overwritten_in_place_in_training() -> None:
    """A flash kernel keeps its result for the backward; the original product did not."""

    def overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _attend(q, k, v)
        out += q
        return out

    inputs = _inputs(5, 5, 5, grad=True)
    ours = compiled(overwritten, inputs, grad=True)
    assert ours.rewrites() == 0
    assert "mutated" in ours.reasons()
    exact = run(overwritten, wide(inputs), grad=True)
    assert_near(ours, run(overwritten, inputs, grad=True), exact)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 3e38])
def test_overwritten_scores_that_are_no_numbers(garbage: float) -> None:
    """Unwritten slots of a key cache, behind a mask that is filled in."""

    def cached(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v

    q, k, v = _inputs(5, 7, 7)
    k[:, :, 6] = garbage
    hidden = torch.zeros(1, 1, 1, 7, dtype=torch.bool)
    hidden[..., 6] = True
    ours, eager = compiled(cached, [q, k, v, hidden]), run(cached, [q, k, v, hidden])
    assert ours.rewrites() == 1
    torch.testing.assert_close(ours.outputs, eager.outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole_row", [False, True])
def test_two_finite_masks_that_meet(dtype: torch.dtype, whole_row: bool) -> None:
    """Twice finfo.min is -inf where both are added, and finfo.min where one is filled in."""
    lowest = torch.finfo(dtype).min

    def filled_then_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        later = torch.full((6, 6), lowest, dtype=dtype).triu(1)
        return ((q @ k.mT).masked_fill(~keep, lowest) + later).softmax(-1) @ v

    def chosen_then_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        scores = torch.where(torch.ones(6, 6).tril() > 0, q @ k.mT, lowest)
        return (scores + (1 - keep.to(dtype)) * lowest).softmax(-1) @ v

    keep = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    keep[..., :2] = False
    keep[0, 0, 3] = keep[0, 0, 3] & (not whole_row)
    inputs = [*_inputs(6, 6, 6, dtype=dtype), keep]
    for fn in (filled_then_added, chosen_then_added):
        ours, eager = compiled(fn, inputs), run(fn, inputs)
        atol = TOLERANCES[dtype] * 2  # two roundings of results of size one
        torch.testing.assert_close(ours.outputs, eager.outputs, rtol=0, atol=atol, equal_nan=True)


def test_padded_operand_with_odd_strides() -> None:
    """One feature, one query: eager's pad keeps a last stride that is not one."""

    def folded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        p = (torch.einsum("asd,dat->tsa", q, k) + bias).softmax(0)
        return torch.einsum("tsa,eta->ase", p, v)

    generator = torch.Generator().manual_seed(6)
    q = torch.empty_strided((2, 1, 1), (1, 1, 2)).normal_(generator=generator)
    shapes = [(1, 2, 9), (3, 9, 2), (2,)]
    inputs = [q, *(torch.randn(s, generator=generator) for s in shapes)]
    ours = compiled(folded, inputs, inner="eager")
    assert ours.rewrites() == 1
    torch.testing.assert_close(ours.outputs, run(folded, inputs).outputs)


def test_checkpoint_without_gradients() -> None:
    """A frozen block under non-reentrant checkpointing, in grad mode."""

    def frozen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(_attend, q, k, v, use_reentrant=False)  # type: ignore[no-any-return]

    inputs = _inputs(5, 5, 5)
    torch._dynamo.reset()
    found = torch.compile(frozen, backend="fuser", options={"fuser.inner": "aot_eager"})(*inputs)
    torch.testing.assert_close(found, frozen(*inputs))
