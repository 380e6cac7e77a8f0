"""What once went wrong: sizes of one, zeros, weights of odd shapes, sizes that are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide

BY = ["reference", "auto"]


def rms(x: Tensor, dim: int) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-6)


def heads(x: Tensor) -> Tensor:
    return rms(x.view(x.shape[0], -1, 4), -1).transpose(0, 1)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "one feature": (lambda x: rms(x, -1), ((4, 1),)),
    "one row": (lambda x: rms(x, 1), ((3, 1, 8),)),
    "one feature, native": (lambda x, w: F.layer_norm(x, (1,), w) * w, ((4, 1), (1,))),
    "one number": (lambda x, w: F.layer_norm(x, (1,), w), ((1, 1), (1,))),
    "a group for each number": (lambda x, w: F.group_norm(x, 4, w, w), ((3, 4, 1), (4,))),
    "one weight": (lambda x, w: F.layer_norm(x, (8,)) * w, ((4, 8), (1,))),
    "a number for a weight": (lambda x, w: F.layer_norm(x, (8,)) * w, ((4, 8), ())),
    "a weight for each of the batch": (
        lambda x, w: F.group_norm(x, 2) * w[..., None, None],
        ((2, 4, 3, 3), (2, 4)),
    ),
    "a number": (lambda x: F.normalize(x, dim=0), ((),)),
}
DYNAMIC: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "groups": (lambda x: F.group_norm(x, 2) * 2, (2, 4, 5, 6)),
    "groups of a square": (lambda x: F.group_norm(x, 2) * 2, (2, 4, 5, 5)),
    "heads": (heads, (2, 8)),
}


def check(fn: Callable[..., Tensor], args: tuple[Tensor, ...], lowering: str, **more: bool) -> None:
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": lowering}, **more)  # type: ignore[arg-type]
    assert ours.rewrites("norm") == (args[0].ndim > 0), ours.reasons()
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True))


@pytest.mark.parametrize("lowering", BY)
@pytest.mark.parametrize("name", CASES)
def test_shapes(name: str, lowering: str) -> None:
    fn, shapes = CASES[name]
    torch.manual_seed(1)
    check(fn, tuple(torch.randn(shape, requires_grad=True) for shape in shapes), lowering)


@pytest.mark.parametrize("lowering", BY)
@pytest.mark.parametrize("name", DYNAMIC)
def test_sizes_that_are_computed(name: str, lowering: str) -> None:
    fn, shape = DYNAMIC[name]
    torch.manual_seed(1)
    check(fn, (torch.randn(shape, requires_grad=True),), lowering, dynamic=True)


@pytest.mark.parametrize("number", [0.0, 1e-30])
@pytest.mark.parametrize("lowering", BY)
def test_padding(lowering: str, number: float) -> None:
    """A row of zeros has a gradient where a norm is bounded, and squares may vanish."""
    for fn in (
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12),
        lambda x: x / x.norm(dim=-1, keepdim=True),
    ):
        check(fn, (torch.full((2, 8), number, requires_grad=True),), lowering)


def test_constant_rows_are_zero() -> None:
    x = torch.full((2, 7), 12345.678)
    found = compiled(lambda x: F.layer_norm(x, (7,)), (x,), **{"fuser.lowering": "reference"})
    assert not found.outputs[0].any()


def test_sizes_that_differ_are_no_guard() -> None:
    def fn(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).t()

    graphs: list[int] = []
    for options in ({"fuser.policy": "always"}, {"fuser.patterns": ("-*",)}):
        torch._dynamo.reset()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        settings = {"fuser.inner": "eager", **options}
        step = torch.compile(fn, backend="fuser", dynamic=True, options=settings)
        for shape in ((4, 8), (6, 9), (3, 3)):
            step(torch.randn(shape))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
    assert graphs[0] == graphs[1]


def test_a_cache_that_begins_empty() -> None:
    """`cat` passes over a tensor of one dimension without elements, as a cache is at first."""

    def fn(x: Tensor) -> Tensor:
        return torch.cat((torch.tensor([]), rms(x, -1)), dim=-2)

    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(compiled(fn, (x,)).outputs[0], fn(x))
