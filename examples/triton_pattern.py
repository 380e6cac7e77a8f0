"""A pattern whose replacement is a Triton kernel of one's own, forward and backward.

State-space models have a short convolution along time in every layer, one filter for each channel,
which looks back only, and an activation: `silu(conv1d(x, padding=K - 1)[..., :S])`. A library pads,
convolves past the end, cuts, and activates, each in memory. One kernel here does all, another its
gradients, and a pattern of two functions puts them where a model has the operation, however it
spelled it. `where` says for which of them they are right.

Without a GPU the kernels run in Triton's interpreter: their numbers are checked, not their speed.

    python -m examples.triton_pattern
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Before triton is imported: its library is made of interpreted functions from then on.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl

import fuser

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ID = "mine.causal_conv_silu"
BLOCK = 64
WIDTH, TAPS = 8, 4
AHEAD = "it looks ahead, or is cut elsewhere than at the end"


@triton.jit
def _before_activation(x, w, b, at, positions, taps: tl.constexpr):
    """The convolution at some positions of one channel, in fp32."""
    total = tl.load(b).to(tl.float32) + tl.zeros(at.shape, tl.float32)
    for k in tl.static_range(taps):
        source = at + k - (taps - 1)
        value = tl.load(x + source, mask=(source >= 0) & (source < positions), other=0.0)
        total += tl.load(w + k).to(tl.float32) * value.to(tl.float32)
    return total


@triton.jit
def forward_kernel(x, w, b, y, positions, channels, taps: tl.constexpr, block: tl.constexpr):
    """silu of the convolution, a block of positions of one channel of one sample at a time."""
    row, at = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    channel, offset = row % channels, row.to(tl.int64) * positions
    z = _before_activation(x + offset, w + channel * taps, b + channel, at, positions, taps)
    tl.store(y + offset + at, z * tl.sigmoid(z), mask=at < positions)


@triton.jit
def backward_kernel(
    x, w, b, dy, dx, parts, positions, channels, taps: tl.constexpr, block: tl.constexpr
):
    """The gradient of x, and this block's terms of those of w and b: taps + 1 numbers.

    What is before the activation is computed again, at all positions that read one of the block.
    """
    row, at = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    channel, offset = row % channels, row.to(tl.int64) * positions
    x, w, b = x + offset, w + channel * taps, b + channel
    part = parts + (row * tl.num_programs(1) + tl.program_id(1)) * (taps + 1)
    total = tl.zeros((block,), tl.float32)
    for ahead in tl.static_range(taps):
        reader = at + ahead
        z = _before_activation(x, w, b, reader, positions, taps)
        s = tl.sigmoid(z)
        dz = tl.load(dy + offset + reader, mask=reader < positions, other=0.0).to(tl.float32)
        dz *= s * (1 + z * (1 - s))
        total += tl.load(w + taps - 1 - ahead).to(tl.float32) * dz
        if ahead == 0:
            for k in tl.static_range(taps):
                source = at + k - (taps - 1)
                value = tl.load(x + source, mask=(source >= 0) & (source < positions), other=0.0)
                tl.store(part + k, tl.sum(dz * value.to(tl.float32)))
            tl.store(part + taps, tl.sum(dz))
    tl.store(dx + offset + at, total, mask=at < positions)


@torch.library.custom_op("examples::causal_conv_silu", mutates_args=())
def causal_conv_silu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """silu(b + Σ_k w[k] x[t + k - (K - 1)]), where x is zero before its first position.

    Not a `triton_op`, which does not take interpreted kernels.

    Args:
        x: (B, C, S).
        w: (C, K).
        b: (C,).
    """
    x, w, b = x.contiguous(), w.contiguous(), b.contiguous()
    y = torch.empty_like(x)
    forward_kernel[_grid(x)](x, w, b, y, x.shape[2], x.shape[1], w.shape[1], BLOCK)
    return y


@torch.library.custom_op("examples::causal_conv_silu_backward", mutates_args=())
def causal_conv_silu_backward(
    x: Tensor, w: Tensor, b: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, w and b."""
    x, w, b, dy = x.contiguous(), w.contiguous(), b.contiguous(), dy.contiguous()
    (samples, channels, positions), taps = x.shape, w.shape[1]
    dx, grid = torch.empty_like(x), _grid(x)
    parts = x.new_empty((samples, channels, grid[1], taps + 1), dtype=torch.float32)
    backward_kernel[grid](x, w, b, dy, dx, parts, positions, channels, taps, BLOCK)
    dw, db = (part.sum((0, 2)) for part in (parts[..., :taps], parts[..., taps]))
    return dx, dw.to(w.dtype), db.to(b.dtype)


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[0] * x.shape[1], triton.cdiv(x.shape[2], BLOCK)


