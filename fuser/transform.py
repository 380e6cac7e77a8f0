"""Transform one captured graph, and the bodies of its higher-order operators, in place."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch.fx import GraphModule, Node

from .errors import FuserWarning
from .events import Failure, Listing, NearMiss, Record, Rewritten, Row
from .graph.effects import draws
from .graph.modes import modes_at
from .graph.ops import Kind, value
from .graph.rebind import rebind, undo
from .graph.unread import forget
from .graph.view import GraphView
from .onlookers import show
from .options import Options
from .plan import Failed, Left, Planned, plan
from .rehearsal import emit
from .report.source import describe, rows, where
from .rewrite import Rewriter
from .shape_readers import free
from .soundness import inputs_of, require_clean
from .torch_private import FakeTensor, FakeTensorMode, is_control_flow
from .verification import memory as taken_back

_FROZEN = "no gradient goes through the checkpoint that it runs in, although gradients are on"
_THAW = "call the model within torch.no_grad()"
_CLOSED_BODIES = {"flex_attention", "flex_attention_backward", "autograd_function_apply"}
"""Higher-order operators whose bodies are not plain parts of the model."""


def transform(
    module: GraphModule,
    options: Options,
    graph: int = 0,
    inputs: Sequence[Any] | None = None,
    *,
    listed: bool = False,
) -> Record:
    """Rewrite what pays in a graph captured by Dynamo.

    Args:
        module: changed in place where something matches, untouched otherwise.
        options: of this compile.
        graph: its number, for reports.
        inputs: with which it is called, if that is known; at them rewrites are verified.
        listed: the record gets all nodes before and after, the time of which is not counted.

    Returns:
        everything that happened.
    """
    for body in _all_bodies(module):
        forget(body)
    before = dict(_listed(module)) if listed else {}
    start = time.perf_counter()
    record = _transform_all(module, options, graph, inputs)
    record.seconds = time.perf_counter() - start
    after = dict(_listed(module)) if listed else {}
    for body, found in before.items():
        record.listings.append(Listing(found, after.get(body, ()), graph, body))
    return record


def _transform_all(
    module: GraphModule, options: Options, graph: int, inputs: Sequence[Any] | None
) -> Record:
    """Transform a graph and the bodies within."""
    record = Record(graphs=1, nodes=len(module.graph.nodes))
    each = list(_bodies(module, frozen=False))
    given = _inputs_of_bodies(module, inputs) if options.verify and each else {}
    for name, body in each:
        within = _transform_all(body, options, graph, given.get(body))
        within.graphs = 0
        record.extend(_within(within, name))
    for name, body in _bodies(module, frozen=True):
        record.extend(_within(_looked_on(body, options, graph), name))
    _transform(module, options, graph, record, inputs)
    return record


def _within(record: Record, name: str) -> Record:
    """The record of a body, as one of the graph that it is in."""
    return record.placed(lambda event: {"body": _path(name, event.body)})


def _path(name: str, inner: str) -> str:
    return f"{name}.{inner}" if inner else name


def _all_bodies(module: GraphModule) -> Iterator[GraphModule]:
    for frozen in (False, True):
        for _, body in _bodies(module, frozen=frozen):
            yield body
            yield from _all_bodies(body)


def _listed(module: GraphModule) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """All nodes of a graph, and of the bodies within by their paths."""
    yield "", rows(module)
    for frozen in (False, True):
        for name, body in _bodies(module, frozen=frozen):
            for path, found in _listed(body):
                yield _path(name, path), found


def _inputs_of_bodies(
    module: GraphModule, inputs: Sequence[Any] | None
) -> Mapping[GraphModule, Sequence[Any]]:
    from .verification.regions import within_bodies

    return within_bodies(module, inputs)


def bodies(module: GraphModule) -> Iterable[GraphModule]:
    """Graph modules that a higher-order operator of this graph runs, and that may be rewritten."""
    return (body for _, body in _bodies(module, frozen=False))


def _bodies(module: GraphModule, *, frozen: bool) -> Iterator[tuple[str, GraphModule]]:
    """Bodies by the names of their attributes."""
    for node in module.graph.nodes:
        if node.op != "get_attr" or "." in str(node.target):
            continue
        body = getattr(module, str(node.target), None)
        if not isinstance(body, GraphModule) or any(_is_closed(u) for u in node.users):
            continue
        if any(_is_frozen_checkpoint(u) for u in node.users) is frozen:
            yield str(node.target), body


def _looked_on(body: GraphModule, options: Options, graph: int) -> Record:
    """What would be rewritten in a body that is left alone."""
    record = Record()
    for decision in plan(GraphView(body), options):
        if isinstance(decision, Planned):
            place, pattern = where(decision.match.anchor), decision.match.pattern
            record.near_misses.append(NearMiss(pattern, place, _FROZEN, _THAW, True, graph))
    return record


def looks_like_attention(module: GraphModule) -> bool:
    """Whether a graph has probabilities that Inductor's own attention patterns could look at."""
    names = ("softmax", "exp", "_softmax")
    return any(getattr(n.target, "__name__", n.target) in names for n in module.graph.nodes) or any(
        looks_like_attention(body) for body in bodies(module)
    )


