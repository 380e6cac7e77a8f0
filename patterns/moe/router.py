"""Routers: the best experts of each token, and their weights.

The anchor is the last of the weights. From there everything is walked upwards with its axes: how
they were normalised, the choice, and the scores that it compared, which must be made from the same
logits as those that weigh.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, fresh, leaves, resolve, size_of
from fuser.graph.modes import modes_at
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.program import Program, ProgramBuilder
from fuser.graph.view import GraphView, Mark
from fuser.pattern import Call, Decline, Match, Operand, Pattern
from fuser.registry import register_pattern
from fuser.shape_readers import reads_shape_alone
from fuser.soundness import SIZE_OF_DATA
from fuser.specs import RouterSpec
from fuser.torch_private import GuardOnDataDependentSymNode

from ..declined import Declined
from .grouping import masked
from .ranking import Choice, Ranking, Walk, choice_of, tail, taken_by
from .space import Place, is_copy, require

ID = "router.top_k"
MAX_EXPERTS = 4096
"""More are a vocabulary."""
MAX_NODES = 32
"""Most operators behind a choice that are looked at."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ALONG = (Kind.POINTWISE, Kind.VIEW, Kind.SOFTMAX)


@register_pattern
class Router(Pattern):
    """Choose and weigh the experts of a token in one operator.

        logits -> softmax, or any pointwise program -> top-k -> normalised weights, and indices
        =>   fuser::router

    Sound when: what is compared and what weighs are made from the same logits, expert by expert.
    Declines:   another dimension than that of experts; a mask that is not that of the best groups.
    """

    id: ClassVar[str] = ID
    priority: ClassVar[int] = 5

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in reversed(view.nodes):
            choice = choice_of(view, node)
            if choice is None or not _is_of_experts(choice):
                continue
            for end in _ends(view, choice):
                yield end
                if isinstance(self.match(view, end), Match):
                    break  # of what is a part of it nothing else need be told

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        found = _choice_above(view, anchor)
        if found is None:
            return None
        choice, root, source, reductions = found
        declined: Decline | None = None
        for logits in _candidates(view, source):
            try:
                match = _prove(
                    view, anchor, choice, Ranking.of(view, root, source, logits), reductions
                )
            except Declined as error:
                declined = declined or Decline(error.reason, error.node, hint=error.hint)
            except Unproven as error:
                declined = declined or Decline(str(error), anchor)
            except GuardOnDataDependentSymNode:
                return Decline(SIZE_OF_DATA, anchor)
            else:
                if _is_closed(view, match) or logits is source:
                    return match
        return declined if _rates(view, choice, reductions) else None


def _is_of_experts(choice: Choice) -> bool:
    """Whether a choice may be one of experts, whose numbers somebody wants to know."""
    count = value(choice.scores).shape[-1]
    told = choice.indices is not None and bool(choice.indices.users)
    return told and isinstance(count, int) and 1 < count <= MAX_EXPERTS


def _ends(view: GraphView, choice: Choice) -> list[Node]:
    """Where the weights of a choice may be complete, the last place first."""
    values, indices = choice.values, choice.indices
    roots = [values] if values is not None and values.users else []
    if indices is not None:
        taken = [user for user in indices.users if taken_by(view, user) is not None]
        roots += [node for node in taken if node.users]
    found: list[Node] = []
    for root in roots:
        grown = _grown(view, root)
        others = [] if indices is None else [u for u in indices.users if u not in grown]
        first = min((view.order[u] for u in others), default=len(view.nodes))
        for end in grown:
            op = view.op(end)
            makes = op.kind in (Kind.POINTWISE, Kind.SOFTMAX) and not is_copy(op, end)
            complete = end is root or makes
            inside = _between(view, grown, root, end)
            if complete and view.order[end] < first and _keeps(inside, inside - {end}, view):
                found.append(end)
    return sorted(found, key=view.order.__getitem__, reverse=True)


