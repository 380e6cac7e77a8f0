"""Put nodes into a graph, each with its example value, at one place; equal nodes are made once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .graph.arrange import Expand, Permute, Select, Step, steps
from .graph.axes import Dims, Size, leaves, resolve, same_size
from .graph.ops import value
from .pattern import Operand
from .torch_private import FakeTensorMode, FloorDiv, faked, to_expr

_KEPT_META = ("stack_trace", "nn_module_stack", "source_fn_stack")
_COMBINED: dict[Any, Callable[..., Any]] = {
    sympy.Mul: operator.mul,
    sympy.Add: operator.add,
    FloorDiv: operator.floordiv,
}
"""How sizes are computed of others."""


@dataclass(frozen=True)
class _Arranged:
    """What a tensor is another arrangement of, all of it, and the views between."""

    source: Node
    dims: Dims
    target: Dims
    views: Sequence[Node]


class Builder:
    """Inserts nodes before `anchor`, for the region whose `operands` say where sizes come from.

    Attributes:
        added: every node that was made, in order; shared ones included.
    """

    def __init__(
        self,
        module: GraphModule,
        anchor: Node,
        fake_mode: FakeTensorMode,
        shared: dict[Any, Node] | None = None,
        sizes_from: Sequence[Node] = (),
        replaced: Mapping[Node, Node] | None = None,
    ) -> None:
        self.module, self.anchor, self.fake_mode = module, anchor, fake_mode
        self.added: list[Node] = []
        self._shared = shared
        self._made: dict[Any, Node] = {}
        self._arranged: dict[Node, _Arranged] = {}
        self._replaced = {} if replaced is None else replaced
        self._sizes_from = [
            self.current(n)
            for n in sizes_from
            if isinstance(value(n), (torch.Tensor, torch.SymInt))
        ]
        self._meta = {k: anchor.meta[k] for k in _KEPT_META if k in anchor.meta}

    def current(self, node: Node) -> Node:
        """What stands for a node of the captured graph now, if its region was rewritten before."""
        while node in self._replaced:
            node = self._replaced[node]
        return node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        return self._insert("call_function", function, args, kwargs)

    def unshared(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call that draws random numbers or has another reason to be made each time."""
        return self._insert("call_function", function, args, kwargs, share=False)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Node:
        return self._insert("call_method", name, args, kwargs)

    def items(self, node: Node, count: int) -> list[Node]:
        """What a call gave that has several results."""
        return [self.call(operator.getitem, node, i) for i in range(count)]

    def attribute(self, name: str, content: Any) -> Node:
        """A submodule or constant of the graph module, under a free name."""
        name = self._free_name(name)
        setattr(self.module, name, content)
        with self.module.graph.inserting_before(self.anchor):
            node = self.module.graph.get_attr(name)
        node.meta.update(self._meta)
        if not isinstance(content, GraphModule):
            node.meta["example_value"] = self.fake_mode.from_tensor(content, static_shapes=True)
        self.added.append(node)
        return node

    def _free_name(self, prefix: str) -> str:
        i = 0
        while hasattr(self.module, f"{prefix}_{i}"):
            i += 1
        return f"{prefix}_{i}"

    def _insert(self, op: str, target: Any, args: Any, kwargs: Any, share: bool = True) -> Node:
        args, kwargs = map_arg(args, self.current), map_arg(kwargs, self.current)
        key = _key(op, target, args, kwargs) if share else None
        for known in (self._made, self._shared or {}):
            if key is not None and key in known:
                return known[key]
        example = self.fake(op, target, args, kwargs)
        with self.module.graph.inserting_before(self.anchor):
            node = self.module.graph.create_node(op, target, args, kwargs)
        node.meta.update(self._meta)
        node.meta["example_value"] = example
        self.added.append(node)
        if key is not None:
            self._made[key] = node
        return node

    def commit(self) -> None:
        """Offer what was made to later regions of the same graph."""
        if self._shared is not None:
            self._shared.update(self._made)

    def roll_back(self) -> None:
        """Take everything back that is not used."""
        for node in reversed(self.added):
            if not node.users:
                self.module.graph.erase_node(node)
        self.added.clear()

    def fake(self, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        """The example value that a call would have."""
        args, kwargs = map_arg(args, self._example), map_arg(kwargs, self._example)
        gradients = torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad()
        with faked(self.fake_mode), gradients:
            if op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)

    def _example(self, node: Node) -> Any:
        found = value(node)
        if found is None and node.op == "get_attr":
            return getattr(self.module, str(node.target))
        return found

    def size(self, size: Size) -> int | Node:
        """A size as a constant or as a node that computes it from the operands' shapes."""
        if not isinstance(size, int) and self.fake_mode.shape_env is not None:
            # inserting calls may have taught the shape environment that two symbols are equal
            size = to_expr(self.fake_mode.shape_env.replace(size))
        if isinstance(size, int):
            return size
        for node in self._sizes_from:
            example = value(node)
            if isinstance(example, torch.SymInt):
                if same_size(to_expr(example), size):
                    return node
                continue
            for dim, actual in enumerate(example.shape):
                if same_size(to_expr(actual), size):
                    return self.method("size", node, dim)
        if isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 0:
            combine, terms = operator.mul, (size.base,) * int(size.exp)
        elif type(size) in _COMBINED:
            combine, terms = _COMBINED[type(size)], size.args
        else:
            raise KeyError(f"no operand has a dimension of size {size}")
        total, *parts = (self.size(to_expr(term)) for term in terms)
        for part in parts:
            total = self.call(combine, total, part)
        return total

    def apply(self, node: Node, step: Step) -> Node:
        if isinstance(step, Permute):
            return self.method("permute", node, step.order)
        if isinstance(step, Select):
            return self.method("select", node, step.dim, step.index)
        shape = [self.size(s) for s in step.shape]
        if isinstance(step, Expand):
            return self.method("expand", node, tuple(shape))
        symbolic = [i for i, s in enumerate(shape) if isinstance(s, Node)]
        if len(symbolic) == 1 and 0 not in shape:  # of nothing, -1 could be any size
            shape[symbolic[0]] = -1
        return self.method("reshape", node, tuple(shape))

    def arrange(self, node: Node, dims: Dims, target: Dims, *, materialise: bool = False) -> Node:
        """A tensor with other dimensions. What was arranged before is arranged once, and what comes
        back to where it was is itself: views lose the strides of dimensions of one element."""
        known = self._arranged.get(node)
        back = known is not None and resolve(known.target) == resolve(dims)
        if known is not None and back and set(leaves(dims)) == set(leaves(target)):
            source, dims = known.source, known.dims
        else:
            source, known = node, None
        made, result = len(self.added), source
        for step in steps(dims, target, materialise=materialise):
            result = self.apply(result, step)
        views = self.added[made:]
        self._drop(known.views if known is not None else ())
        if result is not source and set(leaves(dims)) == set(leaves(target)):
            self._arranged[result] = _Arranged(source, dims, target, views)
        return result

    def _drop(self, views: Sequence[Node]) -> None:
        """Takes views back that nobody reads."""
        for node in reversed(views):
            if not node.users and node in self.added:
                self.added.remove(node)
                self._made = {key: made for key, made in self._made.items() if made is not node}
                self._arranged.pop(node, None)
                self.module.graph.erase_node(node)

    def operand(self, operand: Operand, *, materialise: bool = False) -> Node:
        """An operand in its target arrangement and dtype; scalars and 0-d tensors as they are.
        Complex numbers are pairs, along one dimension more."""
        node = self.current(operand.node)
        if operand.index:
            node = self.call(operator.getitem, node, operand.index)
        if isinstance(value(node), torch.Tensor) and value(node).is_complex():
            node = self.call(torch.view_as_real, node)
        if operand.target:
            fixed = dict(operand.fixed)
            views = steps(operand.dims, operand.target, materialise=materialise, fixed=fixed)
            for step in views:
                node = self.apply(node, step)
        if operand.dtype is not None and value(node).dtype != operand.dtype:
            node = self.method("to", node, dtype=operand.dtype)
        return node


def _key(op: str, target: Any, args: Any, kwargs: Any) -> Any:
    """What makes two pure calls equal; None for a call that may not be shared."""
    try:
        key = (op, target, _freeze(args), _freeze(kwargs))
        hash(key)
    except TypeError:
        return None
    return key


def _freeze(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return tuple(map(_freeze, argument))
    if isinstance(argument, dict):
        return tuple(sorted((k, _freeze(v)) for k, v in argument.items()))
    # 1, 1.0 and True are equal but not the same argument; -0.0 and 0.0 are not either
    if isinstance(argument, (bool, int, float)):
        return (type(argument).__name__, repr(argument))
    return argument
