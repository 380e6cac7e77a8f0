"""Which operators a region around a normalisation has.

Upwards an operator joins where nobody else reads its result; downwards where it follows right upon
what was taken, so that whoever else reads that comes after the region.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import torch
from torch.fx import Node

from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView

from ..captured import is_copy, loses_nothing
from ..neighbours import DTYPES, EIGHT_BITS, behind_views, readers, rearranges, same_shape
from . import pairs
from .core import Core
from .peaks import is_peak, rows, spreads
from .statistic import STATISTICS

QUANTISED = (*DTYPES, *EIGHT_BITS)
"""Of what a quantisation gives; numbers are compared on the way to it."""
MAX_STEPS = 48
"""Of the programs after a normalisation."""
MAX_BEFORE = 8
MAX_RESULTS = 4


class After(Enum):
    """What a region may have after a normalisation."""

    PEAK = "pointwise operators, also such that read the largest value of each row or group"
    PAIRS = "pointwise operators, and such that read pairs of elements, with several results"
    SEVERAL = "pointwise operators with several results"
    ONE = "pointwise operators with one result"
    NOTHING = "nothing"


def after(view: GraphView, core: Core, allowed: After) -> list[Node]:
    """The normalised tensor, and after it what is pointwise."""
    taken, best = [core.node], [core.node]
    pending = readers(view, core.node)
    while pending and len(taken) < MAX_STEPS and allowed is not After.NOTHING:
        node = min(pending, key=view.order.__getitem__)
        pending.discard(node)
        read = next(source for source in node.all_input_nodes if source in taken)
        if allowed is After.PAIRS and pairs.is_new(node) and pairs.written(view, node) is not None:
            continue  # it joins with what is written into it
        paired = allowed is After.PAIRS and (
            pairs.joins(view, node, taken) or _widens(view, node, taken)
        )
        sources, made = [n for n in node.all_input_nodes if n in taken], taken[core.bare :]
        peaked = allowed is After.PEAK and (
            is_peak(view, node)
            or any(_joins(view, node, n, made, (*QUANTISED, torch.bool)) for n in sources)
            or spreads(view, node, taken)
        )
        if not (paired or peaked or rearranges(view, node) or _joins(view, node, read, made)):
            if core.bare and not set(taken[1:]) & set(node.all_input_nodes):
                continue  # it reads x, which stays outside
            break
        taken.append(node)
        pending |= readers(view, node)
        target = node.args[0] if paired and node.args else None
        whole = pairs.written(view, target)
        if isinstance(target, Node) and whole is not None and set(whole.writes) <= {*taken}:
            taken.append(target)
            pending |= readers(view, target) - {*taken}
        if _is_worth(view, core, trimmed(view, taken), 1 if allowed is After.ONE else MAX_RESULTS):
            best = list(taken)
    return trimmed(view, best)


def _is_worth(view: GraphView, core: Core, taken: list[Node], most: int) -> bool:
    """Whether a region may end here: with one result, or with several that have to be in memory."""
    every, inside = results(view, core, taken), set(taken)
    if not all(is_tensor(n) and value(n).dtype is not torch.bool for n in every):
        return False
    found = [n for n in every if n not in rows(view, taken)]
    several = all(any(_is_memory(view, u) for u in readers(view, n) - inside) for n in found)
    return len(found) == 1 or (1 < len(found) <= most and several)


def _is_memory(view: GraphView, reader: Node) -> bool:
    """Whether an operator reads memory, whatever kernels are made; others join what they read."""
    op = view.op(reader)
    if op.kind is Kind.VIEW:
        return any(_is_memory(view, user) for user in reader.users)
    joins = (Kind.POINTWISE, Kind.REDUCE, Kind.DROPOUT)
    return op.kind not in joins and op.name not in STATISTICS


def results(view: GraphView, core: Core, taken: list[Node]) -> list[Node]:
    """Those that others read; what is left as it is stays outside."""
    inside = set(taken)
    return [node for node in taken[core.bare :] if not readers(view, node) <= inside]


def trimmed(view: GraphView, taken: list[Node]) -> list[Node]:
    """Without copies, views and parts at the end: who reads one may read what it is one of."""
    end = len(taken)
    while end > 1 and _is_same(view, taken[end - 1], taken):
        end -= 1
    return taken[:end]


def _is_same(view: GraphView, node: Node, taken: list[Node]) -> bool:
    op = view.op(node)
    copies = op.kind is Kind.POINTWISE and loses_nothing(op, node)
    views = rearranges(view, node) or spreads(view, node, taken)
    return copies or views or pairs.is_part(view, node)


def _joins(
    view: GraphView,
    node: Node,
    like: Node,
    made: Collection[Node] = (),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> bool:
    """Whether an operator may be a part of a program over tensors of one shape; one that writes in
    place to what was `made` for it, too."""
    op = view.op(node)
    if op.inplace and op.args.get("input") not in made:
        return False
    if not (is_tensor(node) and is_tensor(like)) or not same_shape(node, like):
        return False
    if op.kind is Kind.DROPOUT:
        return not draws(node, op)
    return op.kind is Kind.POINTWISE and _is_plain(op, node, dtypes)


def _widens(view: GraphView, node: Node, taken: list[Node]) -> bool:
    return pairs.widens(view, node, taken) and _is_plain(view.op(node), node, DTYPES)


def _is_plain(op: Op, node: Node, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether every number that an operator reads is known, and its result is one of ours."""
    numbers = [n for n in node.all_input_nodes if not is_tensor(n)]
    return not numbers and value(node).dtype in dtypes and not draws(node, op)


def kept(view: GraphView, core: Core, after: list[Node]) -> Node | None:
    """What is normalised, where others read it too, all of them after the region."""
    passed, x = behind_views(view, core.x, set(core.interior))
    others = readers(view, x) - _own(core, after, x) - passed
    last = max(map(view.order.__getitem__, after))
    later = bool(others) and all(view.order[node] > last for node in others)
    return x if later and not _is_there(view, x) else None


def _is_there(view: GraphView, node: Node) -> bool:
    """Whether a tensor is a copy of one that is there already, and so perhaps that one itself."""
    if not is_copy(view.op(node), node):
        return False
    source = view.op(node).args["input"]
    computed = view.op(source).kind is Kind.POINTWISE and len(readers(view, source)) == 1
    return not computed or _is_there(view, source)


def before(view: GraphView, core: Core, after: list[Node], kept: Node | None) -> set[Node]:
    """What is pointwise above, and read for the normalisation alone; but what is `kept`."""
    inside = set(core.interior)
    found: set[Node] = set()
    pending = [(core.x, core.x)]
    while pending and len(found) < MAX_BEFORE:
        node, like = pending.pop()
        passed, source = behind_views(view, node, inside, kept)
        like = source if passed else like
        own = inside | _own(core, after, source) | passed
        if source in found or not (source is kept or readers(view, source) <= own):
            continue
        if not _joins(view, source, like):
            continue
        found |= {*passed, source}
        inside |= found
        pending += [(n, like) for n in source.all_input_nodes if is_tensor(n)]
    return found


def _own(core: Core, after: list[Node], node: Node) -> set[Node]:
    """What of a region reads x, or what that is a view of; what comes after, where that is x."""
    return {*core.interior, *(after if core.bare and node is core.x else ())}
