"""Operators read so that equal computations look equal, on top of `fuser.graph.ops`.

`head` is what two nodes must share to be paired; `arguments` are bound by name with defaults left
out; dimensions and indices are normalised for the rank at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.fx import Node

from ..graph.effects import dropout_probability
from ..graph.ops import Kind, is_tensor, value
from ..graph.program import CASTS
from ..graph.view import GraphView
from .bind import RENAMED, bind, defaults

IDENTITY, CAST, PERMUTE, RESHAPE, EXPAND = "identity", "cast", "permute", "reshape", "expand"
MISSING = object()
"""An argument that was not given and has no default."""

_HEADS: dict[str, str] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "positive"), IDENTITY),
    **dict.fromkeys(("to", "type", "type_as", *CASTS), CAST),
    **dict.fromkeys(("permute", "transpose", "movedim", "t", "T", "mT"), PERMUTE),
    **dict.fromkeys(
        ("reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"), RESHAPE
    ),
    **dict.fromkeys(("expand", "expand_as"), EXPAND),
    **dict.fromkeys(("matmul", "bmm", "mm"), "matmul"),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), "clamp"),
    **dict.fromkeys(("where", "masked_fill"), "where"),
    **dict.fromkeys(("sub", "rsub"), "sub"),
    **dict.fromkeys(("pow", "square"), "pow"),
}
MIRRORED: dict[Hashable, str] = {
    **{
        name: name
        for name in (
            "add mul eq ne maximum minimum fmax fmin logical_and logical_or logical_xor "
            "bitwise_and bitwise_or bitwise_xor hypot logaddexp"
        ).split()
    },
    "lt": "gt",
    "gt": "lt",
    "le": "ge",
    "ge": "le",
}
"""op(a, b) is MIRRORED[op](b, a)."""
DUAL: dict[Hashable, str] = {"mul": "div", "div": "mul", "add": "sub", "sub": "add"}
"""Equal up to replacing a number by its reciprocal, or an operand by its negative."""
SQUARED: dict[Hashable, str] = {"mul": "pow", "pow": "mul"}
"""Equal where both factors are one value and the exponent is 2."""

_PLACES = {"placeholder": "an input", "get_attr": "a constant", "output": "the output"}
_IGNORED = {"inplace", "_stacklevel", "out", "memory_format"}
_REDUCTIONS = set("sum mean amax amin var std logsumexp norm".split())
_DIMS = {"dim", "dims", "dim0", "dim1"}


def head(view: GraphView, node: Node) -> Hashable:
    """What a node computes, apart from its arguments: a canonical name, or a function."""
    op = view.op(node)
    if op.name:
        if op.name == "getitem" and op.kind is Kind.VIEW:
            return RESHAPE
        if op.name == "rsub" and op.args.get("alpha", 1) != 1:
            return "rsub"
        return _HEADS.get(op.name, op.name)
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return node.op
    name = getattr(node.target, "__name__", "")
    method = getattr(torch.Tensor, name, None)
    if inspect.isbuiltin(node.target) and inspect.ismethoddescriptor(method) and name != "getattr":
        return name
    return node.target


def label(view: GraphView, node: Node) -> str:
    """The name of an operator, for people."""
    if node.op in ("placeholder", "get_attr", "output"):
        return {"placeholder": "an input", "get_attr": "a constant", "output": "the output"}[
            node.op
        ]
    name = view.op(node).name or str(getattr(node.target, "__name__", node.target))
    return f"`{name}`"


def arguments(view: GraphView, node: Node) -> dict[str, Any]:
    """Arguments by name; what is ignored or has no effect on the value is left out."""
    op = view.op(node)
    bound = dict(op.args) if op.name else bind(node)
    args = {RENAMED.get(k, k): v for k, v in bound.items() if k not in _IGNORED}
    if op.name == "square":
        args["other"] = 2
    elif op.name == "rsub" and op.args.get("alpha", 1) == 1:
        args = {"input": args["other"], "other": args["input"]}
    elif op.name == "masked_fill":
        args = {"condition": args["mask"], "input": args["value"], "other": args["input"]}
    elif "unbiased" in args:
        args["correction"] = int(args.pop("unbiased"))
    source: Any = args.get("input")
    if args.get("dtype") is not None and is_tensor(source):
        if value(source).dtype == args["dtype"]:
            del args["dtype"]
    return args


def default(view: GraphView, node: Node, name: str) -> Any:
    """The default of an argument, or MISSING."""
    op = view.op(node)
    if op.name == "dropout":
        return {"p": 0.5, "training": True}.get(name, MISSING)
    return defaults(op.name or str(getattr(node.target, "__name__", node.target))).get(
        name, MISSING
    )


def order(view: GraphView, node: Node, rank: int) -> tuple[int, ...] | None:
    """The permutation that a permute, transpose, movedim, ... makes; None where it is not known."""
    op = view.op(node)
    dims = list(range(rank))
    match op.name:
        case "permute":
            given = op.args["dims"]
            return tuple(d % rank for d in given) if _integers(given) else None
        case "transpose":
            swapped = (op.args["dim0"], op.args["dim1"])
        case "mT" | "t":
            swapped = (-2, -1)
        case "T":
            return tuple(reversed(dims))
        case _:
            return _moved(op.args.get("source"), op.args.get("destination"), rank)
    if not _integers(swapped):
        return None
    if rank >= 2:
        first, second = (d % rank for d in swapped)
        dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def dimension(name: Hashable, key: str, given: Any, rank: int) -> Any:
    """A dimension argument as non-negative numbers; those of a reduction in ascending order."""
    if key not in _DIMS or rank == 0:
        return given
    if name == "stack" or name is torch.stack:
        rank += 1
    if isinstance(given, int) and not isinstance(given, bool):
        return (given % rank,)
    if isinstance(given, (tuple, list)) and _integers(given):
        dims = tuple(d % rank for d in given)
        return tuple(sorted(dims)) if name in _REDUCTIONS else dims
    return given


def index(given: Any, rank: int) -> tuple[Any, ...]:
    """An index with its ellipsis spelled out, `0:` and `::1` read as `:`, and no trailing `:`."""
    parts = list(given) if isinstance(given, (tuple, list)) else [given]
    if any(part is Ellipsis for part in parts):
        position = next(i for i, part in enumerate(parts) if part is Ellipsis)
        covered = sum(1 for part in parts if part is not None and part is not Ellipsis)
        parts[position : position + 1] = [slice(None)] * (rank - covered)
    parts = [_slice(part) if isinstance(part, slice) else part for part in parts]
    while parts and parts[-1] == slice(None):
        parts.pop()
    return tuple(parts)


def _slice(part: slice) -> slice:
    start = None if _is(part.start, 0) else part.start
    return slice(start, part.stop, None if _is(part.step, 1) else part.step)


def _is(given: Any, number: int) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given == number


def _integers(given: Any) -> bool:
    return isinstance(given, Sequence) and all(isinstance(d, int) for d in given)


def _moved(source: Any, destination: Any, rank: int) -> tuple[int, ...] | None:
    sources = [source] if isinstance(source, int) else source
    targets = [destination] if isinstance(destination, int) else destination
    if not _integers(sources) or not _integers(targets):
        return None
    placed = {t % rank: s % rank for s, t in zip(sources, targets, strict=True)}
    rest = iter(d for d in range(rank) if d not in placed.values())
    return tuple(placed[d] if d in placed else next(rest) for d in range(rank))


def heads(template: GraphView, p: Node) -> frozenset[Hashable]:
    """Heads of graph nodes at which an operation of a template may be found."""
    found: set[Hashable] = {head(template, p)}
    for name in tuple(found):
        found |= {k for k, v in MIRRORED.items() if v == name}
        found |= {DUAL.get(name, name), SQUARED.get(name, name)}
    if found & {"matmul", PERMUTE}:
        found |= {"einsum", "linear"}
    if found & {IDENTITY, CAST}:
        source = template.op(p).args.get("input")
        if is_tensor(source) and isinstance(source, Node) and source.op != "placeholder":
            found |= heads(template, source)
    return frozenset(found)


def is_noop(view: GraphView, node: Node) -> bool:
    """Whether a node gives the value that it takes: a copy, a cast to the same type, no dropout."""
    name = head(view, node)
    source: Any = view.op(node).args.get("input")
    if not is_tensor(source):
        return False
    if name == IDENTITY:
        return True
    if name == "dropout":
        return dropout_probability(view.op(node)) == 0
    before, after = source.meta["example_value"], node.meta["example_value"]
    return name == CAST and before.dtype == after.dtype and before.device == after.device


def by_head(view: GraphView) -> Mapping[Hashable, Sequence[Node]]:
    """The operators of a graph by head, so that a pattern sees only what it may start from."""
    found = _by_head.get(view)
    if found is None:
        found = _by_head[view] = {}
        for node in view.nodes:
            if node.op in ("call_function", "call_method"):
                found.setdefault(head(view, node), []).append(node)
    return found


_by_head: WeakKeyDictionary[GraphView, dict[Hashable, list[Node]]] = WeakKeyDictionary()


def is_alias(view: GraphView, node: Node) -> bool:
    """Whether a node may give memory of its input back: a view, or a copy that can be none."""
    op = view.op(node)
    return op.kind in (Kind.VIEW, Kind.SLICE) or head(view, node) in (IDENTITY, CAST)
