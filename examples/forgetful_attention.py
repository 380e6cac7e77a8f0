"""An attention that no library has, as one generated kernel, and its gradients as generated too.

Forgetful attention, the sort of thing one tries on a Friday: a learned temperature for each head
inside a soft cap, a decay with the logarithm of the distance at a learned rate, a learned sink that
takes what no key deserves, and a gate by which a key silences its own value. Written down in eager,
it makes half a dozen tensors of S x S. Compiled, a kernel reads q, k, v and the parameters, and
computes distances, mask and gate where it needs them.

Without a GPU the kernels run in Triton's interpreter: their numbers are checked, not their speed.

    python -m examples.forgetful_attention
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fuser

BATCH, HEADS, POSITIONS, FEATURES = 1, 2, 72, 32
CAP = 20.0
OPTIONS = {
    "fuser.lowering": "triton",
    "fuser.policy": "always",
    "fuser.patterns": ["attention.*"],  # and not the gate of the values, an activation
}
TOLERANCE = 1e-5
NAMES = ("q", "k", "v", "temperature", "rate", "sink", "gate")


def forgetful_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, rate: Tensor, sink: Tensor, gate: Tensor
) -> Tensor:
    """Σ_j p_ij sigmoid(gate_j) v_j with

        score_ij = cap tanh(temperature q_i·k_j / (√d cap)) - softplus(rate) log(1 + i - j)
        p_ij     = exp(score_ij) / (exp(sink) + Σ_{j ≤ i} exp(score_ij))

    Args:
        q, k, v: (B, H, S, D).
        temperature, rate, sink: (H,).
        gate: (B, H, S).
    """
    b, _, s, d = q.shape
    position = torch.arange(s, device=q.device)
    back = position[:, None] - position[None, :]

    scores = q @ k.transpose(-2, -1) / d**0.5
    scores = CAP * torch.tanh(scores * temperature[:, None, None] / CAP)
    scores = scores - F.softplus(rate)[:, None, None] * torch.log1p(back.abs().to(q.dtype))
    scores = scores.masked_fill(back < 0, float("-inf"))

    with_sink = torch.cat([scores, sink[None, :, None, None].expand(b, -1, s, 1)], dim=-1)
    p = torch.softmax(with_sink, dim=-1)[..., :-1]
    return (p * torch.sigmoid(gate)[:, :, None, :]) @ v


def use_the_interpreter() -> torch.device:
    """The GPU, or the CPU with Triton's interpreter, which must be asked for before triton comes.

    Raises:
        RuntimeError: triton has been imported to compile.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("run this in a process of its own, or with TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"
    print("no GPU: the kernels run in Triton's interpreter (TRITON_INTERPRET=1)\n")
    return torch.device("cpu")


def inputs(device: torch.device) -> tuple[Tensor, ...]:
    """Random operands and parameters, all of which want a gradient."""
    torch.manual_seed(0)
    heads, rows = (BATCH, HEADS, POSITIONS, FEATURES), (BATCH, HEADS, POSITIONS)
    shapes = (heads, heads, heads, (HEADS,), (HEADS,), (HEADS,), rows)
    return tuple(torch.randn(shape, device=device, requires_grad=True) for shape in shapes)


def difference(got: Tensor, want: Tensor) -> float:
    """Largest difference, over the largest value."""
    return ((got - want).abs().max() / want.abs().max()).item()


def check(args: tuple[Tensor, ...]) -> None:
    """Compares the result and all gradients with eager in fp64.

    Raises:
        AssertionError: one of them is not near.
    """
    compiled = torch.compile(forgetful_attention, backend="fuser", options=OPTIONS)
    out = compiled(*args)
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad(out, args, cotangent)

    exact = tuple(x.detach().double().requires_grad_() for x in args)
    wanted = forgetful_attention(*exact)
    wanted_grads = torch.autograd.grad(wanted, exact, cotangent.double())

    print(f"{'':>16} difference from fp64, over the largest value")
    names = ("result", *(f"d {name}" for name in NAMES))
    for name, got, want in zip(names, (out, *grads), (wanted, *wanted_grads), strict=True):
        found = difference(got, want)
        print(f"{name:>16} {found:.1e}")
        assert found < TOLERANCE, f"{name} is {found:.1e} off"


def generated_files() -> list[Path]:
    """The modules that were generated in this process, in the order of their making."""
    modules = [m for name, m in sys.modules.items() if name.startswith("fuser_generated.")]
    return [Path(str(m.__file__)) for m in modules]


def show_kernels() -> None:
    """What was launched, and where its text is.

    Raises:
        AssertionError: the forward was not one kernel.
    """
    files = generated_files()
    kernels = {path: _kernel_of(path) for path in files}
    print("\ngenerated kernels:")
    for path, name in kernels.items():
        print(f"  {name:<16} {path}")
    (forward,) = (path for path, name in kernels.items() if name == "forward_kernel")
    print("\nthe forward begins:")
    print(forward.read_text().partition("\nimport triton\n")[0])
    assert not any(name in ("split_kernel", "combine_kernel") for name in kernels.values())


def _kernel_of(path: Path) -> str:
    (line,) = (li for li in path.read_text().splitlines() if li.startswith("def "))
    return line.removeprefix("def ").rstrip("(")


def main() -> None:
    """Explains the rewrite, checks its numbers, and shows the kernels."""
    args = inputs(use_the_interpreter())
    report = fuser.explain(forgetful_attention, *args, options=OPTIONS)
    print(report)
    report.expect(attention=1)
    check(args)
    show_kernels()


if __name__ == "__main__":
    main()
