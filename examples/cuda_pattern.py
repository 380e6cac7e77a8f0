"""A pattern whose replacement is CUDA C++, compiled when it is first needed.

Weights of four bits, two to a byte, are unpacked, scaled and multiplied by models that were
quantised. Written in PyTorch, each token that is decoded writes the whole matrix to memory in fp32,
eight times its size. The kernel here reads the bytes and keeps the rest in registers. NVRTC, which
comes with PyTorch for CUDA, compiles it: no nvcc and no build are needed.

The operator has three parts. `register_kernel("cuda")` launches the kernel, on a CPU it computes
with plain PyTorch, and gradients are plain PyTorch everywhere, as decoding has none. So the
pattern, what it finds, its numbers and what it leaves alone, is checked on any machine; the kernel
itself only where there is a GPU, and what is printed says which it was.

    python -m examples.cuda_pattern
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuser

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ID = "mine.int4_linear"
THREADS, MOST_ROWS = 128, 16
SOURCE = """
extern "C" __global__ void int4_linear(
    const float* x, const unsigned char* packed, const float* scales, float* y, int outs, int bytes)
{
    // a block computes one number: output blockIdx.x of row blockIdx.y
    __shared__ float sums[THREADS];
    const float* row = x + 2LL * bytes * blockIdx.y;
    const unsigned char* weights = packed + (long long)bytes * blockIdx.x;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < bytes; i += THREADS) {
        int two = weights[i];
        sum += row[2 * i] * ((two & 15) - 8) + row[2 * i + 1] * ((two >> 4) - 8);
    }
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        y[(long long)outs * blockIdx.y + blockIdx.x] = sums[0] * scales[blockIdx.x];
}
""".replace("THREADS", str(THREADS))
launches = 0
"""Of the CUDA kernel, in this process."""


@functools.cache
def _kernel(device: int) -> Any:
    """The kernel, compiled by NVRTC for the current GPU. PyTorch's function is private."""
    return torch.cuda._compile_kernel(SOURCE, "int4_linear")


def unpacked(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers from -8 to 7, (N, 2 M), from bytes (N, M): the low halves come first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(dtype) - 8


@torch.library.custom_op("examples::int4_linear", mutates_args=())
def int4_linear(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """x (..., K) times the transposed weights: (..., N). Here by plain PyTorch.

    Args:
        x: (..., K).
        packed: (N, K / 2), uint8.
        scales: (N,).
    """
    return F.linear(x, unpacked(packed, x.dtype) * scales[:, None])


@int4_linear.register_kernel("cuda")
def _(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    global launches
    x, packed, scales = x.contiguous(), packed.contiguous(), scales.contiguous()
    outs, size = packed.shape
    y = x.new_empty((*x.shape[:-1], outs))
    if y.numel():
        with torch.cuda.device(x.device):
            _kernel(x.device.index)(
                grid=(outs, y.numel() // outs, 1),
                block=(THREADS, 1, 1),
                args=[x, packed, scales, y, outs, size],
            )
        launches += 1
    return y


@int4_linear.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, Tensor]:
    x, packed, scales = ctx.saved_tensors
    whole = unpacked(packed, x.dtype)
    unscaled = F.linear(x, whole)
    return (dy * scales) @ whole, None, (dy * unscaled).flatten(0, -2).sum(0)


int4_linear.register_autograd(_backward, setup_context=_setup)


def find(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """What a model without the kernel does."""
    halves = torch.stack((packed & 15, packed >> 4), dim=-1)
    weights = (halves.flatten(-2).to(x.dtype) - 8) * scales[:, None]
    return x @ weights.transpose(-2, -1)


def replace(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return int4_linear(x, packed, scales)


def where(x: Tensor, packed: Tensor, scales: Tensor) -> str | None:
    """For which the kernel is right, and worth it."""
    if {x.dtype, scales.dtype} != {torch.float32} or packed.dtype is not torch.uint8:
        return "the kernel reads fp32 and bytes"
    if packed.dim() != 2 or scales.dim() != 1:
        return "the kernel takes one matrix, with a scale for each of its rows"
    if x.numel() // x.shape[-1] > MOST_ROWS:
        return f"for each of more than {MOST_ROWS} rows the kernel would read the matrix anew"
    return None


EXAMPLES = (
    torch.randn(2, 12),
    torch.randint(0, 256, (5, 6), dtype=torch.uint8),
    torch.rand(5) + 0.5,
)


class Int4Linear(nn.Module):
    """A layer of a quantised model; its spelling is not that of `find`."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(0, 256, (outs, ins // 2), dtype=torch.uint8))
        self.register_buffer("scales", torch.rand(outs) / ins**0.5)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.bitwise_and(self.packed, 0xF)
        high = torch.bitwise_right_shift(self.packed, 4)
        whole = torch.stack([low, high], -1).flatten(-2)
        return F.linear(x, self.scales.unsqueeze(1) * (whole.float() - 8))


def main() -> None:
    """Checks the pattern, then shows where it is used, where not, and what ran."""
    examples = tuple(x.to(DEVICE) for x in EXAMPLES)
    torch.manual_seed(0)
    model = nn.Sequential(Int4Linear(256, 384), nn.GELU(), Int4Linear(384, 256)).to(DEVICE)
    token, prompt = (torch.randn(1, n, 256, device=DEVICE) for n in (1, 100))
    with fuser.register_pattern(find, replace, examples, id=ID, where=where):
        checked = fuser.testing.check_pattern(ID)
        print(f"checked, also with {', '.join(checked.varied)}")
        with torch.no_grad():
            report = fuser.explain(model, token)
            print(report)
            report.expect(mine=2)
            long = fuser.explain(model, prompt)
            long.expect(mine=0)
            (reason,) = {m.reason for m in long.near_misses if m.pattern == ID}
            print(f"{prompt.shape[1]} tokens at once are left alone: {reason}")
            compiled = torch.compile(
                model, backend="fuser", options={"fuser.inner": "aot_eager"}, dynamic=False
            )
            torch.testing.assert_close(compiled(token), model(token))
    if launches:
        print(f"the CUDA kernel ran {launches} times on {torch.cuda.get_device_name()}")
    else:
        print("no GPU: the CUDA kernel was neither compiled nor run; PyTorch computed in its place")


if __name__ == "__main__":
    main()
