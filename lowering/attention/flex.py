"""FlexAttention on the CPU, with the score program as its `score_mod`: inference only.

A structured mask becomes a table of blocks, and what it leaves out is not computed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import leaves, size_of
from fuser.graph.ops import value
from fuser.graph.program import IDENTITY_TEXT, Program
from fuser.inductor_private import flex_supported
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import affine, blocks, cost
from .affine import NotAffine
from .bias import Rows, analyse
from .dtypes import narrower, rounds_coarsely
from .evaluate import Evaluator
from .flex_kernel import OPERATOR
from .form import reads_positions
from .mask import MaskFacts, MaskKind
from .reference import operands

# Of a finite score these make a finite one, whatever free operands they have.
_BOUNDED = {
    "add", "sub", "mul", "neg", "tanh", "sigmoid", "masked_fill", "where", "to", "truediv",
    "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "abs", "relu",
}  # fmt: skip


@register_lowering(AttentionSpec, order=15)
class FlexAttention(Lowering):
    """Programs that no library kernel takes, where no gradient is wanted."""

    name: ClassVar[str] = "FlexAttention"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        refusal = _refuse(call, context)
        if refusal:
            return Refusal(refusal)
        try:
            probs, _ = affine.read(call.spec.probs, lambda node: None)
        except NotAffine as error:
            return Refusal(str(error))
        factor = _factor(probs)
        if factor is None:
            return Refusal("probabilities are changed after the softmax")
        mask, dropped = _structure(call, context)

        def emit(builder: Builder) -> Node:
            out = _emit(builder, call, mask, dropped, context.inner == "inductor")
            return out if factor == 1.0 else builder.call(torch.mul, out, factor)

        name, facts, share = "flex_attention", dict[str, str](), 1.0
        if mask is not None:
            name, facts = f"{name}, {mask}", {"mask": str(mask), "rows": Rows.KEPT.value}
            share = blocks.visited(mask, *_lengths(call))
        why = "the program becomes its score_mod"
        slower = cost.slower_in_flex(call, context, share)
        return Emission(emit, name, why, slower, facts, cost.FLEX * share)


def _refuse(call: Call, context: Context) -> str:
    spec: AttentionSpec = call.spec
    if context.device.type == "cuda":
        return "on a GPU the generated kernel is the same algorithm, and takes more programs"
    if context.device.type != "cpu" or not flex_supported():
        return "used on CPUs with AVX2 alone"
    if reads_positions(spec):
        return "the program computes from positions"
    if context.training:
        return "it trains on no CPU"
    if spec.contractions > 1 or spec.sink or spec.dropout:
        return "it has one product of q and k, no sink and no dropout"
    sizes = [size for o in call.operands.values() for size in _shape(o.node)]
    if not all(isinstance(size, int) for size in sizes):
        return "sizes are symbolic"
    if any(value(call.operands[n].node).dtype != spec.dtype for n in ("q0", "k0", "v")):
        return "q, k, v and the result differ in dtype"
    if narrower(spec.score_dtype, spec.dtype) or rounds_coarsely(spec.score, spec.dtype):
        return "scores are rounded more coarsely than the result"
    if rounds_coarsely(spec.probs, spec.dtype):
        return "probabilities are rounded more coarsely than the result"
    if not spec.dead_rows_are_zero and not _keeps_a_key(call, context):
        return "a query may have no key at all, where it gives zeros and softmax NaN"
    return ""


def _structure(call: Call, context: Context) -> tuple[MaskFacts | None, frozenset[str]]:
    """The structured mask that follows on the rest of the program, and the nodes that apply it."""
    evaluator = Evaluator(call, context.folder)
    try:
        form, _ = affine.read(call.spec.score, evaluator.number, opaque=True)
    except NotAffine:
        return None, frozenset()
    bias = analyse(call, form, evaluator)
    if bias.mask is None or bias.rows is not Rows.KEPT:
        return None, frozenset()
    dropped = frozenset(item.at for item in bias.masked)
    if bias.mask.kind is MaskKind.NONE:
        return None, dropped
    # a single query would take a template for decoding that has no such tables
    fits = bias.mask.kind in blocks.STRUCTURED and _lengths(call)[0] > blocks.SIZE
    return (bias.mask, dropped) if fits else (None, frozenset())


def _shape(node: Node) -> tuple[Any, ...]:
    example = value(node)
    return tuple(example.shape) if isinstance(example, Tensor) else ()


def _factor(probs: affine.Affine) -> float | None:
    """What probabilities are multiplied with, where that is a number and all that happens."""
    factor = 1.0
    for how, by in probs.scales["p"]:
        if isinstance(by, Node):
            return None
        factor = factor * by if how == "mul" else factor / by
    return None if probs.terms or probs.keeps else factor


def _keeps_a_key(call: Call, context: Context) -> bool:
    """Whether every query certainly keeps a score above -inf, as long as the scores are finite."""
    spec: AttentionSpec = call.spec
    graph = spec.score.graph
    live: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and node.target == "s0":
            live.add(node)
        elif node.op != "output" and live & set(node.all_input_nodes):
            name = str(getattr(node.target, "__name__", node.target)).strip("_")
            if name not in _BOUNDED or not _is_bounded(node, name, live):
                return False
            live.add(node)
    tensors = {n: o for n, o in call.operands.items() if n[0] == "c" and o.target}
    lowering = [n for n, o in tensors.items() if value(o.node).dtype.is_floating_point]
    if not lowering and "-inf" not in spec.score.text:
        return True
    evaluator = Evaluator(call, context.folder)
    captured = {n: evaluator.operand(o) for n, o in call.operands.items() if n[0] == "c"}
    if any(found is None for found in captured.values()):
        return False
    score = spec.score(s0=torch.zeros(1, 1, 1, _lengths(call)[1]), **captured)
    return bool((score > -torch.inf).any(-1).all())


def _is_bounded(node: Node, name: str, live: set[Node]) -> bool:
    """No choice and no divisor depends on a score."""
    if name == "where":
        return node.args[0] not in live
    if name == "masked_fill":
        return node.args[1] not in live
    return name != "truediv" or node.args[1] not in live


def _lengths(call: Call) -> tuple[int, int]:
    """Numbers of queries and keys."""
    rows, keys = (size_of(leaves((call.operands[n].target[2],))) for n in ("q0", "k0"))
    assert isinstance(rows, int)
    assert isinstance(keys, int)
    return rows, keys


def _emit(
    builder: Builder, call: Call, mask: MaskFacts | None, dropped: Collection[str], compiled: bool
) -> Node:
    (q,), (k,), v = operands(builder, call)
    score = call.spec.score.without(dropped)
    spec = replace(call.spec, score=score, probs=Program(IDENTITY_TEXT))
    read = {str(n.target) for n in score.graph.nodes if n.op == "placeholder"}
    captured: list[Node] = []
    for name in (f"c{i}" for i in range(spec.captured)):
        node = builder.operand(call.operands[name]) if name in read else 0.0
        if not isinstance(node, Node) or not isinstance(value(node), Tensor):
            node = builder.call(torch.scalar_tensor, node, dtype=torch.float32)
        captured.append(node)
    facts = (mask.kind.value, mask.width) if mask else (MaskKind.NONE.value, 0)
    return builder.call(OPERATOR, q, k, v, captured, spec.to_text(), *facts, compiled)
