"""Activations as models write them, at sizes of a CPU; forward, and with a backward.

swiglu_split      silu of one half times the other, cut by a split
swiglu_chunk      the same by a chunk, the gate last
swiglu_linears    of two products with matrices, which are a part of what is measured
geglu             gelu of one half times the other
quick_gelu        x · sigmoid(1.702 x)
tanh_gelu         written out, as GPT-2 does it
squared_relu      as Primer and Nemotron do it
dyt               weight · tanh(alpha · x) + bias, in place of a norm
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Workload
from benchmarks.providers import Function

Tensor = torch.Tensor


def swiglu_split(x: Tensor) -> Tensor:
    gate, up = x.split(x.shape[-1] // 2, -1)
    return F.silu(gate) * up


def swiglu_chunk(x: Tensor) -> Tensor:
    up, gate = x.chunk(2, -1)
    return up * F.silu(gate)


def swiglu_linears(x: Tensor, w1: Tensor, w3: Tensor) -> Tensor:
    return F.silu(F.linear(x, w1)) * F.linear(x, w3)


def geglu(x: Tensor) -> Tensor:
    hidden, gate = x.chunk(2, -1)
    return hidden * F.gelu(gate)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    cubic = x + 0.044715 * torch.pow(x, 3.0)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * cubic))


def squared_relu(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def dyt(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight * torch.tanh(alpha * x) + bias


@dataclass(frozen=True)
class Activation:
    """A function.

    Attributes:
        columns: of its first argument.
        shapes: of its other arguments.
        rows: of its first argument.
    """

    fn: Function
    columns: int
    shapes: tuple[tuple[int, ...], ...] = ()
    rows: int = 2048


ACTIVATIONS: dict[str, Activation] = {
    "swiglu_split": Activation(swiglu_split, 4096),
    "swiglu_chunk": Activation(swiglu_chunk, 4096),
    "swiglu_linears": Activation(swiglu_linears, 512, ((1536, 512), (1536, 512)), 1024),
    "geglu": Activation(geglu, 4096),
    "quick_gelu": Activation(quick_gelu, 3072),
    "tanh_gelu": Activation(tanh_gelu, 3072),
    "squared_relu": Activation(squared_relu, 3072),
    "dyt": Activation(dyt, 768, ((1,), (768,), (768,)), 4096),
}
FEW = 8
"""Rows for `--quick`."""


def build(spec: Activation, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random arguments; all of them take a gradient where there is a backward."""
    shapes = ((spec.rows, spec.columns), *spec.shapes)
    made = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    args = tuple(a.requires_grad_(mode == "full") for a in made)
    with torch.no_grad():
        result = spec.fn(*args)
    return Case(spec.fn, args, (torch.randn_like(result),) if mode == "full" else ())


def workloads(quick: bool) -> list[Workload]:
    """All of them."""

    def one(name: str, spec: Activation) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(spec, dtype, device, mode)

        return Workload("activation", name, case, ("forward", "full"), ("N", spec.rows), {})

    return [
        one(name, replace(spec, rows=FEW) if quick else spec) for name, spec in ACTIVATIONS.items()
    ]
