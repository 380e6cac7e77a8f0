"""Softmax attention, found by structure.

The anchor is the product of probabilities with v. From there everything is walked upwards with its
axes, so whatever spelling the author chose, what is proved is the same: the softmax runs over
exactly the axis that is contracted with v, and a product of q and k gave its scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, fresh, leaves, resolve, same_size, size_of
from fuser.graph.modes import modes_at
from fuser.graph.ops import is_tensor, value
from fuser.graph.pull import Contraction, is_contraction, pull_contraction
from fuser.graph.view import GraphView, Mark
from fuser.pattern import Call, Decline, Match, Operand, Pattern
from fuser.registry import register_pattern
from fuser.soundness import SIZE_OF_DATA
from fuser.specs import AttentionSpec
from fuser.torch_private import GuardOnDataDependentSymNode

from ..captured import Captured
from ..declined import Declined
from .layout import Layout, group
from .operand import axes_of, operand_from
from .probabilities import ProbabilityWalk
from .scores import ScoreWalk
from .walk import EMPTY, Source, is_empty, peel, probability_program

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Branch:
    """One softmax with its contractions and programs."""

    source: Source
    walk: ScoreWalk
    score: Node
    captured: Captured


@register_pattern
class SoftmaxAttention(Pattern):
    """Fuse softmax attention with any pointwise score program.

        contract(q, k) -> score program -> softmax over keys -> contract(p, v)
        =>   fuser::attention

    Sound when: the softmax runs over exactly the key axis; nothing in between escapes.
    Declines:   probabilities are used elsewhere; a program that mixes key positions.
    """

    id: ClassVar[str] = "attention.softmax"
    priority: ClassVar[int] = 10

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in view.nodes:
            if is_contraction(view.op(node)) and _probability_operands(view, node):
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        declined: Decline | None = None
        for operand in _probability_operands(view, anchor):
            try:
                return _prove(view, anchor, operand)
            except Declined as error:
                found = Decline(error.reason, error.node, hint=error.hint)
            except Unproven as error:
                found = Decline(str(error), anchor)
            except GuardOnDataDependentSymNode:
                found = Decline(SIZE_OF_DATA, anchor)
            declined = declined or found
        return declined


def _probability_operands(view: GraphView, node: Node) -> list[Node]:
    op = view.op(node)
    if op.name == "baddbmm" and op.args.get("beta", 1) != 0:
        return []
    names = ("batch1", "batch2") if op.name == "baddbmm" else ("input", "other")
    operands = op.args["operands"] if op.name == "einsum" else [op.args[n] for n in names]
    return [n for n in operands if is_tensor(n) and view.marks[n] & Mark.PROBS]


def _prove(view: GraphView, anchor: Node, p: Node) -> Match:
    op = view.op(anchor)
    if op.name == "baddbmm" and op.args.get("alpha", 1) != 1:
        raise Declined("the product with v is scaled", anchor)
    out_dims = fresh(value(anchor).shape, "o")
    product = pull_contraction(op, anchor, out_dims)
    if product.a is product.b:
        raise Declined("probabilities are multiplied with themselves", anchor)
    p_dims, v, v_dims = (
        (product.a_dims, product.b, product.b_dims)
        if p is product.a
        else (product.b_dims, product.a, product.a_dims)
    )
    keys = product.inner
    if not keys:
        raise Declined("there is only one key", anchor)
    probabilities = ProbabilityWalk(view, keys)
    sources = probabilities.sources(p, p_dims)
    interior = {anchor, *probabilities.interior}
    branches = []
    for source in sources:
        captured = Captured()
        walk = ScoreWalk(view, keys, captured)
        score = walk.run(source.scores, source.dims)
        interior |= walk.interior
        branches.append(_Branch(source, walk, score, captured))
    operands = [x for b in branches for _, c in b.walk.contractions for x in (c.a, c.b)]
    if any(map(is_empty, (anchor, p, v, *operands))):
        raise Declined(EMPTY, anchor)
    _require_dtypes(interior, v, [n for b in branches for n, _ in b.walk.contractions])
    _require_gradient(view, interior, anchor)
    return _match(view, anchor, branches, interior, p_dims, v, v_dims, out_dims, keys)


def _match(
    view: GraphView,
    anchor: Node,
    branches: Sequence[_Branch],
    interior: set[Node],
    p_dims: Dims,
    v: Node,
    v_dims: Dims,
    out_dims: Dims,
    keys: tuple[Axis, ...],
) -> Match:
    v_chain = peel(view, v, v_dims, anchor)
    chains = [
        [
            (peel(view, c.a, c.a_dims, node), peel(view, c.b, c.b_dims, node), c)
            for node, c in b.walk.contractions
        ]
        for b in branches
    ]
    key_axes = set(leaves((keys,)))
    used = axes_of(v_chain)
    for branch in chains:
        for _, k_chain, _ in branch:
            used |= axes_of(k_chain)
    row_axes = set(leaves(p_dims)) - key_axes
    used &= row_axes
    layout = group(
        p_dims,
        keys,
        used,
        [d for b in branches for _, d in b.captured.operands if set(leaves(d)) & key_axes],
    )
    _require_whole(branches)
    inner_v = tuple(a for a in leaves(v_dims) if a not in key_axes and a not in row_axes)
    calls, facts = [], {}
    for branch, products in zip(branches, chains, strict=True):
        call = _call(view, branch, products, layout, v_chain, inner_v, anchor, interior)
        calls.append(call)
        facts = _facts(call, layout, branch, len(branches))
    return Match(
        pattern=SoftmaxAttention.id,
        anchor=anchor,
        nodes=frozenset(interior),
        outputs=(anchor,),
        calls=tuple(calls),
        result=layout.results(inner_v),
        dims=resolve(out_dims),
        facts=facts,
        random=any(b.source.dropout for b in branches),
    )


def _call(
    view: GraphView,
    branch: _Branch,
    products: Sequence[tuple[list[tuple[Node, Dims]], list[tuple[Node, Dims]], Contraction]],
    layout: Layout,
    v_chain: list[tuple[Node, Dims]],
    inner_v: tuple[Axis, ...],
    anchor: Node,
    interior: set[Node],
) -> Call:
    captured = branch.captured
    builder, result = probability_program(branch.source, captured)
    sink = branch.source.sink
    sink_name = sink if isinstance(sink, str) else "" if sink is None else captured.add(*sink)
    operands: dict[str, Operand] = {}
    first = branch.walk.contractions[0][0]
    score_dtype = value(first).dtype
    for i, (q_chain, k_chain, product) in enumerate(products):
        inner = leaves((product.inner,))
        _require_distinct(k_chain, layout, inner, anchor)
        dtype = value(branch.walk.contractions[i][0]).dtype
        fixed = branch.source.fixed
        operands[f"q{i}"] = operand_from(view, q_chain, layout.queries(inner), dtype, fixed)
        operands[f"k{i}"] = operand_from(view, k_chain, layout.key_values(inner), dtype, fixed)
    operands["v"] = operand_from(view, v_chain, layout.key_values(inner_v), value(anchor).dtype)
    for i, (node, dims) in enumerate(captured.operands):
        target = layout.scores() if dims else ()
        if isinstance(value(node), torch.Tensor) and value(node).ndim == 0:
            target = ()
        fixed = branch.source.fixed
        readers = [view.order[user] for user in node.users if user in interior]
        read_at = min(readers, default=view.order[node])
        operands[f"c{i}"] = Operand(node, dims, target, read_at=read_at, fixed=fixed)
        foreign = set(leaves(dims)) - set(leaves(layout.scores())) - {axis for axis, _ in fixed}
        if foreign:
            raise Declined("a captured tensor has an axis that the scores do not have", node)
    spec = AttentionSpec(
        contractions=len(products),
        captured=len(captured.operands),
        score=branch.walk.builder.finish(branch.score),
        probs=builder.finish(result),
        dtype=value(anchor).dtype,
        score_dtype=score_dtype,
        softmax_dtype=branch.source.dtype,
        sink=sink_name,
        dropout=branch.source.dropout,
    )
    return Call(spec, operands)


def _require_gradient(view: GraphView, interior: set[Node], anchor: Node) -> None:
    """Whatever is read and wants a gradient has a way to the result that passes one: rounded to
    integers, or compared, it gets none at all."""
    order = view.order[anchor]
    if any(start <= order < end for start, end in view.transformed):
        return  # nothing is rewritten there, for another reason
    with modes_at(view, anchor):
        if not torch.is_grad_enabled():
            return
    reached, pending = {anchor}, [anchor]
    while pending:
        found = [n for n in pending.pop().all_input_nodes if _wants(n) and n not in reached]
        reached.update(found)
        pending += [n for n in found if n in interior]
    for node in sorted(interior, key=view.order.__getitem__):
        for source in node.all_input_nodes:
            if source not in interior and _wants(source) and source not in reached:
                raise Declined(_stopped(view, node), node)


def _stopped(view: GraphView, node: Node) -> str:
    """Why no gradient gets from a node to its inputs."""
    with modes_at(view, node):
        if not torch.is_grad_enabled():
            return "no gradient passes through the scores"
    return f"`{view.op(node).name}` passes no gradient to a tensor that wants one"


def _wants(node: Node) -> bool:
    return bool(getattr(value(node), "requires_grad", False))


def _require_whole(branches: Sequence[_Branch]) -> None:
    for branch in branches:
        if any(axis.parts for axis, _ in branch.source.fixed):
            raise Declined(
                "one index is taken of an axis that is cut elsewhere", branch.source.softmax
            )


def _require_dtypes(interior: set[Node], v: Node, products: Sequence[Node]) -> None:
    for node in (*interior, v):
        example = value(node)
        if not isinstance(example, torch.Tensor):
            continue
        if example.dtype is torch.float64:
            raise Declined("a part of it is computed in float64", node, "compute it in float32")
        if example.dtype.is_complex:
            raise Declined("a part of it is complex", node)
    for node in (v, *products):
        if value(node).dtype not in _DTYPES:
            name = str(value(node).dtype).removeprefix("torch.")
            kind = "integer" if name.startswith(("int", "uint", "bool")) else name
            raise Declined(f"a part of it is {kind}: {name}", node)


def _require_distinct(
    chain: list[tuple[Node, Dims]], layout: Layout, inner: Sequence[Axis], anchor: Node
) -> None:
    """Keys must be told from features: ambiguous when k is square and its keys come last."""
    node, dims = chain[-1]
    if dims and set(dims[-1]) & set(layout.keys) and not set(dims[-1]) & set(inner):
        if same_size(size_of(layout.keys), size_of(inner)):
            raise Declined(
                "k is square and its keys stand last: keys and features cannot be told apart",
                node,
                "transpose k, or write the product as an einsum over named axes",
            )


def _facts(call: Call, layout: Layout, branch: _Branch, branches: int) -> dict[str, str]:
    spec = call.spec
    facts = {
        "heads": f"{size_of(layout.heads)} query, {size_of(layout.kv_heads)} key-value",
        "program": spec.score.formula(),
        "softmax": f"over {size_of(layout.keys)} keys in {str(spec.softmax_dtype)[6:]}",
    }
    if spec.contractions > 1:
        facts["contractions"] = str(spec.contractions)
    if spec.sink:
        facts["sink"] = "softmax plus one" if spec.sink == "0" else "learned logit"
    if spec.dropout:
        facts["dropout"] = str(spec.dropout)
    if branches > 1:
        facts["terms"] = f"{branches} softmaxes, added up"
    facts["inputs"] = ", ".join(
        f"{name}={operand.node.name}" for name, operand in call.operands.items()
    )
    return facts
