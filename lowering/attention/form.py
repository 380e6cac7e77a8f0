"""A call as a library kernel sees it: `scale · s + bias`, masks sorted into what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import leaves, size_of
from fuser.graph.ops import value
from fuser.graph.program import POSITIONS, SIZES
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import Context
from . import affine, cost
from .affine import NotAffine
from .bias import Bias, Rows, analyse
from .dtypes import narrower, rounds_coarsely
from .evaluate import Evaluator, varies_over

Factors = tuple[tuple[str, Any], ...]
"""`("mul" | "div", number or free node)`, applied in order."""


@dataclass(frozen=True)
class Form:
    """A call as a library kernel sees it."""

    scale: float
    q_factors: tuple[Factors, ...]
    """For each contraction, what is multiplied into q because it is not one number for all."""
    bias: Bias
    output_factors: Factors


def reads_positions(spec: AttentionSpec) -> bool:
    """Whether a spec has more than what is captured: a mask of its own, positions, sizes."""
    names = {name for program in spec.programs for name in program.inputs}
    return spec.mask is not None or not names.isdisjoint((*POSITIONS, *SIZES))


def read(call: Call, context: Context) -> Form:
    """
    Raises:
        NotAffine: no library kernel takes the program.
    """
    spec: AttentionSpec = call.spec
    if reads_positions(spec):
        raise NotAffine("the program computes from positions")
    evaluator = Evaluator(call, context.folder)
    if narrower(spec.score_dtype, spec.dtype) or rounds_coarsely(spec.score, spec.dtype):
        raise NotAffine("scores are rounded more coarsely than the result")
    if rounds_coarsely(spec.probs, spec.dtype):
        raise NotAffine("probabilities are rounded more coarsely than the result")
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
    return Form(
        scale,
        tuple(factors),
        analyse(
            call,
            scores,
            evaluator,
            bands=_may_band(call),
            splits=context.device.type == "cpu" and not spec.sink and not spec.dead_rows_are_zero,
        ),
        probs.scales["p"],
    )


def _may_band(call: Call) -> bool:
    """Blocks need a batch that is one constant, and give no log-sum-exp for a sink."""
    batch = size_of(leaves((call.operands["q0"].target[0],)))
    return not call.spec.sink and isinstance(batch, int)


def is_guarded(spec: AttentionSpec, form: Form, context: Context) -> bool:
    """Whether rows without any key must be looked for at run time."""
    if spec.dead_rows_are_zero or spec.sink:
        return False
    if form.bias.keeps:
        return True  # overwritten scores may be no numbers
    wanted = (Rows.UNKNOWN, Rows.FINITE) if context.training else (Rows.UNKNOWN,)
    return form.bias.rows in wanted


def dtype_of(call: Call, form: Form, context: Context) -> torch.dtype:
    """The library computes in the result's dtype where q, k and v are exact in it, and its backward
    can be fast in it. A q that is scaled first may overflow float16, and rounds a gradient of the
    factor once more."""
    spec: AttentionSpec = call.spec
    if context.training and cost.converts(spec.dtype, context.device):
        return torch.float32
    if any(form.q_factors) and spec.dtype.itemsize < 4:
        if context.training or spec.dtype is torch.float16:
            return torch.float32
    own = {value(o.node).dtype for n, o in call.operands.items() if n[0] in "qkv"}
    if own == {spec.dtype} or spec.score_dtype == spec.dtype:
        return spec.dtype
    return torch.float32
