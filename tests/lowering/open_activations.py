"""Opens the operator of generated activations as AOTAutograd does on a GPU, with none present.

Run as a process of its own, since what is interpreted never opens. Prints JSON: by case, the
kernels that are launched in the forward and in the backward, in order; and how many elements the
forward of a graph saves, ours and as the user wrote it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

import fuser.lowering  # noqa: F401  registers the operators
from fuser.specs import ActivationSpec
from tests.lowering.activations import activation, clamped, dyt, halves, residual, swiglu
from tests.lowering.open_operators import operands, pretend, trained

HALF = torch.bfloat16
T, D = 4096, 1024


def training(
    spec: ActivationSpec, *shapes: Sequence[int], symbols: Sequence[int] = (), order: Any = ()
) -> dict[str, Any]:
    """Launches of forward and backward, and the order of the result in memory.

    Args:
        spec: what is computed.
        shapes: of the operands.
        symbols: sizes that are symbols.
        order: of the dimensions of the first operand in memory.
    """

    def function(*x: Any) -> Any:
        return torch.ops.fuser.generated_activation(x, spec.to_text(), "a test")

    mode, x = operands(shapes, symbols, order)
    with mode:
        found, results = trained(function, x)
    return {**found, "fastest": [d for d, s in enumerate(results[0].stride()) if s == 1]}


def saved(function: Callable[..., Tensor], *shapes: Sequence[int]) -> int:
    """Elements that the forward saves, beside its inputs, as Inductor would cut the graph."""
    found: list[int] = []

    def forward(graph: GraphModule, _: Any) -> Any:
        out = next(n for n in graph.graph.nodes if n.op == "output")
        extra = [n for n in out.args[0][1:] if n.op != "placeholder"]
        found.append(sum(n.meta["val"].numel() for n in dict.fromkeys(extra)))
        return graph

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = [torch.empty(s, dtype=HALF, device="meta").requires_grad_() for s in shapes]
        y = aot_function(
            function, forward, lambda graph, _: graph,
            partition_fn=min_cut_rematerialization_partition,
        )(*x)  # fmt: skip
        torch.autograd.grad(y, x, torch.empty_like(y))
    return found[0]


def _ours(spec: ActivationSpec, *x: Tensor) -> Tensor:
    return torch.ops.fuser.generated_activation([t[None] for t in x], spec.to_text(), "a test")


def _between(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Products before an activation, and a sum behind it."""

    def function(x: Tensor, up: Tensor, gate: Tensor) -> Tensor:
        return act(x @ gate, x @ up).sum(-1)

    return function


def _block(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, behind which is a product, too."""

    def function(x: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
        return act(x @ gate, x @ up) @ down

    return function


def sum_of_both(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return c2 + F.silu(c0) * c1


def _residual(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What is added takes part in nothing that is differentiated."""

    def function(x: Tensor, up: Tensor, gate: Tensor, other: Tensor) -> Tensor:
        return act(x @ gate, x @ up, other * 2).sum(-1)

    return function


def main() -> None:
    pretend()
    gated = activation(swiglu, 1, 1, dtype=HALF)
    large, along = (1, T, D), (1, 1, D)
    cut = activation(halves, 2, dtype=HALF)
    smooth = activation(dyt, 1, 1, 1, 1, dtype=HALF)
    found = {
        "halves": training(cut, (2, T, D), order=(1, 0, 2)),
        "in turn": training(activation(clamped, 2, dtype=HALF), (2, T, D), order=(1, 2, 0)),
        "dyt": training(smooth, large, (1, 1, 1), along, along),
        "residual": training(activation(residual, 1, 1, 1, dtype=HALF), large, large, large),
        "dynamic": training(gated, large, large, symbols=(T,)),
        "dynamic dyt": training(smooth, large, (1, 1, 1), along, along, symbols=(T, D)),
    }
    matrices = ((256, 64), (64, 512), (64, 512))
    added = activation(sum_of_both, 1, 1, 1, dtype=HALF)

    def ours(gate: Tensor, up: Tensor) -> Tensor:
        return _ours(gated, gate, up)

    def theirs(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    kept = {
        "between": [saved(_between(act), *matrices) for act in (ours, theirs)],
        "block": [saved(_block(act), *matrices, (512, 64)) for act in (ours, theirs)],
        "residual": [
            saved(_residual(act), *matrices, (256, 512))
            for act in (lambda *x: _ours(added, *x), sum_of_both)
        ],
    }
    print(json.dumps({"launches": found, "saved": kept}))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your compiler for AOTAutograd")
        main()
