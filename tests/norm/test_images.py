"""Images between convolutions: group norms take them in the order in which Inductor keeps them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.compiled import assert_near, compiled, run, wide

CHANNELS, SIDE = 32, 6
LAST = (CHANNELS * SIDE * SIDE, 1, CHANNELS * SIDE, CHANNELS)
"""Strides of an image whose channels come last."""


class Block(nn.Module):
    """As a diffusion model has it: its own input, and what a convolution gives, are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.first, self.second = (nn.GroupNorm(8, CHANNELS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(F.silu(self.first(x)))
        return x + self.after(F.silu(self.second(h)))


class Scaled(Block):
    """Other operators stand between a convolution and a norm."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(torch.cat([self.before(x), x], 1), scale_factor=2.0)
        return F.silu(self.second(F.max_pool2d(h, 2)[:, :CHANNELS] * 2.0))


class Projected(Block):
    """Channels come last, in an image whose only batch has another stride than such images have."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2) @ x.new_ones(CHANNELS, CHANNELS)
        return self.after(F.silu(self.second(rows.transpose(1, 2).reshape(x.shape))))


class Given(Block):
    """No convolution is above the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.silu(self.second(x * 2.0)))


def image(*, grad: bool = False) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, CHANNELS, SIDE, SIDE, requires_grad=grad)


@pytest.mark.parametrize(
    ("block", "grad", "count"),
    [
        (Block, False, 1),
        (Scaled, False, 1),
        (Projected, False, 1),
        (Given, False, 0),
        (Block, True, 0),
    ],
)
def test_what_a_convolution_gave_is_taken(block: type[Block], grad: bool, count: int) -> None:
    module, x = block().eval(), image(grad=grad)
    found = compiled(module, (x,), grad=grad, policy="auto")
    assert found.rewrites("norm") == count, found.reasons()
    eager = run(module, (x,), grad=grad)
    assert [y.stride() for y in found.outputs] == [y.stride() for y in eager.outputs]
    assert_near(found, eager, run(wide(module), wide((x,)), grad=grad))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "fn",
    [
        lambda h: F.silu(h) * h.sin(),
        lambda h: F.group_norm(h, 2),
        lambda h: F.silu(F.group_norm(h, 2)),
        lambda h: F.group_norm(h, CHANNELS),
    ],
    ids=["activation", "norm", "both", "instance norm"],
)
def test_a_batch_of_one_keeps_its_stride(fn: Callable[[Tensor], Tensor], grad: bool) -> None:
    """By it a convolution tells whether channels come last, and gives its own result so."""

    def step(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        h = fn(F.conv2d(x, weight, padding=1))
        # AOTAutograd makes a result that is a view of another one anew, with a stride of its own
        return (F.conv2d(h, weight),) if grad else (F.conv2d(h, weight), h)

    x, weight = image(grad=grad), torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=grad)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)
    found, eager = (
        compiled(step, (x, weight), grad=grad),
        run(step, (x, weight), grad=grad),
    )
    assert found.record.rewritten
    assert [y.stride() for y in found.outputs] == [y.stride() for y in eager.outputs]
    assert_near(found, eager, run(step, wide((x, weight)), grad=grad))


@pytest.mark.parametrize("rows", [(2, 8, 6), (1, 8, 6)])
def test_gradients_lie_as_is_said_while_compiling(rows: tuple[int, ...]) -> None:
    """Of rows that are not beside each other in memory."""
    backward = torch.ops.fuser.layer_norm_backward.default
    x = torch.randn(rows).transpose(1, 2)
    mean, deviation = torch.zeros(2, *rows[:1], rows[2], 1)
    weight, needs = torch.ones(8), [True, True, True]
    args = (x, mean, deviation, x, weight, weight, 1, needs)
    given = [g.stride() for g in backward(*args)]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        assert [g.stride() for g in backward(*fakes)] == given


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_inductor_makes_no_copies(policy: str) -> None:
    module, x = Block().eval(), image(grad=policy == "always")
    step = torch.compile(module, backend="fuser", options={"fuser.policy": policy})
    with torch.set_grad_enabled(policy == "always"):
        found, texts = run_and_get_code(step, x)
        expected = module(x)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected)
    given = f"{LAST}, 'torch.ops.fuser.group_norm.default'"
    assert texts[0].count(given) == (2 if policy == "always" else 1)
