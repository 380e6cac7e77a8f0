"""What must hold for every rewrite, whatever the pattern; the user's patterns too.

`check` is called once for each match, before anything is changed; `Rewriter` compares shapes,
dtypes, strides and devices under fake execution when it puts the replacement there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from .errors import PatternError
from .graph.effects import written
from .graph.ops import Kind, read, value
from .graph.view import GraphView, Mark
from .inductor_private import random_as_in_eager
from .pattern import Decline, Match
from .shape_readers import reads_shape_alone
from .torch_private import in_forward_mode, is_wrapper, symbols

SIZE_OF_DATA = "a size depends on data"
_MUTATED = "an input is mutated between its use and the end of the region"
_KEPT = "an input is mutated after the region, but kept for the backward"
_WRAPPERS = {
    "DTensor": "let the block work on what its own rank holds: to_local(), or local_map around it"
}


def check(view: GraphView, match: Match) -> Decline | None:
    """None where replacing the region is sound, else the reason."""
    return (
        _wraps(match)
        or _depends_on_data(view, match)
        or _escapes(view, match)
        or _reenters(view, match)
        or _mutates(view, match)
        or _changes_mode(view, match)
        or _reorders_random(view, match)
    )


def require_well_formed(view: GraphView, pattern_id: str, found: Any) -> None:
    """Check what a pattern's `match` returned, before anything is made of it.

    Raises:
        PatternError: it is neither a match nor a decline, or speaks of nodes that are not there.
    """
    wrong = _malformed(view, pattern_id, found)
    if wrong:
        raise PatternError(f"pattern {pattern_id!r}: `match` returned {wrong}.")


def _malformed(view: GraphView, pattern_id: str, found: Any) -> str:
    if isinstance(found, Decline):
        if found.node not in view.order:
            return f"a Decline at {found.node!r}, which is no node of the graph"
        texts = isinstance(found.reason, str) and isinstance(found.hint, str)
        return "" if texts else f"a Decline whose reason is {found.reason!r}, not a text"
    if not isinstance(found, Match):
        return f"{found!r}; a Match, a Decline or None is expected"
    if found.pattern != pattern_id:
        return f"a Match of {found.pattern!r}"
    if not isinstance(found.nodes, (set, frozenset)) or not isinstance(found.facts, Mapping):
        return "a Match whose nodes are no set, or whose facts are no mapping"
    if found.replacement is not None and not callable(found.replacement):
        return f"a Match whose replacement is {found.replacement!r}, which cannot be called"
    if not found.nodes or not found.outputs or (not found.calls and found.replacement is None):
        return "a Match without nodes, without outputs, or with nothing to put there"
    strangers = [n for n in (found.anchor, *found.nodes, *found.outputs) if n not in view.order]
    if strangers:
        return f"a Match with {strangers[0]!r}, which is no node of the graph"
    outside = [n for n in found.outputs if n not in found.nodes]
    return f"a Match whose output `{outside[0].name}` is not among its nodes" if outside else ""


def require_clean(
    view: GraphView, anchor: Node, added: Sequence[Node], results: Sequence[Node]
) -> None:
    """Check what a replacement put before `anchor`, and gives as results.

    Raises:
        PatternError: it reads what is computed later, or writes to what it did not make.
    """
    made = set(added)
    for source in (*results, *(n for node in added for n in node.all_input_nodes)):
        if source not in made and view.order.get(source, -1) > view.order[anchor]:
            raise PatternError(
                f"the replacement reads `{source.name}`, which is computed after the region."
            )
    for node in added:
        for target in written(node, read(node)):
            if target not in made:
                raise PatternError(
                    f"the replacement's `{node.name}` writes to `{target.name}`, which it did not "
                    "make."
                )


def inputs_of(match: Match) -> list[Node]:
    """Everything that the replacement reads."""
    operands = [o.node for call in match.calls for o in call.operands.values()]
    outside = [n for node in match.nodes for n in node.all_input_nodes if n not in match.nodes]
    return list(dict.fromkeys([*operands, *outside]))


def span(view: GraphView, match: Match) -> tuple[int, int]:
    """Positions of the first and the last interior node."""
    positions = [view.order[n] for n in match.nodes]
    return min(positions), max(positions)


def _wraps(match: Match) -> Decline | None:
    """Operators of ours have no rule for tensors that wrap others; what a user registers is made of
    operators that may have."""
    if not match.calls:
        return None
    for node in inputs_of(match):
        example = value(node)
        if is_wrapper(example):
            return Decline(
                f"`{node.name}` is a {type(example).__name__}, which wraps other tensors, and "
                "fused operators know plain ones alone",
                node,
                hint=_WRAPPERS.get(type(example).__name__, ""),
            )
    return None


def _depends_on_data(view: GraphView, match: Match) -> Decline | None:
    """Of a size that is counted while running (`nonzero`, `item`) nothing is known, not even that
    it is not zero. One that is counted in the interior goes with it."""
    if match.any_size:
        return None
    nodes = sorted({*inputs_of(match), *match.outputs}, key=view.order.__getitem__)
    for node in nodes:
        example = value(node)
        if isinstance(example, torch.Tensor) and symbols(example.shape) - view.input_symbols:
            return Decline(SIZE_OF_DATA, node)
    return None


def _escapes(view: GraphView, match: Match) -> Decline | None:
    outputs = set(match.outputs)
    for node in sorted(match.nodes, key=view.order.__getitem__):
        if node in outputs:
            continue
        for user in node.users:
            if user not in match.nodes and not reads_shape_alone(view, user, node):
                return _escaping(view, match, node, user)
    return None


def _escaping(view: GraphView, match: Match, node: Node, user: Node) -> Decline:
    attention = match.pattern.startswith("attention.")
    probabilities = attention and Mark.PROBS in view.marks[node]
    what = "the probabilities are" if probabilities else "an intermediate value is"
    if user.op == "output":
        hint = (
            "do not return them: output_attentions=False, need_weights=False"
            if probabilities
            else ""
        )
        return Decline(f"{what} used elsewhere: returned", node, hint=hint)
    return Decline(f"{what} used elsewhere, by `{user.name}`", node)


def _reenters(view: GraphView, match: Match) -> Decline | None:
    """The replacement stands where the last output stood: every outside use must come later."""
    _, last = span(view, match)
    for output in match.outputs:
        for user in output.users:
            if user not in match.nodes and view.order[user] < last:
                return Decline("an output is used before the region is complete", user)
    return None


def _mutates(view: GraphView, match: Match) -> Decline | None:
    if not view.mutations:
        return None
    first, last = span(view, match)
    inside = match.nodes
    end = len(view.nodes) if _is_differentiated(match) else last
    for position, target in view.mutations:
        node = view.nodes[position]
        if node in inside and not _functional_inside(view, match, node, target):
            return Decline("a tensor that is used elsewhere is mutated within the region", node)
    for call in match.calls:
        for operand in call.operands.values():
            read = operand.read_at if operand.read_at >= 0 else first
            start = max(read, view.order[operand.node])
            until = end if operand.saved else last
            writer = view.mutated_between(operand.node, start + 1, until)
            if writer is not None and writer not in inside:
                return Decline(_MUTATED if view.order[writer] < last else _KEPT, writer)
    for node in inputs_of(match):
        readers = [view.order[u] for u in node.users if u in inside]
        writer = view.mutated_between(node, min(readers, default=last) + 1, last)
        if writer is not None and writer not in inside:
            return Decline(_MUTATED, writer)
    if match.keeps_result and _is_differentiated(match):
        for output in match.outputs:
            writer = view.mutated_between(output, last + 1, len(view.nodes))
            if writer is not None:
                return Decline("the result is mutated, but kept for the backward", writer)
    unsaved = _unsaved(view, match)
    for node in match.nodes:  # after the region nobody reads them, but perhaps a backward
        until = last if view.storages.get(node, node) in unsaved else end
        writer = view.mutated_between(node, view.order[node] + 1, until)
        if writer is not None and writer not in inside and node not in match.outputs:
            return Decline("an intermediate value is mutated outside the region", writer)
    return _mutates_result(view, match)


def _unsaved(view: GraphView, match: Match) -> set[Any]:
    """Memory of operands that no backward reads, neither the replacement's nor, as it computes the
    same, that of views of them within the region."""
    every = [operand for call in match.calls for operand in call.operands.values()]
    saved, unsaved = (
        {view.storages.get(o.node, o.node) for o in every if o.saved is kept}
        for kept in (True, False)
    )
    return unsaved - saved


def _mutates_result(view: GraphView, match: Match) -> Decline | None:
    """Results of the replacement have memory of their own. Where one was a view of something else,
    a write to either was seen in both; one that the region itself wrote to is followed otherwise.
    """
    inside = [target for p, target in view.mutations if view.nodes[p] in match.nodes]
    followed = {view.storages.get(target) for target in inside}
    for output in match.outputs:
        key = view.storages.get(output)
        shared = {n for n in view.sharing.get(key, ()) if n not in match.nodes}
        before = any(view.order[n] < view.order[output] for n in shared)
        if key is None or key in followed or not before:
            continue
        writer = view.mutated_between(output, view.order[output] + 1, len(view.nodes))
        if writer is not None:
            return Decline("the result is a view of an input, and one of them is mutated", writer)
    return None


def _is_differentiated(match: Match) -> bool:
    """The replacement may keep its inputs for the backward, where the original did not."""
    return torch.is_grad_enabled() and any(value(o).requires_grad for o in match.outputs)


def _functional_inside(view: GraphView, match: Match, node: Node, target: Node) -> bool:
    """An in-place operator may be read as its functional form when nobody sees the difference:
    what it overwrites was made in this graph, and all later readers read its result. Those within
    the interior are the pattern's own affair where it has followed the operator."""
    if target not in view.storages:
        return False
    position, sharing = view.order[node], view.sharing[view.storages[target]]
    if sharing[0] not in match.nodes and view.op(sharing[0]).kind is Kind.OTHER:
        return False  # an input, or who knows whose memory
    followed = sharing[0] in match.nodes and node in match.followed
    _, last = span(view, match)
    for other in sharing:
        if other is node or view.order[other] > position:
            continue
        for user in other.users:
            after = other in match.outputs and view.order[user] > last
            if view.order[user] > position and not (followed and (user in match.nodes or after)):
                return False
    return True


def _changes_mode(view: GraphView, match: Match) -> Decline | None:
    if in_forward_mode():
        return Decline("forward-mode derivatives are taken", match.anchor)
    first, last = span(view, match)
    for start, end in view.transformed:
        if start < last and first < end:
            return Decline("it runs inside a torch.func transform", match.anchor)
    for position in view.mode_switches:
        if first < position < last:
            return Decline("autocast or grad mode changes within the region", view.nodes[position])
    return None


def _reorders_random(view: GraphView, match: Match) -> Decline | None:
    if not match.random:
        return None
    if random_as_in_eager():
        reason = "it draws random numbers, and eager's own are asked for (fallback_random)"
        return Decline(reason, match.anchor)
    first, last = span(view, match)
    for position in view.random_positions:
        if first < position < last and view.nodes[position] not in match.nodes:
            return Decline("another random operator stands within the region", view.nodes[position])
    return None