def _grown(view: GraphView, root: Node) -> list[Node]:
    """What is made from the scores of the chosen experts alone, in order."""
    grown, pending = [root], list(root.users)
    while pending and len(grown) < MAX_NODES:
        node = min(pending, key=view.order.__getitem__)
        pending.remove(node)
        op = view.op(node)
        along = op.kind in _ALONG or op.name == "sum"
        if node in grown or not along or not is_tensor(node):
            continue
        if all(source in grown for source in node.all_input_nodes):
            grown.append(node)
            pending += node.users
    return grown


def _between(view: GraphView, grown: list[Node], root: Node, end: Node) -> set[Node]:
    """Those that an end is made from, and the end."""
    found, pending = {end}, [end]
    while pending:
        node = pending.pop()
        new = [] if node is root else [n for n in node.all_input_nodes if n in grown]
        pending += [n for n in new if n not in found]
        found.update(new)
    return found


def _keeps(inside: set[Node] | frozenset[Node], nodes: Iterable[Node], view: GraphView) -> bool:
    """Whether nobody outside reads some nodes."""
    pairs = ((user, node) for node in nodes for user in node.users)
    return all(user in inside or reads_shape_alone(view, user, node) for user, node in pairs)


def _is_closed(view: GraphView, match: Match) -> bool:
    return _keeps(match.nodes, match.nodes - set(match.outputs), view)


def _choice_above(view: GraphView, end: Node) -> tuple[Choice, Node, Node, list[Node]] | None:
    """The choice behind weights, the scores of what it chose, the tensor that they are taken from,
    and the reductions that were passed."""
    pending, seen, reductions = [end], {end}, list[Node]()
    roots: list[tuple[Choice, Node, Node]] = []
    while pending and len(seen) < MAX_NODES:
        node = pending.pop()
        found = taken_by(view, node)
        if found is not None:
            roots.append((found[0], node, found[1]))
            continue
        op = view.op(node)
        if op.kind is Kind.SOFTMAX or op.name == "sum":
            reductions.append(node)
        elif op.kind not in _ALONG:
            return None
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    return (*roots[0], reductions) if len(roots) == 1 else None


def _candidates(view: GraphView, source: Node) -> list[Node]:
    """Where the logits may be: the tensor that scores are taken from, or what it is made from,
    the furthest first."""
    found, node = [source], source
    while len(found) < MAX_NODES:
        op = view.op(node)
        inputs = [n for n in node.all_input_nodes if is_tensor(n)]
        if op.kind not in _ALONG or op.inplace or len(inputs) != 1 or view.is_written(inputs[0]):
            break
        (node,) = inputs
        found.append(node)
    return found[::-1]


def _prove(
    view: GraphView, end: Node, choice: Choice, ranking: Ranking, reductions: list[Node]
) -> Match:
    require(choice.largest, "the experts with the smallest scores are chosen", choice.node)
    out = fresh(value(end).shape, "o")
    last, given = tail(ranking, end, out, reductions)
    start = reader = last.given
    if last.softmax is not None:
        op = view.op(last.softmax)
        dim = op.args.get("dim")
        over = type(dim) is int and dim % len(given) == len(given) - 1
        require(over, "a softmax runs over another dimension than that of choices", last.softmax)
        start, reader = op.args["input"], last.softmax
    logits = ranking.logits
    taken = Walk(ranking, {logits: "x"}).run(start, given, reader)
    dims = ranking.cross((*ranking.tokens, ranking.chosen))
    scores = Place(choice.scores, dims)
    found = masked(ranking, choice.scores, dims) if choice.scores is not logits else None
    if found is not None:
        scores = found.scores
    compared = Walk(ranking, {logits: "x"}, captures=True)
    program = compared.run(scores.node, scores.dims, choice.node)
    softmax = ranking.softmax
    spec = RouterSpec(
        choices=choice.count,
        captured=len(ranking.captured),
        before=_identity("x") if softmax is None else softmax.before,
        softmax=None if softmax is None else softmax.dtype,
        compared=program,
        groups=None if found is None else found.groups,
        taken=taken,
        top_softmax=None if last.softmax is None else value(last.softmax).dtype,
        total=None if last.total is None else value(last.total).dtype,
        weights=last.program,
        dtype=value(end).dtype,
        sorted=choice.sorted,
        first=choice.first,
    )
    return _match(view, end, choice, ranking, out, spec)


