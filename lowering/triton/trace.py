"""Pointwise programs, and their derivatives, in ATen operators.

A program is run once, on fake tensors of one element, under make_fx: composite operators fall apart
into what `pointwise.py` prints, and every node knows the dtype that eager gives it. On one element
views and sums change nothing, so they are left out. Derivatives are autograd's own, traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fuser.graph.program import Program
from fuser.torch_private import (
    FakeTensorMode,
    OpOverload,
    core_aten_decompositions,
    eager_world,
    get_decompositions,
    make_fx,
)

from .kernel import NoKernel

aten = torch.ops.aten


class NotPrintable(NoKernel):
    """Why a program has no Triton text."""


@dataclass(frozen=True)
class Input:
    """What a program is given: a dtype, and whether it is a 0-d tensor, which promotes nothing.

    Attributes:
        rank: dimensions of a table, of which the program gathers elements; -1 where it is none.
    """

    dtype: torch.dtype
    is_scalar: bool = False
    rank: int = -1

    def example(self) -> Tensor:
        shape = () if self.is_scalar else (1,) * (4 if self.rank < 0 else self.rank)
        return torch.empty(shape, dtype=self.dtype, device="cpu")


def trace(program: Program, inputs: Mapping[str, Input]) -> Graph:
    """The program in ATen pointwise operators.

    Placeholders are named and ordered as the program's inputs, and there is one output; each
    node's `meta["val"]` is a fake tensor with eager's dtype. Graphs are shared: do not change them.

    Raises:
        NotPrintable: something in the program is no pointwise operator.
    """
    return _trace(program, tuple(inputs.items()), torch.get_default_dtype())


def trace_gradient(program: Program, inputs: Mapping[str, Input], wrt: Sequence[str]) -> Graph:
    """What each position of the result adds to the gradients, in ATen pointwise operators.

    Placeholders are the program's inputs and `grad`, the cotangent of the result in its dtype. The
    output is a tuple, one for each name in `wrt`, in that input's dtype; a literal zero where the
    result does not depend on it. Sums over broadcast dimensions are left to the caller.
    """
    return _trace_gradient(program, tuple(inputs.items()), tuple(wrt), torch.get_default_dtype())


@lru_cache(maxsize=1024)
def _trace(program: Program, inputs: tuple[tuple[str, Input], ...], _: torch.dtype) -> Graph:
    known = dict(inputs)
    names = program.inputs

    def forward(*values: Tensor) -> Tensor:
        return program(**dict(zip(names, values, strict=True)))

    return _pointwise(forward, names, [known[name].example for name in names])


@lru_cache(maxsize=1024)
def _trace_gradient(
    program: Program, inputs: tuple[tuple[str, Input], ...], wrt: tuple[str, ...], _: torch.dtype
) -> Graph:
    known, names = dict(inputs), program.inputs
    result = next(n for n in trace(program, known).nodes if n.op == "output").args[0]
    seen = result.meta["val"]
    cotangent = Input(seen.dtype, seen.ndim == 0)

    def backward(*values: Tensor) -> list[Tensor]:
        *leaves, grad = (value.detach() for value in values)
        given = dict(zip(names, leaves, strict=True))
        wanted = [given[name].requires_grad_() for name in wrt]
        with torch.enable_grad():
            out = program(**given)
        if not out.requires_grad:
            return [torch.zeros_like(x) for x in wanted]
        grads = torch.autograd.grad(out, wanted, grad, allow_unused=True)
        return [_or_zero(g, x) for g, x in zip(grads, wanted, strict=True)]

    examples = [*(known[name].example for name in names), cotangent.example]
    return _pointwise(backward, [*names, "grad"], examples)


@lru_cache(maxsize=1024)
def unrounded(derived: Graph) -> Graph:
    """Gradients that were computed in fp32 as they are, not rounded to the dtype of an operand:
    they are added up first."""

    def wide(node: Node) -> Node:
        source = node.args[0] if node.args else None
        is_cast = node.op == "call_function" and node.target is aten._to_copy.default
        rounds = is_cast and _dtype(node) in (torch.float16, torch.bfloat16)
        if rounds and isinstance(source, Node) and _dtype(source) is torch.float32:
            return source
        return node

    graph, copies = Graph(), dict[Node, Node]()
    graph.graph_copy(derived, copies)
    results = next(n for n in derived.nodes if n.op == "output").args[0]
    graph.output(tuple(copies[wide(n)] for n in results))  # type: ignore[union-attr]
    return graph


def _or_zero(grad: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if grad is None else grad


def _softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, x * 0))


def _shrink_backward(grad: Tensor, x: Tensor, lambd: float) -> Tensor:
    return torch.where((x >= -lambd) & (x <= lambd), 0, grad)


_COMPOSITES = (
    aten.gelu, aten.elu, aten.leaky_relu, aten.hardtanh, aten.logit, aten.heaviside,
    aten.ldexp, aten.logaddexp2, aten.special_entr, aten._prelu_kernel,
)  # fmt: skip
"""Operators that ATen calls core."""


@lru_cache(maxsize=1)
def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        **core_aten_decompositions(),
        **get_decompositions(_COMPOSITES),
        aten.softshrink.default: _softshrink,
        aten.hardshrink_backward.default: _shrink_backward,
        aten.softshrink_backward.default: _shrink_backward,
    }


def _pointwise(
    function: Callable[..., Any], names: Sequence[str], examples: Sequence[Callable[[], Tensor]]
) -> Graph:
    with eager_world(), torch.inference_mode(False), FakeTensorMode():
        values = [example() for example in examples]
        traced = make_fx(function, decomposition_table=_decompositions())(*values)
    return _Simplified(names).graph_of(traced.graph)


_VIEWS = {
    "alias", "as_strided", "broadcast_to", "clone", "contiguous", "detach", "expand", "flatten",
    "lift_fresh", "lift_fresh_copy", "permute", "reshape", "select", "slice", "squeeze", "t",
    "transpose", "unsqueeze", "view", "_unsafe_view", "view_as", "sum", "sum_to_size", "mean",
}  # fmt: skip
"""The identity on one element; `sum` too, once its dtype has been read off."""
_CONSTANTS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "scalar_tensor": lambda args: args[0],
    "full": lambda args: args[1],
    "full_like": lambda args: args[1],
    "new_full": lambda args: args[2],
    "zeros": lambda args: 0,
    "zeros_like": lambda args: 0,
    "new_zeros": lambda args: 0,
    "ones": lambda args: 1,
    "ones_like": lambda args: 1,
    "new_ones": lambda args: 1,
}


def _dtype(node: Node) -> torch.dtype:
    return node.meta["val"].dtype


class _Simplified:
    """A traced graph without views, copies, writes in place and dead code."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = iter(names)
        self._graph = Graph()
        self._root: dict[Node, Node] = {}
        self._current: dict[Node, Node] = {}

    def graph_of(self, traced: Graph) -> Graph:
        for node in traced.nodes:
            if node.op == "output":
                self._graph.output(torch.fx.map_arg(node.args[0], self._now))
            else:
                self._visit(node)
        self._graph.eliminate_dead_code()
        return self._graph

    def _now(self, node: Node) -> Node:
        """What a traced value is at this point: writes through any of its views included."""
        return self._current[self._root.get(node, node)]

    def _visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self._put(node, self._graph.placeholder(next(self._names)))
            return
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            raise NotPrintable(f"{node.format_node()} is no pointwise operator")
        name = str(node.target.overloadpacket.__name__)
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if name in _CONSTANTS:
            self._constant(node, _CONSTANTS[name](node.args))
        elif first is not None and name in _VIEWS and _dtype(node) == _dtype(first):
            self._root[node] = self._root.get(first, first)
        elif first is not None and name in _VIEWS:
            self._call(node, node, aten._to_copy.default, (first,), {"dtype": _dtype(node)})
        elif first is not None and name == "copy_":
            self._write(
                node, first, aten._to_copy.default, (node.args[1],), {"dtype": _dtype(first)}
            )
        elif first is not None and name.endswith("_") and not name.endswith("__"):
            pure = getattr(getattr(aten, name[:-1]), str(node.target).rpartition(".")[2])
            self._write(node, first, pure, node.args, node.kwargs)
        else:
            self._call(node, node, node.target, node.args, node.kwargs)

    def _write(self, node: Node, first: Node, target: Any, args: Any, kwargs: Any) -> None:
        root = self._root.get(first, first)
        self._call(node, root, target, args, kwargs)
        self._root[node] = root

    def _call(self, node: Node, stands_for: Node, target: Any, args: Any, kwargs: Any) -> None:
        args, kwargs = torch.fx.map_arg((args, kwargs), self._now)
        if target is aten._to_copy.default and _dtype(args[0]) == kwargs.get(
            "dtype", _dtype(args[0])
        ):
            self._current[stands_for] = args[0]
            return
        made = self._graph.call_function(target, args, kwargs)
        made.meta["val"] = node.meta["val"]
        self._current[stands_for] = made

    def _constant(self, node: Node, number: Any) -> None:
        made = self._graph.call_function(
            aten.scalar_tensor.default, (number,), {"dtype": _dtype(node)}
        )
        self._put(node, made)

    def _put(self, node: Node, made: Node) -> None:
        made.meta["val"] = node.meta["val"]
        self._current[node] = made
