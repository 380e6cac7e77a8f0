"""Put a recorded replacement into a graph, on what its arguments were bound to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from ..builder import Builder
from ..graph.axes import same_size
from ..graph.effects import draws
from ..graph.ops import Kind, is_tensor, value
from ..graph.view import GraphView
from ..torch_private import faked, to_expr
from .run import SYMBOLIC, run
from .trace import holds_tensor, outputs_of
from .values import Permuted, Product


def insert(builder: Builder, replacement: GraphModule, arguments: Sequence[Any]) -> list[Node]:
    """Insert the replacement; one node for each of its outputs.

    Sizes that are known are written as numbers; symbolic ones are read from the tensors.
    """
    view = GraphView(replacement)
    made: dict[Node, Any] = {}
    remaining = iter(_argument(builder, a, arguments) for a in arguments)
    for node in view.nodes:
        if node.op == "placeholder":
            made[node] = next(remaining)
        elif node.op != "output":
            args, kwargs = _mapped(node.args, made), _mapped(node.kwargs, made)
            if holds_tensor(node):
                made[node] = _operation(builder, view, node, args, kwargs)
            else:
                made[node] = _scalar(builder, node, args, kwargs)
    return [builder.current(made[o]) for o in outputs_of(replacement.graph)]


def size_source(size: Any, arguments: Sequence[Any]) -> tuple[Node, int] | None:
    """A bound tensor, and its dimension, that has a symbolic size."""
    for argument in arguments:
        if isinstance(argument, Node) and is_tensor(argument):
            for dim, actual in enumerate(value(argument).shape):
                if same_size(to_expr(actual), to_expr(size)):
                    return argument, dim
    return None


def _argument(builder: Builder, bound: Any, arguments: Sequence[Any]) -> Any:
    if isinstance(bound, Permuted):
        return builder.method("permute", _argument(builder, bound.value, arguments), bound.order)
    if isinstance(bound, Product):
        a, b = (_argument(builder, x, arguments) for x in (bound.a, bound.b))
        return builder.call(torch.matmul, a, b)
    if isinstance(bound, torch.SymInt):
        source = size_source(bound, arguments)
        if source is None:
            raise KeyError(f"no argument has a dimension of size {bound}")
        return builder.method("size", *source)
    return builder.current(bound) if isinstance(bound, Node) else bound


def _mapped(arguments: Any, made: Mapping[Node, Any]) -> Any:
    return map_aggregate(arguments, lambda a: made[a] if isinstance(a, Node) else a)


def _values(arguments: Any) -> Any:
    return map_aggregate(arguments, lambda a: value(a) if isinstance(a, Node) else a)


def _operation(builder: Builder, view: GraphView, node: Node, args: Any, kwargs: Any) -> Node:
    """Operators that draw random numbers, or that are not known, are made each time."""
    op = view.op(node)
    share = op.kind is not Kind.OTHER and not draws(node, op)
    return builder._insert(node.op, node.target, tuple(args), dict(kwargs), share=share)


def _scalar(builder: Builder, node: Node, args: Any, kwargs: Any) -> Any:
    """A size, dtype, number, ...: a constant where it is known, else nodes that compute it."""
    if any(isinstance(a, (tuple, list)) for a in args):
        return run(node, args, kwargs)  # of a shape, whose sizes may be nodes
    with faked(builder.fake_mode):
        known = run(node, _values(args), _values(kwargs))
    if isinstance(known, torch.Size):
        source: Any = args[0]
        if not any(isinstance(s, SYMBOLIC) for s in known):
            return known
        return tuple(
            builder.method("size", source, dim) if isinstance(s, SYMBOLIC) else s
            for dim, s in enumerate(known)
        )
    if not isinstance(known, SYMBOLIC):
        return known
    if node.op == "call_method":
        return builder.method(str(node.target), *args, **kwargs)
    return builder.call(_symbolic(node.target), *args, **kwargs)


def _symbolic(function: Any) -> Any:
    if getattr(function, "__module__", "") == "math":
        return getattr(torch, f"sym_{function.__name__}")
    return function
