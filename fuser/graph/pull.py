"""Axes of a node's inputs, given the axes of its result: one rule for each kind of operator."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..torch_private import to_expr
from .axes import (
    Axis,
    Dim,
    Dims,
    Unproven,
    broadcast,
    leaves,
    quotient,
    regroup,
    resolve,
    same_size,
    size_of,
)
from .ops import Kind, Op, data_inputs, value


@dataclass(frozen=True)
class Contraction:
    """`sum over inner of a * b`, with the axes of both operands."""

    a: Node
    a_dims: Dims
    b: Node
    b_dims: Dims
    inner: Dim


def pull_view(op: Op, node: Node, dims: Dims) -> tuple[Node, Dims]:
    """Axes of the input of a view, given those of its result."""
    source = op.args["input"]
    shape = tuple(value(source).shape)
    dims = resolve(dims)
    rank = len(shape)
    match op.name:
        case "reshape" | "reshape_as" | "flatten" | "unflatten" | "squeeze" | "unsqueeze":
            return source, regroup(dims, shape)
        case "getitem":
            return source, regroup(dims, shape)
        case "permute":
            order = [_index(d, rank) for d in op.args["dims"]]
            return source, _unpermute(dims, order)
        case "transpose" | "t" | "T" | "mT":
            return source, _unpermute(dims, _swapped(rank, *_transposed(op, rank)))
        case "movedim":
            return source, _unpermute(dims, _moved(op, rank))
        case "expand" | "expand_as":
            return source, broadcast(dims, shape)
        case "repeat" | "tile":
            return source, _unrepeat(op, dims, shape)
        case "repeat_interleave":
            return source, _uninterleave(op, dims, shape)
        case _:
            raise Unproven(f"no rule for the view {op.name!r}")


def push_view(op: Op, node: Node, dims: Dims) -> Dims:
    """Axes of the result of a view that has every element once, given those of its input.

    Raises:
        Unproven: it is another view.
    """
    dims, rank = resolve(dims), len(dims)
    match op.name:
        case (
            "reshape" | "reshape_as" | "flatten" | "unflatten" | "squeeze" | "unsqueeze" | "getitem"
        ):
            return regroup(dims, tuple(value(node).shape))
        case "permute":
            return tuple(dims[_index(d, rank)] for d in op.args["dims"])
        case "transpose" | "t" | "T" | "mT":
            first, second = _transposed(op, rank)
            return _unpermute(dims, _swapped(rank, first, second))
        case "movedim":
            return tuple(dims[d] for d in _moved(op, rank))
        case _:
            raise Unproven(f"no rule for what the view {op.name!r} makes of axes")


def pull_pointwise(op: Op, node: Node, dims: Dims) -> dict[Node, Dims]:
    """Axes of every tensor input of a pointwise operator."""
    return {source: broadcast(dims, value(source).shape) for source in data_inputs(op, node)}


def pull_contraction(op: Op, node: Node, dims: Dims) -> Contraction:
    """Axes of both operands of a matmul, bmm, baddbmm or two-operand einsum."""
    if op.name == "einsum":
        return _pull_einsum(op, dims)
    a, b = (
        (op.args["batch1"], op.args["batch2"])
        if op.name == "baddbmm"
        else (op.args["input"], op.args["other"])
    )
    a_shape, b_shape = value(a).shape, value(b).shape
    if len(a_shape) < 2 or len(b_shape) < 2:
        raise Unproven("a product with a vector")
    dims = resolve(dims)
    batch, row, column = dims[:-2], dims[-2], dims[-1]
    inner = _fresh_dim(a_shape[-1])
    return Contraction(
        a,
        (*broadcast(batch, a_shape[:-2]), row, inner),
        b,
        (*broadcast(batch, b_shape[:-2]), inner, column),
        inner,
    )


def is_contraction(op: Op) -> bool:
    """A product of two tensors that `pull_contraction` understands."""
    return op.kind is Kind.CONTRACT and (op.name != "einsum" or is_einsum(op, 2))


def is_einsum(op: Op, operands: int) -> bool:
    """Whether it is an einsum of so many tensors."""
    known = op.name == "einsum" and isinstance(op.args.get("equation"), str)
    return known and len(op.args.get("operands", ())) == operands


def _pull_einsum(op: Op, dims: Dims) -> Contraction:
    (a, b), inner = pull_einsum(op, dims)
    return Contraction(*a, *b, inner)


def pull_einsum(op: Op, dims: Dims) -> tuple[list[tuple[Node, Dims]], Dim]:
    """The operands of an einsum with their axes, and those that are added up, each of which two
    operands have at least.

    Raises:
        Unproven: it is more than a sum of products of different indices.
    """
    operands = op.args["operands"]
    terms, out = _einsum_terms(op.args["equation"], [len(value(x).shape) for x in operands])
    if len(set(out)) != len(out):
        raise Unproven("an einsum that repeats an index in its result")
    axes: dict[str, Dim] = dict(zip(out, resolve(dims), strict=True))
    named = [name for names in terms for name in names]
    inner_names = [n for n in dict.fromkeys(named) if named.count(n) > 1 and n not in axes]
    sizes: dict[str, Any] = {}
    for operand, names in zip(operands, terms, strict=True):
        if len(set(names)) != len(names):
            raise Unproven("an einsum that takes a diagonal")
        if any(n not in axes and n not in inner_names for n in names):
            raise Unproven("an einsum that sums an index of one operand alone")
        for name, size in zip(names, value(operand).shape, strict=True):
            if name not in sizes or to_expr(sizes[name]) == 1:
                sizes[name] = size
    axes |= {name: _fresh_dim(sizes[name]) for name in inner_names}
    pulled = [
        tuple(
            broadcast((axes[name],), (size,))[0]
            for name, size in zip(names, value(operand).shape, strict=True)
        )
        for operand, names in zip(operands, terms, strict=True)
    ]
    return [*zip(operands, pulled, strict=True)], leaves([axes[n] for n in inner_names])


def _einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    spare = [c for c in string.ascii_letters + string.digits if c not in equation]
    widths = [r - len(t.replace("...", "")) for t, r in zip(inputs, ranks, strict=True)]
    ellipsis = spare[: max([w for t, w in zip(inputs, widths, strict=True) if "..." in t] or [0])]

    def letters(term: str, width: int) -> list[str]:
        head, dots, tail = term.partition("...")
        return [*head, *(ellipsis[len(ellipsis) - width :] if dots and width else []), *tail]

    terms = [letters(t, w) for t, w in zip(inputs, widths, strict=True)]
    if not arrow:
        once = [n for n in sorted({*left} - {",", "."}) if left.count(n) == 1]
        return terms, [*ellipsis, *once]
    return terms, letters(right, len(ellipsis))


def _fresh_dim(size: Any) -> Dim:
    size = to_expr(size)
    return () if isinstance(size, int) and size == 1 else (Axis(size, "inner"),)


def _index(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _unpermute(dims: Dims, order: Sequence[int]) -> Dims:
    out: list[Dim] = [()] * len(dims)
    for position, source in enumerate(order):
        out[source] = dims[position]
    return tuple(out)


def _transposed(op: Op, rank: int) -> tuple[int, int]:
    if op.name == "transpose":
        return _index(op.args["dim0"], rank), _index(op.args["dim1"], rank)
    if op.name in ("t", "T") and rank > 2:
        raise Unproven("a reversal of more than two dimensions")
    return rank - 2, rank - 1


def _swapped(rank: int, first: int, second: int) -> list[int]:
    order = list(range(rank))
    if rank >= 2:
        order[first], order[second] = order[second], order[first]
    return order


def _moved(op: Op, rank: int) -> list[int]:
    source, destination = op.args["source"], op.args["destination"]
    sources = [_index(d, rank) for d in ([source] if isinstance(source, int) else source)]
    targets = [
        _index(d, rank) for d in ([destination] if isinstance(destination, int) else destination)
    ]
    order: list[int] = [-1] * rank
    for s, t in zip(sources, targets, strict=True):
        order[t] = s
    rest = iter(d for d in range(rank) if d not in sources)
    return [next(rest) if d < 0 else d for d in order]


def _unrepeat(op: Op, dims: Dims, shape: Sequence[Any]) -> Dims:
    """`repeat` writes whole copies one after the other: the copy index is the outer one."""
    if len(op.args["repeats"]) > len(dims) or len(shape) > len(dims):
        raise Unproven("a repeat whose rank is unclear")
    out: list[Dim] = []
    for dim, size in zip(dims[len(dims) - len(shape) :], shape, strict=True):
        out.append(_inner_part(dim, to_expr(size)))
    return tuple(out)


def _inner_part(dim: Dim, size: Any) -> Dim:
    if same_size(size_of(dim), size):
        return dim
    if isinstance(size, int) and size == 1:
        return ()
    total = size_of(dim)
    copies = quotient(total, size)
    return regroup((dim,), (copies, size))[1]


def _uninterleave(op: Op, dims: Dims, shape: Sequence[Any]) -> Dims:
    """`repeat_interleave` repeats each element: the copy index is the inner one."""
    repeats, dim = op.args["repeats"], op.args.get("dim")
    if not isinstance(repeats, int) or not isinstance(dim, int):
        raise Unproven("repeat_interleave with a tensor of repeats or over all dimensions")
    position = _index(dim, len(shape))
    out = list(dims)
    out[position] = regroup((dims[position],), (to_expr(shape[position]), repeats))[0]
    return tuple(out)


def repeated_heads(batch: Dims, shape: Sequence[Any]) -> Dims:
    """Batch dimensions of a key or value that SDPA's `enable_gqa` repeats: the head axis of the
    query splits into key head (outer) and member of the group (inner)."""
    if not batch or len(shape) != len(batch):
        raise Unproven("grouped heads of unclear rank")
    heads = to_expr(shape[-1])
    total = size_of(batch[-1])
    if same_size(total, heads):
        return batch
    if isinstance(heads, int) and heads == 1:
        return (*batch[:-1], ())
    groups = quotient(total, heads)
    return (*batch[:-1], regroup((batch[-1],), (heads, groups))[0])
