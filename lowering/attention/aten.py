"""Library kernels for programs that are `scale · s + bias` with masks: SDPA, CPU flash.

Emitted as ordinary graph nodes, so autograd and Inductor see through them. The bias is one tensor,
made once for each graph and shared by the layers that share it; a causal mask is never made.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import leaves, same_size, size_of
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import affine, cost
from .affine import NotAffine
from .banded import emit_banded, share
from .bias import Bias, Rows, analyse, reads_gradient
from .dtypes import narrower, rounds_coarsely
from .evaluate import Evaluator, FreeEmitter, varies_over
from .reference import operands
from .relative import reversed_rows

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_LOWEST = torch.finfo(torch.float32).min

Factors = tuple[tuple[str, Any], ...]
"""`("mul" | "div", number or free node)`, applied in order."""


@dataclass(frozen=True)
class _Form:
    """A call as a library kernel sees it."""

    scale: float
    q_factors: tuple[Factors, ...]
    """For each contraction, what is multiplied into q because it is not one number for all."""
    bias: Bias
    output_factors: Factors


@register_lowering(AttentionSpec, order=10)
class LibraryAttention(Lowering):
    """SDPA, or the flash kernel behind it where a causal mask and a bias meet."""

    name: ClassVar[str] = "library kernel"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        try:
            form = _read(call, context)
        except NotAffine as error:
            return Refusal(str(error))
        refusal = _refuse(call, form, context)
        if refusal is not None:
            return refusal
        kernel = _kernel(call.spec, form, context)
        facts = {
            "scale": f"{form.scale:.6g}",
            "mask": form.bias.describe(),
            "rows": form.bias.rows.value,
        }
        if form.bias.relative:
            facts["bias"] = "by distance, one row for all queries"
        elif form.bias.terms:
            facts["bias"] = "added as one tensor"

        slower = cost.slower(
            call, context, structured=_reads_less(call, form, context), plain=form.bias.mask is None
        )

        def emit(builder: Builder) -> Node:
            return _Emitter(builder, call, form, context).run()

        why = "the program is a scale and a bias"
        return Emission(emit, kernel, why, slower, facts, _work(call, form))


def _read(call: Call, context: Context) -> _Form:
    spec: AttentionSpec = call.spec
    evaluator = Evaluator(call, context.folder)
    if narrower(spec.score_dtype, spec.dtype) or rounds_coarsely(spec.score, spec.dtype):
        raise NotAffine("scores are rounded more coarsely than the result")
    scores, _ = affine.read(spec.score, evaluator.number)
    probs, _ = affine.read(spec.probs, evaluator.number)
    if probs.terms or probs.keeps:
        raise NotAffine("probabilities are added to, or masked after the softmax")
    if len(scores.scales) != spec.contractions:
        raise NotAffine("a product of q and k is not used")
    factors = [scores.scales[f"s{i}"] for i in range(spec.contractions)]
    for _, factor in (*(f for product in factors for f in product), *probs.scales["p"]):
        if varies_over(call, factor, 3):
            raise NotAffine("scores or probabilities are scaled by a tensor over keys")
    scale = 1.0
    if len(factors) == 1:
        for how, factor in factors[0]:
            if not isinstance(factor, Node):
                scale = scale * factor if how == "mul" else scale / factor
        factors = [tuple(f for f in factors[0] if isinstance(f[1], Node))]
    return _Form(
        scale,
        tuple(factors),
        analyse(call, scores, evaluator, bands=_may_band(call)),
        probs.scales["p"],
    )


def _reads_less(call: Call, form: _Form, context: Context) -> bool:
    """Whether the kernel skips scores; beside a native call, whether it reads less of anything."""
    bias = form.bias
    if bias.causal or bias.band or not context.native:
        return bias.causal or bias.band
    heads = [size_of(leaves((call.operands[name].target[1],))) for name in ("q0", "k0")]
    return bias.empty or bias.relative or heads[0] != heads[1]


def _work(call: Call, form: _Form) -> float:
    """Scores that are computed, over all scores."""
    mask, rows = form.bias.mask, size_of(leaves((call.operands["q0"].target[2],)))
    if form.bias.band and mask is not None and isinstance(rows, int):
        return share(mask, rows)
    return 0.5 if form.bias.causal else 1.0


def _features_known(call: Call) -> bool:
    """Whether q's and v's feature counts are constants, or one and the same symbol."""
    sizes = [size_of(leaves((o.target[3],))) for n, o in call.operands.items() if n[0] in "qv"]
    if all(isinstance(size, int) for size in sizes):
        return True
    return len(sizes) == 2 and same_size(*sizes)


def _may_band(call: Call) -> bool:
    """Blocks need a batch that is one constant, and give no log-sum-exp for a sink."""
    batch = size_of(leaves((call.operands["q0"].target[0],)))
    return not call.spec.sink and isinstance(batch, int)


def _refuse(call: Call, form: _Form, context: Context) -> Refusal | None:
    spec, bias = call.spec, form.bias
    if bias.added_after and bias.rows is not Rows.KEPT:
        return Refusal("a bias is added to masked scores where a query may have no key")
    if not _features_known(call):
        return Refusal("the numbers of features of q and v are symbolic and not known to be equal")
    if spec.dropout:
        return Refusal("no CPU library kernel drops probabilities")
    if context.training and reads_gradient(call, bias):
        return Refusal("the bias needs a gradient, which the library kernels do not give")
    if context.training and bias.rows is not Rows.KEPT and not spec.dead_rows_are_zero:
        if bias.filled and bias.added:
            return Refusal(
                "masks are both added and filled in where a query may have no key: gradients differ"
            )
    if context.training and spec.sink:
        return Refusal("the library kernels give no gradient for the log-sum-exp that a sink needs")
    if context.device.type != "cpu":
        if spec.sink or (bias.rows is not Rows.KEPT and not spec.dead_rows_are_zero):
            return Refusal("a query may have no key at all, where SDPA and softmax differ")
    return None


def _kernel(spec: AttentionSpec, form: _Form, context: Context) -> str:
    if form.bias.band:
        return f"aten.sdpa, {form.bias.mask}"
    if form.bias.empty and not spec.sink:
        return "aten.sdpa, causal" if form.bias.causal else "aten.sdpa"
    if context.device.type != "cpu":
        return "aten.sdpa, bias"
    causal = ", causal" if form.bias.causal else ""
    extra = ", bias" if not form.bias.empty else ""
    sink = ", sink" if spec.sink else ""
    guarded = _is_guarded(spec, form, context)
    return f"{'guarded' if guarded else 'aten'}.flash{causal}{extra}{sink}"


def _is_guarded(spec: AttentionSpec, form: _Form, context: Context) -> bool:
    """Whether rows without any key must be looked for at run time."""
    if spec.dead_rows_are_zero or spec.sink:
        return False
    if form.bias.keeps:
        return True  # overwritten scores may be no numbers
    wanted = (Rows.UNKNOWN, Rows.FINITE) if context.training else (Rows.UNKNOWN,)
    return form.bias.rows in wanted


class _Emitter:
    """Inserts the nodes of one call."""

    def __init__(self, builder: Builder, call: Call, form: _Form, context: Context) -> None:
        self.builder, self.call, self.form, self.context = builder, call, form, context
        self.spec: AttentionSpec = call.spec
        self.free = FreeEmitter(builder, call)

    def run(self) -> Node:
        q, k, v, features = self._operands()
        bias = self._bias(value(q).dtype)
        if bias is not None and self.form.bias.relative:
            turned = self.builder.method("flip", q, 2)
            out, lse = self._attend(turned, k, v, reversed_rows(self.builder, bias))
            out = self.builder.method("flip", out, 2)
            lse = None if lse is None else self.builder.method("flip", lse, 2)
        else:
            out, lse = self._attend(q, k, v, bias)
        if features is not None:
            out = self._narrow(out, features)
        if lse is not None:
            out = self._sink(out, lse)
        out = self._scaled(out, self.form.output_factors)
        if value(out).dtype != self.spec.dtype:
            out = self.builder.method("to", out, dtype=self.spec.dtype)
        return out

    def _operands(self) -> tuple[Node, Node, Node, Any]:
        q, k, v = operands(self.builder, self.call)
        dtype = self._dtype()
        q = [
            self._scaled(self._to(x, dtype), factors)
            for x, factors in zip(q, self.form.q_factors, strict=True)
        ]
        k, v = [self._to(x, dtype) for x in k], self._to(v, dtype)
        joined_q, joined_k = q[0], k[0]
        if len(q) > 1:
            k = [self._same_heads(x, k) for x in k]
            joined_q = self.builder.call(torch.cat, tuple(q), dim=-1)
            joined_k = self.builder.call(torch.cat, tuple(k), dim=-1)
        have, want = value(joined_q).shape[-1], value(v).shape[-1]
        features = None
        if isinstance(have, int) and isinstance(want, int) and have != want:
            wider = max(have, want)
            joined_q, joined_k, v = (self._pad(x, wider) for x in (joined_q, joined_k, v))
            features = want if want < wider else None
        return (*(self._dense(x) for x in (joined_q, joined_k, v)), features)

    def _dtype(self) -> torch.dtype:
        """The library computes in the result's dtype where q, k and v are exact in it, and its
        backward can be fast in it. A q that is scaled first may overflow float16, and rounds a
        gradient of the factor once more."""
        if self.context.training and cost.converts(self.spec.dtype, self.context.device):
            return torch.float32
        if any(self.form.q_factors) and self.spec.dtype.itemsize < 4:
            if self.context.training or self.spec.dtype is torch.float16:
                return torch.float32
        own = {value(o.node).dtype for n, o in self.call.operands.items() if n[0] in "qkv"}
        if own == {self.spec.dtype} or self.spec.score_dtype == self.spec.dtype:
            return self.spec.dtype
        return torch.float32

    def _to(self, node: Node, dtype: torch.dtype) -> Node:
        if value(node).dtype == dtype:
            return node
        source = node.args[0] if node.target == "to" and node in self.builder.added else None
        if isinstance(source, Node) and value(source).dtype == dtype:
            return source
        return self.builder.method("to", node, dtype=dtype)

    def _same_heads(self, node: Node, others: list[Node]) -> Node:
        most = max(value(x).shape[1] for x in others)
        shape = value(node).shape
        return node if shape[1] == most else self.builder.method("expand", node, -1, most, -1, -1)

    def _pad(self, node: Node, features: Any) -> Node:
        missing = features - value(node).shape[-1]
        if not missing:
            return node
        # eager's pad keeps odd strides of its input that its fake kernel does not tell
        return self.builder.method("contiguous", self.builder.call(F.pad, node, (0, missing)))

    def _dense(self, node: Node) -> Node:
        last = value(node).stride(-1)
        return (
            node if isinstance(last, int) and last == 1 else self.builder.method("contiguous", node)
        )

    def _narrow(self, out: Node, features: Any) -> Node:
        return self.builder.call(operator.getitem, out, (Ellipsis, slice(None, features)))

    def _scaled(self, node: Node, factors: Factors) -> Node:
        number, dtype = 1.0, value(node).dtype
        for how, factor in factors:
            if isinstance(factor, Node):
                function = torch.mul if how == "mul" else torch.div
                node = self.builder.call(function, node, self.free(factor))
            else:
                number = number * factor if how == "mul" else number / factor
        if number != 1.0:
            node = self.builder.call(torch.mul, node, number)
        return node if value(node).dtype == dtype else self.builder.method("to", node, dtype=dtype)

    def _bias(self, dtype: torch.dtype) -> Node | None:
        bias = self.form.bias
        if bias.empty:
            return None
        total: Node | None = None
        for term in bias.terms:
            node = self._term(term)
            total = node if total is None else self.builder.call(torch.add, total, node)
        for keep in bias.keeps:
            fill = keep.fill if keep.fill == -torch.inf else _LOWEST
            kept = total if total is not None else 0.0
            condition = self.free(keep.condition)
            chosen = (fill, kept) if keep.negated else (kept, fill)
            if total is None:
                device = value(condition).device
                zero = self.builder.call(torch.zeros, (), dtype=torch.float32, device=device)
                chosen = (fill, zero) if keep.negated else (zero, fill)
            elif value(total).dtype != torch.float32 and fill != -torch.inf:
                total = self.builder.method("to", total, dtype=torch.float32)
                chosen = (fill, total) if keep.negated else (total, fill)
            total = self.builder.call(torch.where, condition, *chosen)
        assert total is not None
        if value(total).dtype not in (torch.float32, dtype):
            total = self._to(total, torch.float32)
        if not value(total).ndim:
            total = self._spread(total)
        # a bias gathered as (Sq, Sk, H) and permuted would be read across its rows
        return self._dense(total)

    def _term(self, term: affine.Term) -> Node:
        node = self.free(term.value)
        for how, operand in term.steps:
            if how == "to":
                node = self.builder.method("to", node, dtype=operand)
            else:
                function = torch.mul if how == "mul" else torch.div
                node = self.builder.call(function, node, self.free(operand))
        if isinstance(node, Node) and isinstance(value(node), torch.Tensor):
            return node if value(node).ndim else self._spread(node)
        return self.builder.call(torch.full, (1, 1, 1, 1), node)

    def _spread(self, node: Node) -> Node:
        """One number for all scores."""
        return self.builder.method("reshape", node, (1, 1, 1, 1))

    def _attend(self, q: Node, k: Node, v: Node, bias: Node | None) -> tuple[Node, Node | None]:
        """The kernel; with the log-sum-exp where something still has to be done with it."""
        form, spec = self.form, self.spec
        if form.bias.band and form.bias.mask is not None:
            return emit_banded(self.builder, q, k, v, form.bias.mask, form.scale), None
        on_cpu = self.context.device.type == "cpu"
        if not on_cpu or (bias is None and not spec.sink):
            keywords: dict[str, Any] = {"scale": form.scale}
            if bias is not None:
                keywords["attn_mask"] = self._to(bias, value(q).dtype)
            if form.bias.causal:
                keywords["is_causal"] = True
            if value(q).shape[1] != value(k).shape[1]:
                keywords["enable_gqa"] = True
            return self.builder.call(F.scaled_dot_product_attention, q, k, v, **keywords), None
        if _is_guarded(spec, form, self.context):
            flash = torch.ops.fuser.flash_attention.default
            filled = form.bias.filled
            pair = self.builder.call(flash, q, k, v, bias, form.bias.causal, form.scale, filled)
            return self.builder.call(operator.getitem, pair, 0), None
        pair = self.builder.call(
            _FLASH, q, k, v, 0.0, form.bias.causal, attn_mask=bias, scale=form.scale
        )
        out = self.builder.call(operator.getitem, pair, 0)
        return out, self.builder.call(operator.getitem, pair, 1) if spec.sink else None

    def _sink(self, out: Node, lse: Node) -> Node:
        """One more logit z in the denominator: `o · exp(lse) / (exp(lse) + exp(z))`."""
        logit = self.builder.method("unsqueeze", lse, -1)
        if self.spec.sink != "0":
            sink = self.builder.operand(self.call.operands[self.spec.sink])
            logit = self.builder.call(torch.sub, logit, sink)
        share = self.builder.call(torch.sigmoid, logit)
        dtype = value(out).dtype
        return self._to(self.builder.call(torch.mul, out, share), dtype)
