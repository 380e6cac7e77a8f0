"""Read a score program as `scale · s + bias`, masked: what a library kernel can take.

The walk keeps the parts that do not depend on the scores as nodes of the program, so that they can
be emitted as ordinary graph nodes, or evaluated where their inputs are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from fuser.graph.program import Program

HUGE = 1e30
"""A masked score is set to, or lowered by, at least this much."""

Free = Node | float | int | bool
"""A node of the program that does not depend on scores, or a number."""


class NotAffine(Exception):
    """The program is no affine function of the scores; the message names the operator."""


@dataclass(frozen=True)
class Term:
    """An additive bias: `value`, then the steps (name, operand) in order; added by node `at`."""

    value: Free
    steps: tuple[tuple[str, Any], ...] = ()
    at: str = field(default="", compare=False)


@dataclass(frozen=True)
class Keep:
    """Positions where `condition` (negated: is false) keep their score; the others get `fill`.

    Attributes:
        at: name of the node that fills.
    """

    condition: Free
    negated: bool
    fill: float
    at: str = field(default="", compare=False)


@dataclass(frozen=True)
class Affine:
    """`sum of coefficient_i · s_i + terms`, then masks.

    `scales` maps an input score, or a node that is no affine function of them, to its factors
    (numbers and free nodes, with "mul" or "div").
    """

    scales: Mapping[str, tuple[tuple[str, Free], ...]]
    terms: tuple[Term, ...] = ()
    keeps: tuple[Keep, ...] = ()
    floor: float = -math.inf
    """Masked scores were raised to this (a clamp to finfo.min)."""
    ties: bool = False
    """By `maximum`, of which a score that is equal to the bound gets half of the gradient."""
    added_after: bool = False
    """A term was added to scores that were masked before."""


@dataclass
class _Reader:
    known: Callable[[Node], float | None]
    values: dict[Node, Affine] = field(default_factory=dict)


def read(
    program: Program, known: Callable[[Node], float | None], *, opaque: bool = False
) -> tuple[Affine, Graph]:
    """The affine form of a score or probability program.

    Args:
        program: inputs `s0, ...` (scores) or `p`, and `c0, ...` (captured).
        known: the value of a free node that is one number known while compiling, or None.
        opaque: an operator on unmasked scores that is not affine gives a new score, so that the
            form tells what happens after the last of them.

    Raises:
        NotAffine: with the operator that is not.
    """
    graph = program.graph
    reader = _Reader(known)
    for node in graph.nodes:
        if node.op == "placeholder":
            if not str(node.target).startswith("c"):
                reader.values[node] = Affine({str(node.target): ()})
        elif node.op == "output":
            result = node.args[0]
            if result not in reader.values:
                raise NotAffine("the scores are overwritten")
            return reader.values[result], graph
        elif any(n in reader.values for n in node.all_input_nodes):
            try:
                reader.values[node] = _step(reader, node)
            except NotAffine:
                if not opaque or _is_masked(reader, node):
                    raise
                reader.values[node] = Affine({node.name: ()})
    raise NotAffine("the program has no result")


def _step(reader: _Reader, node: Node) -> Affine:
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    rule = _RULES.get(name)
    if rule is None:
        raise NotAffine(f"`{name}` is not linear in the scores")
    return rule(reader, node)


def _is_masked(reader: _Reader, node: Node) -> bool:
    return any(reader.values[n].keeps for n in node.all_input_nodes if n in reader.values)


def _add(reader: _Reader, node: Node) -> Affine:
    if node.kwargs.get("alpha", 1) != 1:
        raise NotAffine("an addition with alpha")
    a, b = node.args[0], node.args[1]
    left, right = reader.values.get(a), reader.values.get(b)  # type: ignore[arg-type]
    if left is not None and right is not None:
        return _sum(left, right)
    score = left or right
    assert score is not None
    term = Term(b if left is not None else a, at=node.name)  # type: ignore[arg-type]
    return replace(score, terms=(*score.terms, term), added_after=bool(score.keeps))


def _sub(reader: _Reader, node: Node) -> Affine:
    if node.kwargs.get("alpha", 1) != 1:
        raise NotAffine("a subtraction with alpha")
    a, b = node.args[0], node.args[1]
    left, right = reader.values.get(a), reader.values.get(b)  # type: ignore[arg-type]
    if left is not None and right is not None:
        return _sum(left, _scaled(right, "mul", -1.0))
    if left is not None:
        term = Term(b, (("mul", -1.0),), node.name)  # type: ignore[arg-type]
        return replace(left, terms=(*left.terms, term), added_after=bool(left.keeps))
    assert right is not None
    negative = _scaled(right, "mul", -1.0)
    term = Term(a, at=node.name)  # type: ignore[arg-type]
    return replace(negative, terms=(*negative.terms, term))


def _sum(a: Affine, b: Affine) -> Affine:
    if a.keeps or b.keeps or set(a.scales) & set(b.scales):
        raise NotAffine("a sum of masked scores, or of the same scores twice")
    if a.floor > -math.inf or b.floor > -math.inf:
        raise NotAffine("a sum of scores that were clamped")
    return Affine({**a.scales, **b.scales}, a.terms + b.terms)


def _mul(reader: _Reader, node: Node) -> Affine:
    a, b = node.args[0], node.args[1]
    if a in reader.values and b in reader.values:
        raise NotAffine("scores are multiplied with each other")
    score, other = (a, b) if a in reader.values else (b, a)
    return _scaled(reader.values[score], "mul", other)  # type: ignore[index, arg-type]


def _div(reader: _Reader, node: Node) -> Affine:
    a, b = node.args[0], node.args[1]
    if b in reader.values or node.kwargs.get("rounding_mode") is not None:
        raise NotAffine("a division by scores, or with rounding")
    return _scaled(reader.values[a], "div", b)  # type: ignore[index, arg-type]


def _neg(reader: _Reader, node: Node) -> Affine:
    return _scaled(reader.values[node.args[0]], "mul", -1.0)  # type: ignore[index]


def _scaled(score: Affine, how: str, factor: Free) -> Affine:
    if score.keeps and not (isinstance(factor, (int, float)) and factor > 0):
        raise NotAffine("masked scores are scaled by a factor not known to be positive")
    if (
        score.keeps
        and isinstance(factor, (int, float))
        and (factor if how == "mul" else 1 / factor) > 1
    ):
        raise NotAffine("masked scores are scaled up")
    if isinstance(factor, (int, float)) and factor == 0:
        raise NotAffine("scores are multiplied by zero")
    keeps = score.keeps
    if isinstance(factor, (int, float)):
        ratio = float(factor) if how == "mul" else 1 / float(factor)
        keeps = tuple(replace(k, fill=k.fill * ratio) for k in keeps)
    scales = {name: (*factors, (how, factor)) for name, factors in score.scales.items()}
    terms = tuple(replace(t, steps=(*t.steps, (how, factor))) for t in score.terms)
    return replace(score, scales=scales, terms=terms, keeps=keeps)


def _masked_fill(reader: _Reader, node: Node) -> Affine:
    score, mask, fill = node.args[0], node.args[1], node.args[2]
    if mask in reader.values or score not in reader.values:
        raise NotAffine("a mask that depends on scores")
    return _masked(reader, node, score, mask, True, fill)


def _where(reader: _Reader, node: Node) -> Affine:
    condition, a, b = node.args[0], node.args[1], node.args[2]
    if condition in reader.values or (a in reader.values and b in reader.values):
        raise NotAffine("a choice that depends on scores")
    if a in reader.values:
        return _masked(reader, node, a, condition, False, b)
    return _masked(reader, node, b, condition, True, a)


def _masked(
    reader: _Reader, node: Node, source: Any, mask: Any, negated: bool, fill: Any
) -> Affine:
    score = reader.values[source]
    number = float(fill) if isinstance(fill, (int, float)) else reader.known(fill)
    if number is None:
        raise NotAffine("masked scores get a value that is not a known number")
    if not number <= -HUGE and not _lowest_half(number):
        raise NotAffine(f"masked scores get {number:g}, which does not rule them out")
    return replace(score, keeps=(*score.keeps, Keep(mask, negated, number, node.name)))


def _lowest_half(number: float) -> bool:
    return number <= torch.finfo(torch.float16).min


def _cast(reader: _Reader, node: Node) -> Affine:
    score = reader.values[node.args[0]]  # type: ignore[index]
    dtype = node.kwargs.get("dtype")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise NotAffine("scores are cast to integers")
    if dtype.itemsize < 2:
        raise NotAffine("values are rounded to eight bits")
    if dtype is torch.float32:
        return score
    keeps = tuple(replace(k, fill=torch.tensor(k.fill).to(dtype).item()) for k in score.keeps)
    terms = tuple(replace(t, steps=(*t.steps, ("to", dtype))) for t in score.terms)
    return replace(score, terms=terms, keeps=keeps)


def _clamp_low(reader: _Reader, node: Node) -> Affine:
    """`maximum(scores, finfo.min)`, `clamp(min=finfo.min)`: only masked scores are raised."""
    others = [a for a in (*node.args[1:], *node.kwargs.values()) if a is not None]
    score = node.args[0]
    if score not in reader.values:
        score, others = others[0], [node.args[0]]
    if len(others) != 1:
        raise NotAffine("scores are clamped")
    bound = others[0]
    number = float(bound) if isinstance(bound, (int, float)) else reader.known(bound)  # type: ignore[arg-type]
    if number is None or not (number <= -HUGE or number == torch.finfo(torch.float16).min):
        raise NotAffine("scores are clamped")
    ties = getattr(node.target, "__name__", node.target) == "maximum"
    return replace(reader.values[score], floor=number, ties=ties)  # type: ignore[index]


_RULES: dict[str, Callable[[_Reader, Node], Affine]] = {
    "add": _add, "sub": _sub, "mul": _mul, "truediv": _div, "div": _div, "neg": _neg,
    "masked_fill": _masked_fill, "where": _where, "to": _cast, "maximum": _clamp_low,
    "clamp_min": _clamp_low,
}  # fmt: skip
