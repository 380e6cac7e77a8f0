"""Nodes that read the shape or dtype of a tensor and none of its elements. They do not keep a
region from being rewritten, since what they read is known without it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from .builder import Builder
from .graph.ops import Kind, value
from .graph.unread import is_size
from .graph.view import GraphView
from .pattern import Match
from .rewrite import Rewriter
from .torch_private import symbols, to_expr

_ASSERT_METADATA = torch.ops.aten._assert_tensor_metadata.default
"""What exported programs assert beside a cast; a rewrite keeps dtypes and devices anyway."""
_LIKENESSES: dict[Any, Callable[..., Any]] = {
    torch.ones_like: torch.ones,
    torch.zeros_like: torch.zeros,
    torch.empty_like: torch.empty,
    torch.full_like: torch.full,
}


def reads_shape_alone(view: GraphView, user: Node, node: Node) -> bool:
    """Whether a user wants no element of `node`, only its shape, if that is known, or dtype."""
    if not isinstance(value(node), torch.Tensor):
        return False
    if is_size(user):
        return _is_known(view, user)
    if user.target is _ASSERT_METADATA:
        return True
    op = view.op(user)
    if op.name == "type_as" and op.args.get("input") is not node:
        return True
    if not all(isinstance(size, int) for size in value(node).shape):
        return False
    if _likeness(user) is not None:
        return user.args[0] is node
    if op.kind in (Kind.VIEW, Kind.SLICE) and op.args.get("input") is node and user.users:
        return all(reads_shape_alone(view, reader, user) for reader in user.users)
    return op.name in ("reshape_as", "expand_as") and op.args.get("input") is not node


def free(view: GraphView, rewriter: Rewriter, match: Match) -> None:
    """`x.reshape_as(inner)` reads a shape that is known: spell it out, so that inner can go."""
    for node in match.nodes:
        for user in list(node.users):
            if user in match.nodes or not reads_shape_alone(view, user, node):
                continue
            if user.target is _ASSERT_METADATA:
                user.graph.erase_node(user)
                continue
            if is_size(user):
                _tell(user, rewriter.builder(user, list(view.size_sources), share=False))
                continue
            if _likeness(user) is not None or view.op(user).args.get("input") is node:
                _spell_out(user)
                continue
            source = view.op(user).args["input"]
            name = view.op(user).name
            user.op, user.kwargs = "call_method", {}
            if name == "type_as":
                user.target, user.args = "to", (source, value(node).dtype)
            else:
                user.target = name.removesuffix("_as")
                user.args = (source, tuple(value(node).shape))


def _likeness(node: Node) -> Callable[..., Any] | None:
    """For `ones_like(x)` and its kin `ones`: what makes the same tensor from a shape."""
    if node.op != "call_function" or not node.args:
        return None
    return _LIKENESSES.get(node.target)


def _sizes(node: Node) -> tuple[Any, ...]:
    found = value(node)
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def _is_known(view: GraphView, user: Node) -> bool:
    """Whether sizes follow from those of the inputs; of a shape each is taken by itself."""
    sizes = _sizes(user)
    if isinstance(value(user), (tuple, list)) and not all(map(_is_element, user.users)):
        return False
    numbers = all(isinstance(size, (int, torch.SymInt)) for size in sizes)
    return numbers and not symbols(sizes) - view.input_symbols


def _is_element(node: Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _tell(user: Node, builder: Builder) -> None:
    """Put numbers, or what computes them from the sizes of inputs, where a shape was read."""
    sizes = _sizes(user)
    if not isinstance(value(user), (tuple, list)):
        _replace(user, builder.size(to_expr(sizes[0])))
        return
    for reader in list(user.users):
        index: Any = reader.args[1]
        _replace(reader, builder.size(to_expr(sizes[index])) if reader.users else 0)
    user.graph.erase_node(user)


def _replace(node: Node, size: int | Node) -> None:
    for reader in list(node.users):
        reader.args, reader.kwargs = torch.fx.map_arg(
            (reader.args, reader.kwargs), lambda n: size if n is node else n
        )
    node.graph.erase_node(node)


def _spell_out(user: Node) -> None:
    """Make `ones_like(x)`, or all of its kind behind a view of x, from their constant shapes."""
    make = _likeness(user)
    if make is None:
        for reader in list(user.users):
            _spell_out(reader)
        if not user.users:
            user.graph.erase_node(user)
        return
    example = value(user)
    fill = user.args[1:2] or tuple(user.kwargs[k] for k in ("fill_value",) if k in user.kwargs)
    user.args = (tuple(example.shape), *fill)
    user.target = make
    user.kwargs = {"dtype": example.dtype, "device": example.device}
