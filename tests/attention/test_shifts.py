"""What is taken away from scores before a softmax: lost where it is their maximum, else kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide

H, S, SK, D = 6, 6, 7, 8  # as many heads as queries: sizes tell nothing
Shift = Callable[..., Tensor]
LATER = torch.ones(S, SK, dtype=torch.bool).triu(2)


def _inputs(*more: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, H, S, D), (2, H, SK, D), (2, H, SK, D)]
    tensors = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    return [*(t.requires_grad_() for t in tensors), *more]


def _softmax(shift: Shift) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        return shift(q @ k.mT * 0.4, *more).softmax(-1) @ v

    return fn


def _weights(weigh: Shift) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        return weigh(q @ k.mT * 0.4, *more) @ v

    return fn


def _compare(fn: Callable[..., Tensor], inputs: list[Tensor], grad: bool) -> Run:
    ours, eager = compiled(fn, inputs, grad=grad), run(fn, inputs, grad=grad)
    assert_near(ours, eager, run(fn, wide(inputs), grad=grad))
    return ours


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("shape", [(S, 1), (H, 1, 1), (1,)])
def test_captured_shift_is_kept(shape: tuple[int, ...], grad: bool) -> None:
    """It has a gradient of its own, and its NaN and infinities reach the result."""
    shift = torch.linspace(-3, 3, math.prod(shape)).reshape(shape)
    fn = _softmax(lambda s, r: s - r)
    assert _compare(fn, _inputs(shift.clone().requires_grad_()), grad).rewrites() == 1
    shift.view(-1)[-1] = math.nan
    shift.view(-1)[0] = math.nan if len(shift) == 1 else math.inf
    assert _compare(fn, _inputs(shift), grad).rewrites() == 1


KEPT: dict[str, Shift] = {
    "mean": lambda s: s - s.mean(-1, keepdim=True),
    "minimum": lambda s: s - s.amin(-1, keepdim=True),
    "over_queries": lambda s: s - s.amax(-2, keepdim=True),
    "over_all": lambda s: s - s.amax(),
    "over_both": lambda s: s - s.amax((-2, -1), keepdim=True),
    "of_other_scores": lambda s: s - (s * 2).amax(-1, keepdim=True),
    "of_rounded_scores": lambda s: s - s.bfloat16().amax(-1, keepdim=True),
    "of_flipped_queries": lambda s: s - s.flip(-2).amax(-1, keepdim=True),
    "of_other_heads": lambda s: s - s.transpose(1, 2).amax(-1, keepdim=True),
    "and_one": lambda s: s - (s.amax(-1, keepdim=True) + 1),
    "clamped": lambda s: s - s.amax(-1, keepdim=True).clamp(min=1e6),
    "logarithm_of_sum": lambda s: s - s.logsumexp(-1, keepdim=True),
}
FILLS = {"none": None, "infinite": -math.inf, "lowest": torch.finfo(torch.float32).min}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", KEPT)
def test_other_shift_is_declined(name: str, fill: str, grad: bool) -> None:
    """Of masked scores a mean is infinite, and a minimum leaves nothing of the others."""

    def shift(s: Tensor) -> Tensor:
        return KEPT[name](s if FILLS[fill] is None else s.masked_fill(LATER, FILLS[fill]))

    ours = _compare(_softmax(shift), _inputs(), grad)
    assert ours.rewrites() == 0
    assert "an intermediate value is used elsewhere" in ours.reasons()


def test_maximum_before_the_mask_is_declined() -> None:
    fn = _softmax(lambda s: s.masked_fill(LATER, -math.inf) - s.amax(-1, keepdim=True))
    assert _compare(fn, _inputs(), grad=True).rewrites() == 0


def _written(s: Tensor) -> Tensor:
    peak = s.amax(-1, keepdim=True)
    return s.mul_(2) - peak


def _written_apart(s: Tensor) -> Tensor:
    peak = s.amax(-1, keepdim=True)
    s.mul_(2)
    return s - peak


def _peak_written(s: Tensor) -> Tensor:
    peak = s.amax(-1, keepdim=True)
    peak.mul_(2)
    return s - peak


@pytest.mark.parametrize("shift", [_written, _written_apart, _peak_written])
def test_maximum_of_scores_that_are_written_to(shift: Shift) -> None:
    assert _compare(_softmax(shift), _inputs(), grad=False).rewrites() == 0


LOST: dict[str, Shift] = {
    "keepdim": lambda s: s - s.amax(-1, keepdim=True),
    "detached_before": lambda s: s - s.detach().amax(-1).unsqueeze(-1),
    "values": lambda s: s - torch.max(s, 3, keepdim=True).values,
    "other_shape": lambda s: s - s.clone().view(-1, S, SK).max(2)[0].view(2, H, S, 1).detach(),
    "masked": lambda s: LOST["keepdim"](s.masked_fill(LATER, -math.inf)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", LOST)
def test_maximum_is_lost(name: str, grad: bool) -> None:
    ours = _compare(_softmax(LOST[name]), _inputs(), grad)
    assert ours.rewrites() == 1, ours.reasons()
    assert "max" not in str(ours.record.rewritten[0].added)


@pytest.mark.parametrize("grad", [False, True])
def test_maximum_in_single_precision_is_lost(grad: bool) -> None:
    """A wider dtype holds the same maximum."""

    def weigh(s: Tensor) -> Tensor:
        wider = s.float() - s.amax(-1, keepdim=True).float()
        return wider.softmax(-1).to(s.dtype)

    inputs = _inputs(dtype=torch.bfloat16)
    assert _compare(_weights(weigh), inputs, grad).rewrites() == 1


def _shared_peak(s: Tensor, z: Tensor, bound: Tensor, more: Tensor) -> Tensor:
    peak = torch.maximum(s.amax(-1, keepdim=True), bound.view(H, 1, 1))
    e = (s - peak).exp()
    return e / (e.sum(-1, keepdim=True) + (more.view(H, 1, 1) - peak).exp())


def _bound_alone(s: Tensor, z: Tensor) -> Tensor:
    e = (s - torch.maximum(s.amax(-1, keepdim=True), z.view(H, 1, 1))).exp()
    return e / e.sum(-1, keepdim=True)


def _clamped(s: Tensor, z: Tensor) -> Tensor:
    peak = s.amax(-1, keepdim=True).clamp(min=-1.0, max=1.0)
    e = (s - peak).exp()
    return e / (e.sum(-1, keepdim=True) + (z.view(H, 1, 1) - peak).exp())


def _captured(s: Tensor, z: Tensor) -> Tensor:
    e = (s - z.view(H, 1, 1)).exp()
    return e / (e.sum(-1, keepdim=True) + 1)


def _sum_without_keepdim(s: Tensor, z: Tensor) -> Tensor:
    e = s.exp()
    return e / (e.sum(-1) + z.view(H, 1).exp())[..., None]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("weigh", "reason"),
    [
        (lambda s, z: _shared_peak(s, z, z, z), ""),
        (lambda s, z: _shared_peak(s, z, 2 * z, z), "not the sink"),
        (_bound_alone, "not the sink"),
        (_clamped, ""),
        (_captured, ""),
        (_sum_without_keepdim, ""),
    ],
    ids=["sink", "other_than_sink", "no_sink", "clamped", "captured", "sum_without_keepdim"],
)
def test_exponentials_over_their_sum(weigh: Shift, reason: str, grad: bool) -> None:
    """The sink belongs to heads, however the sum is laid out when it is added."""
    sinks = torch.linspace(-2, 2, H).requires_grad_()
    ours = _compare(_weights(weigh), _inputs(sinks), grad)
    assert ours.rewrites() == (not reason), ours.reasons()
    assert reason in ours.reasons()


@pytest.mark.parametrize("grad", [False, True])
def test_logsumexp_of_a_row_without_keys(grad: bool) -> None:
    """`log n` is lost in an lse of -1e9, so that eager's weights of such a row sum to n."""

    def normalised(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        s = (q @ k.mT * 0.4).masked_fill(~keep, -1e9)
        return (s - s.logsumexp(-1, keepdim=True)).exp() @ v

    keep = torch.ones(S, SK, dtype=torch.bool).tril()
    keep[3] = False
    inputs = _inputs(keep)
    ours, eager = compiled(normalised, inputs, grad=grad), run(normalised, inputs, grad=grad)
    exact = run(normalised, wide(inputs), grad=grad)
    assert ours.rewrites() == 1
    for found, expected in zip(
        [*ours.outputs, *ours.grads], [*exact.outputs, *exact.grads], strict=True
    ):
        torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-4, atol=1e-5)
    row = eager.outputs[0][:, :, 3]
    torch.testing.assert_close(row, ours.outputs[0][:, :, 3] * SK, rtol=1e-4, atol=1e-5)
