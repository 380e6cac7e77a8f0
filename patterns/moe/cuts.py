"""Columns that are cut out of a tensor, and operators that change no number of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.ops import Kind, Op, value
from fuser.graph.view import GraphView

COPIES = {"clone", "contiguous", "alias"}
CASTS = {"to", "type_as", "type", "float", "half", "bfloat16"}


@dataclass(frozen=True)
class Part:
    """Columns of a tensor, along one of its dimensions."""

    source: Node
    dim: int
    start: int
    stop: int | None
    step: int
    passed: tuple[Node, ...] = ()


def part_of(view: GraphView, node: Node) -> Part | None:
    """What `chunk`, `split` or a slice takes of a tensor."""
    op = view.op(node)
    if op.kind is Kind.SLICE and op.name == "narrow":
        start, length = op.args.get("start"), op.args.get("length")
        if isinstance(start, int) and isinstance(length, int) and isinstance(op.args["dim"], int):
            return Part(op.args["input"], op.args["dim"], start, start + length, 1)
        return None
    if op.kind is Kind.SLICE and op.name == "getitem":
        return _slice(op)
    source = node.args[0] if node.args else None
    if getattr(node.target, "__name__", "") != "getitem" or not isinstance(source, Node):
        return None
    cut = view.op(source)
    if cut.name not in ("chunk", "split") or not isinstance(node.args[1], int):
        return None
    shapes = [x.shape for x in value(source)] if isinstance(value(source), (tuple, list)) else []
    dim = cut.args.get("dim", 0)
    if not shapes or not isinstance(dim, int):
        return None
    sizes = [shape[dim] for shape in shapes]
    if not all(isinstance(n, int) for n in sizes):
        return None
    at = node.args[1] % len(sizes)
    start = sum(sizes[:at])
    return Part(cut.args["input"], dim, start, start + sizes[at], 1, (source,))


def _slice(op: Op) -> Part | None:
    index, rank = op.args["index"], value(op.args["input"]).ndim
    parts: Sequence[object] = index if isinstance(index, tuple) else (index,)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        filled = [slice(None)] * (rank - len(parts) + 1)
        parts = (*parts[:at], *filled, *parts[at + 1 :])
    if not all(isinstance(p, slice) for p in parts):
        return None
    cut = [i for i, p in enumerate(parts) if p != slice(None)]
    if len(cut) != 1:
        return None
    (dim,) = cut
    part = parts[dim]
    assert isinstance(part, slice)
    size = value(op.args["input"]).shape[dim]
    if not isinstance(size, int) or not all(
        isinstance(n, (int, type(None))) for n in (part.start, part.stop, part.step)
    ):
        return None
    start, stop, step = part.indices(size)
    return Part(op.args["input"], dim, start, stop, step) if step > 0 else None


def arranged(view: GraphView, node: Node) -> set[Node]:
    """What is only another arrangement of a tensor, or a part of it."""
    found: set[Node] = set()
    pending = list(node.users)
    while pending:
        user = pending.pop()
        op = view.op(user)
        cut = op.name in (*COPIES, "select", "unbind", "chunk", "split")
        part = getattr(user.target, "__name__", "") == "getitem"
        if user not in found and (cut or part or op.kind in (Kind.VIEW, Kind.SLICE)):
            found.add(user)
            pending += user.users
    return found