@causal_conv_silu.register_fake
def _(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@causal_conv_silu_backward.register_fake
def _(x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own = torch.empty_like(x, memory_format=torch.contiguous_format)
    return own, w.new_empty(w.shape), b.new_empty(b.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return causal_conv_silu_backward(*ctx.saved_tensors, dy)


causal_conv_silu.register_autograd(_backward, setup_context=_setup)


def find(x: Tensor, w: Tensor, b: Tensor, padding: int, groups: int, length: int) -> Tensor:
    """What a library without the kernel does. Numbers are arguments, so that `where` sees them."""
    return F.silu(F.conv1d(x, w, b, padding=padding, groups=groups)[..., :length])


def replace(x: Tensor, w: Tensor, b: Tensor, padding: int, groups: int, length: int) -> Tensor:
    return causal_conv_silu(x, w.squeeze(1), b)


def where(x: Tensor, w: Tensor, padding: int, groups: int, length: int) -> str | None:
    """For which of them the kernels are right."""
    if x.dim() != 3:
        return "x has no dimension of samples"
    if x.dtype is torch.float64 or w.dtype is torch.float64:
        return "the kernels add up in fp32"
    if groups != x.shape[1] or w.shape[0] != groups:
        return "channels are mixed, or have several filters"
    if padding != w.shape[2] - 1 or length != x.shape[2]:
        return AHEAD
    return None


EXAMPLES = (torch.randn(2, 3, 70), torch.randn(3, 1, TAPS), torch.randn(3), TAPS - 1, 3, 70)


class Mixer(nn.Module):
    """The part of a state-space model around its convolution, as repositories have it."""

    def __init__(self, ahead: int = 0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        padding = TAPS - 1 - ahead
        self.conv = nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH, padding=padding)
        self.activation = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, S, C) to the same."""
        x, gate = self.inner(hidden).chunk(2, dim=-1)
        x = self.conv(x.mT)
        x = self.activation(x[:, :, : hidden.shape[1]]).mT
        return self.outer(x * F.silu(gate))


def main() -> None:
    """Checks the pattern, then shows it in a model, and one that it must leave alone."""
    how = "in Triton's interpreter, on the CPU" if DEVICE.type == "cpu" else "on this GPU"
    print(f"the kernels run {how}")
    examples = tuple(x.to(DEVICE) if isinstance(x, Tensor) else x for x in EXAMPLES)
    with fuser.register_pattern(find, replace, examples, id=ID, where=where):
        checked = fuser.testing.check_pattern(ID)
        print(f"checked, also with {', '.join(checked.varied)}")
        print(
            f"errors, over what is allowed: {checked.error:.2f} of the result, "
            f"{checked.gradient_error:.2f} of gradients"
        )
        torch.manual_seed(0)
        x = torch.randn(2, 150, WIDTH, device=DEVICE)
        report = fuser.explain(Mixer().to(DEVICE), x)
        print(report)
        report.expect(mine=1)
        ahead = fuser.explain(Mixer(ahead=1).to(DEVICE), x)
        ahead.expect(mine=0)
        assert AHEAD in [miss.reason for miss in ahead.near_misses]
        print(f"a filter that looks ahead is left alone: {AHEAD}")


if __name__ == "__main__":
    main()