def _identity(name: str) -> Program:
    builder = ProgramBuilder()
    return builder.finish(builder.input(name))


def _match(
    view: GraphView, end: Node, choice: Choice, ranking: Ranking, out: Dims, spec: RouterSpec
) -> Match:
    logits = ranking.logits
    require(not _is_bare(spec), "nothing is left to fuse but the choice", end)
    for node in (logits, choice.scores, end, *(node for node, _ in ranking.captured)):
        dtype = value(node).dtype
        require(dtype in _DTYPES, f"a part of it is {str(dtype)[6:]}", node)
    with modes_at(view, end):
        stopped = torch.is_grad_enabled() and value(logits).requires_grad
        stopped = stopped and not value(end).requires_grad
    require(not stopped, "no gradient gets from the weights to the logits", end)
    tokens, experts = leaves(ranking.tokens), leaves((ranking.experts,))
    whole = set(leaves(ranking.dims[logits])) == {*tokens, *experts}
    require(whole, "several tokens have the same logits", logits)
    target = (tokens, leaves((ranking.chosen,)))
    operands = {"logits": Operand(logits, resolve(ranking.dims[logits]), (tokens, experts))}
    for i, (node, dims) in enumerate(ranking.captured):
        operands[f"b{i}"] = Operand(node, resolve(dims), (experts,))
    outputs, parts = [end], [(target, resolve(out))]
    if choice.indices is not None:
        outputs.append(choice.indices)
        parts.append((target, (*resolve(ranking.tokens), target[1])))
    unread = [n for n in choice.results if not n.users]
    return Match(
        pattern=ID,
        anchor=end,
        nodes=frozenset({*ranking.interior, choice.node, *outputs, *unread}),
        outputs=tuple(outputs),
        calls=(Call(spec, operands),),
        unordered=not spec.sorted,
        facts=_facts(spec, size_of(experts)),
        followed=frozenset(ranking.followed),
        parts=tuple(parts),
    )


def _is_bare(spec: RouterSpec) -> bool:
    """Whether nothing but a choice is left, which PyTorch has in one kernel."""
    plain = spec.compared == spec.taken == _identity("x") and spec.weights == _identity("g")
    return plain and spec.softmax is None and spec.top_softmax is None and spec.groups is None


def _facts(spec: RouterSpec, experts: object) -> dict[str, str]:
    facts = {"experts": f"{experts}, {spec.choices} for each token"}
    if spec.softmax is not None:
        facts["s"] = f"softmax({spec.before.formula()}) over experts"
    facts["compared"] = spec.compared.formula()
    if spec.groups is not None:
        facts["groups"] = f"{spec.groups.kept} of {spec.groups.count}"
    weighed = spec.taken.formula()
    facts["g"] = weighed if spec.top_softmax is None else f"softmax({weighed}) over choices"
    facts["weights"] = spec.weights.formula()
    return facts


def _rates(view: GraphView, choice: Choice, reductions: list[Node]) -> bool:
    """Whether a choice that is left alone looks like that of a router."""
    if reductions or view.marks[choice.scores] & Mark.PROBS:
        return True
    pending, seen = [choice.scores], {choice.scores}
    while pending and len(seen) < MAX_NODES:
        node = pending.pop()
        op = view.op(node)
        if op.name == "sigmoid":
            return True
        if op.kind in _ALONG:
            new = [n for n in node.all_input_nodes if n not in seen]
            seen.update(new)
            pending += new
    return False
