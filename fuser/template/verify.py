"""Run a template on what was bound: every operation must give what the graph has in its place.

This settles what names and arguments leave open: sizes, dtypes, broadcasting, autocast, and scalars
computed from shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from ..graph.ops import value
from ..torch_private import FakeTensor, FakeTensorMode, faked, known_true, pytree
from . import form
from .equal import equal
from .goals import Fail, Goal
from .rounding import exacting
from .run import run
from .trace import Template
from .values import Permuted, Product


def verify(template: Template, bound: Mapping[Node, Any], deferred: Sequence[Goal]) -> Fail | None:
    """None where the template, applied to its bound arguments, is what the graph computes."""
    environment: dict[Node, Any] = {}
    place = next(bound[o] for o in template.outputs)
    mode = fake_mode(bound)
    with torch.no_grad(), faked(mode):
        for node in template.view.nodes:
            if node.op == "output":
                continue
            try:
                environment[node] = _compute(node, bound, environment)
            except Exception as error:
                what = form.label(template.view, node)
                text = f"{type(error).__name__}: {error}".split("\n", 1)[0]
                return Fail(f"the pattern's {what} cannot be applied here: {text}", place)
            failed = _differs(template, node, bound, environment[node], place)
            if failed is not None:
                return failed
    for goal in deferred:
        wanted = environment[goal.template]
        if not equal(wanted, goal.graph, loose=goal.template not in exacting(template.view)):
            return Fail(f"{goal.what} is {_show(goal.graph)} instead of {wanted}", goal.reader)
    return None


def fake_mode(bound: Mapping[Node, Any]) -> FakeTensorMode | None:
    for graph in bound.values():
        example = value(graph) if isinstance(graph, Node) else None
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None


def realise(graph: Any) -> Any:
    """The fake value of a graph value."""
    if isinstance(graph, Permuted):
        return realise(graph.value).permute(graph.order)
    if isinstance(graph, Product):
        return torch.matmul(realise(graph.a), realise(graph.b))
    return map_arg(graph, value)


def _compute(node: Node, bound: Mapping[Node, Any], environment: Mapping[Node, Any]) -> Any:
    if node.op == "placeholder":
        return realise(bound[node])
    look = environment.__getitem__
    return run(node, map_arg(node.args, look), map_arg(node.kwargs, look))


def _differs(
    template: Template, node: Node, bound: Mapping[Node, Any], wanted: Any, place: Node
) -> Fail | None:
    if node not in bound or node.op == "placeholder":
        return None
    graph = bound[node]
    what, where = form.label(template.view, node), graph if isinstance(graph, Node) else place
    found = pytree.tree_leaves(realise(graph))
    for a, b in zip(pytree.tree_leaves(wanted), found, strict=False):
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            continue
        for have, want in ((b.dtype, a.dtype), (b.device, a.device)):
            if have != want:
                return Fail(f"{what} gives {have} where the pattern gives {want}", where)
        if not _same_shape(a, b):
            have, want = tuple(b.shape), tuple(a.shape)
            return Fail(f"{what} gives the shape {have} where the pattern gives {want}", where)
    return None


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.ndim == b.ndim and all(
        known_true(x == y) for x, y in zip(a.shape, b.shape, strict=True)
    )


def alike(a: Node, b: Node) -> bool:
    """Whether two values are tensors, or tuples of tensors, of one dtype, device and shape."""
    one, other = pytree.tree_leaves(value(a)), pytree.tree_leaves(value(b))
    if len(one) != len(other) or not all(isinstance(x, torch.Tensor) for x in (*one, *other)):
        return False
    return all(
        (x.dtype, x.device) == (y.dtype, y.device) and _same_shape(x, y)
        for x, y in zip(one, other, strict=True)
    )


def _show(given: Any) -> str:
    return f"`{given.name}`" if isinstance(given, Node) else repr(given)
