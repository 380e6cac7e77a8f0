"""Puts a library kernel into a graph: SDPA, or the CPU's flash kernel behind it."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import Context
from ..spelled import Speller
from . import affine
from .banded import emit_banded
from .bias import LOWEST
from .form import Factors, Form, dtype_of, is_guarded
from .reference import operands
from .relative import reversed_rows

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Emitter:
    """Inserts the nodes of one call."""

    def __init__(self, builder: Builder, call: Call, form: Form, context: Context) -> None:
        self.builder, self.call, self.form, self.context = builder, call, form, context
        self.spec: AttentionSpec = call.spec
        self.free = Speller(builder, lambda name: builder.operand(call.operands[name]))

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
        dtype = dtype_of(self.call, self.form, self.context)
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
        return self._dense(joined_q), self._dense(joined_k), self._dense(v), features

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
            fill = keep.fill if keep.fill == -torch.inf else LOWEST
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

    def _overwritten(self) -> Node | None:
        """Where masks overwrite scores, if the bias does not tell."""
        found: Node | None = None
        for keep in self.form.bias.overwriting:
            gone = self.free(keep.condition)
            if not keep.negated:
                gone = self.builder.call(torch.logical_not, gone)
            found = gone if found is None else self.builder.call(torch.logical_or, found, gone)
        return found

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
        if is_guarded(spec, form, self.context):
            flash = torch.ops.fuser.flash_attention.default
            rest = [form.bias.causal, form.scale, form.bias.filled]
            overwritten = self._overwritten() if self.context.training else None
            rest += [] if overwritten is None else [overwritten]
            pair = self.builder.call(flash, q, k, v, bias, *rest)
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