def _is_frozen_checkpoint(user: Node) -> bool:
    """A checkpoint that no gradient goes through, in grad mode: AOTAutograd refuses to recompute
    library attention there, taking it for a random operator."""
    name = getattr(user.target, "__name__", "") or str(user.target)
    if "checkpoint" not in name or not torch.is_grad_enabled():
        return False
    inputs = [value(n) for n in user.all_input_nodes]
    return not any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def _is_closed(user: Node) -> bool:
    name = getattr(user.target, "__name__", "") or str(user.target)
    return any(closed in name for closed in _CLOSED_BODIES)


def _transform(
    module: GraphModule,
    options: Options,
    graph: int,
    record: Record,
    inputs: Sequence[Any] | None,
) -> None:
    """Open composites first, then plan on the graph that this leaves: one round, seldom two."""
    view = GraphView(module)
    rebound = rebind(view)
    view = GraphView(module) if rebound else view
    decisions = list(plan(view, options))
    openings = [d for d in decisions if _opens(d)]
    openings = _acceptable(view, openings, inputs, options, record, graph)
    if openings:
        _rewrite(view, openings, options, record, graph)
        view = GraphView(module)
        decisions = list(plan(view, options))
    decisions = [d for d in decisions if not _opens(d)]
    for decision in decisions:
        if isinstance(decision, Left):
            decline = decision.decline
            record.near_misses.append(
                NearMiss(
                    decision.pattern,
                    where(decline.node),
                    decline.reason,
                    decline.hint,
                    decision.sound,
                    graph,
                    candidates=decision.candidates,
                )
            )
        elif isinstance(decision, Failed):
            _failed(decision, options, record, graph)
    planned = [d for d in decisions if isinstance(d, Planned)]
    planned = _acceptable(view, planned, inputs, options, record, graph)
    show(view, planned)
    _rewrite(view, planned, options, record, graph)
    if not openings and not planned:
        undo(rebound)


def _acceptable(
    view: GraphView,
    planned: list[Planned],
    inputs: Sequence[Any] | None,
    options: Options,
    record: Record,
    graph: int,
) -> list[Planned]:
    """Those that verification has nothing against, which costs nothing where it is off."""
    if not planned or (not options.verify and taken_back.is_empty()):
        return planned
    from .verification.regions import acceptable

    return acceptable(view, planned, inputs, options, record, graph)


def _opens(decision: Planned | Left | Failed) -> TypeGuard[Planned]:
    return isinstance(decision, Planned) and decision.match.opens


def _rewrite(
    view: GraphView, planned: Sequence[Planned], options: Options, record: Record, graph: int
) -> None:
    fake_mode = _fake_mode(view) if planned else None
    if fake_mode is None:
        return
    rewriter = Rewriter(view.module, fake_mode)
    for item in sorted(planned, key=lambda p: max(view.order[n] for n in p.match.nodes)):
        _apply(view, rewriter, item, options, record, graph)
    view.graph.lint()
    view.module.recompile()


