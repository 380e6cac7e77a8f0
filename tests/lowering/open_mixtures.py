"""Opens the operator of generated mixtures as AOTAutograd does on a GPU, with none present.

Run as a process of its own, since what is interpreted never opens. Prints JSON: by case, the
kernels that are launched in the forward and in the backward, in order.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fuser.lowering  # noqa: F401  registers the operators
from tests.lowering.mixtures import in_runs, mixture
from tests.lowering.open_operators import Launch, launches, pretend, trained
from tests.lowering.routers import KINDS, operands


def waits(graph: GraphModule) -> list[Launch]:
    """Operators for whose result the host would wait."""
    names = ("_local_scalar_dense", "nonzero", "bincount", "unique")
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [{"waits": t} for t in targets if any(name in t for name in names)]


def _kept(function: Callable[..., Any], inputs: list[torch.Tensor], dynamic: bool) -> Any:
    """Launches of the forward and the backward of a function of tensors that are on no device."""

    def told(graph: GraphModule) -> list[Launch]:
        return [*launches(graph), *waits(graph)]

    def fake(t: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        return made.requires_grad_(t.requires_grad)

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        return trained(function, [fake(t) for t in inputs], told, dynamic=dynamic)[0]


def counted() -> dict[str, list[Launch]]:
    """The same of rows in runs, whose number is read while running."""
    spec, x = in_runs((40, 0, 60), dtype=torch.bfloat16)

    def function(number: Any, rows: Any, ends: Any, weights: Any, *matrices: Any) -> Any:
        length = number.item()
        torch._check(length >= 0)
        torch._check(length <= rows.shape[0])
        own = (rows.narrow(0, 0, length), ends, weights.narrow(0, 0, length))
        operator = torch.ops.fuser.generated_moe
        return operator(*own, matrices, [], spec.to_text(), "a test", True)[0]

    return _kept(function, [torch.tensor(100), x.x, x.indices, *x.leaves[1:]], True)


def routing() -> dict[str, list[Launch]]:
    """The same of a router by groups."""
    spec, experts, dtype = KINDS["groups"]
    logits, captured = operands(spec, experts, dtype)

    def function(*t: Any) -> Any:
        operator = torch.ops.fuser.generated_router
        return operator(t[0], t[1:], spec.to_text(), "a test")[0]

    return _kept(function, [logits, *captured], True)


def training(
    *, dynamic: bool = False, library: bool = False, runs: Sequence[int] = (), **more: Any
) -> dict[str, list[Launch]]:
    """Launches of forward and backward, as autograd puts them together."""
    given: dict[str, Any] = {"dtype": torch.bfloat16, **more}
    spec, x = in_runs(runs, **given) if runs else mixture(**given)
    text, count = spec.to_text(), len(x.matrices)

    def function(*t: Any) -> Any:
        operands = (t[0], t[1], t[2], t[3 : 3 + count], t[3 + count :])
        if library:
            return torch.ops.fuser.library_moe(*operands, text)
        return torch.ops.fuser.generated_moe(*operands, text, "a test", True)[0]

    return _kept(function, [x.x, x.indices, *x.leaves[1:]], dynamic)


def main() -> None:
    pretend()
    found = {
        "stacked": training(biases=True),
        "separate": training(separate=True, products=2),
        "weights first": training(first=True),
        "many tokens": training(tokens=3000, experts=8),
        "library": training(library=True, biases=True, features=32, hidden=16, width=24),
        "dynamic": training(tokens=3000, experts=8, dynamic=True),
        "runs": training(runs=(40, 0, 60), biases=True),
        "runs, dynamic": training(runs=(40, 0, 60), dynamic=True),
        "runs, counted": counted(),
        "router": routing(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your compiler for AOTAutograd")
        main()