def _fake_mode(view: GraphView) -> FakeTensorMode | None:
    """The mode of the example values; the ambient one is another, made for AOTAutograd."""
    for node in view.nodes:
        example = value(node)
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None


def _apply(
    view: GraphView,
    rewriter: Rewriter,
    planned: Planned,
    options: Options,
    record: Record,
    graph: int,
) -> None:
    match = planned.match
    anchor = max(match.nodes, key=view.order.__getitem__)
    operands = [o.node for call in match.calls for o in call.operands.values()]
    sizes_from = [*view.size_sources, *operands]
    builder = rewriter.builder(anchor, sizes_from, share=not (view.mutations or view.mode_switches))
    removed = sorted(match.nodes, key=view.order.__getitem__)
    lines = tuple(describe(n) for n in removed)
    sources = tuple(where(n) for n in removed)
    place = where(match.anchor)
    try:
        with modes_at(view, match.anchor):
            free(view, rewriter, match)
            results = emit(builder, match, planned.emissions)
            require_clean(view, anchor, builder.added, results)
            inputs = [n for n in inputs_of(match) if n not in match.onto]
            rewriter.replace(builder, match.pattern, match.outputs, results, inputs)
    except Exception as error:
        builder.roll_back()
        same = (match.pattern, place, graph)
        record.verdicts = [v for v in record.verdicts if (v.pattern, v.where, v.graph) != same]
        _failed(Failed(match.pattern, match.anchor, error), options, record, graph)
        return
    builder.commit()
    added = tuple(describe(n) for n in builder.added)
    dropped = _erase(view, removed)
    count = 0 if match.opens else max(1, len(planned.emissions))
    facts = dict(match.facts)
    for emission in planned.emissions:
        facts.update(emission.facts)
    names = dict.fromkeys(e.name for e in planned.emissions)
    reasons = dict.fromkeys(e.why for e in planned.emissions)
    record.rewritten.append(
        Rewritten(
            match.pattern,
            place,
            "; ".join(names) or ("opened" if match.opens else "replacement"),
            "; ".join(reasons)
            or ("for other patterns to match" if match.opens else "registered with the pattern"),
            facts,
            lines,
            added,
            graph,
            sources,
            count,
            candidates=tuple(dict.fromkeys(c for e in planned.emissions for c in e.candidates)),
            dropped=tuple(dropped),
            origin=planned.origin,
        )
    )


def _erase(view: GraphView, removed: list[Node]) -> list[str]:
    """Erase the region, and views and pointwise operators above it that nobody reads any more; the
    names of these."""
    pending = list(reversed(removed))
    dropped: list[str] = []
    while pending:
        node = pending.pop(0)
        if node.users or node.op in ("placeholder", "output") or node._erased:
            continue
        if node not in removed and not _is_pure(view, node):
            continue
        if node not in removed:
            dropped.append(node.name)
        sources = list(node.all_input_nodes)
        node.graph.erase_node(node)
        pending.extend(s for s in sources if s not in pending)
    return dropped


def _is_pure(view: GraphView, node: Node) -> bool:
    if node not in view.order or node.op not in ("call_function", "call_method"):
        return False
    op = view.op(node)
    return op.kind is not Kind.OTHER and not op.inplace and not draws(node, op)


def _failed(failed: Failed, options: Options, record: Record, graph: int) -> None:
    """Record a failure, and warn of the first of each pattern."""
    if options.strict or is_control_flow(failed.error):
        raise failed.error
    place = where(failed.anchor)
    text = f"{type(failed.error).__name__}: {failed.error}"
    known = any(failure.pattern == failed.pattern for failure in record.failures)
    record.failures.append(Failure(failed.pattern, place, text, graph))
    if known:
        return
    warnings.warn(
        f"fuser left a region at {place} to the inner backend because the pattern "
        f"{failed.pattern!r} failed: {text} (set fuser.strict to raise instead)",
        FuserWarning,
        stacklevel=3,
    )
