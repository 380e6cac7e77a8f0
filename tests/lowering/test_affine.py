"""Programs read as `scale · s + bias` with masks, and those that are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from fuser.graph.program import IDENTITY_TEXT, Program
from fuser.lowering.attention.affine import Affine, NotAffine, read
from tests.graph.test_program import recorded

S = torch.randn(3, 4)
C = torch.randn(4)
LOWEST = torch.finfo(torch.float32).min


NAMES = {"s": "s0", "t": "s1", "c": "c0"}


def affine(fn: Callable[..., Tensor], *, scores: int = 1) -> Affine:
    """The form of a function of scores `s`, `t` and one captured tensor `c`."""
    text = recorded(fn, *(S + i for i in range(scores)), C).text
    for letter, name in NAMES.items():
        text = text.replace(f'"{letter}"', f'"{name}"')
    found, _ = read(Program(text), lambda node: None)
    return found


def factors(form: Affine, name: str = "s0") -> list[tuple[str, object]]:
    return [(how, "node" if isinstance(f, Node) else f) for how, f in form.scales[name]]


def test_identity() -> None:
    form, _ = read(Program(IDENTITY_TEXT), lambda node: None)
    assert form == Affine({"p": ()})


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda s, c: s * 0.5, [("mul", 0.5)]),
        (lambda s, c: 0.5 * s, [("mul", 0.5)]),
        (lambda s, c: s / 8, [("div", 8)]),
        (lambda s, c: -s, [("mul", -1.0)]),
        (lambda s, c: s * c / 2, [("mul", "node"), ("div", 2)]),
        (lambda s, c: (s * 0.5).to(torch.float64).float(), [("mul", 0.5)]),
    ],
)
def test_scales(fn: Callable[[Tensor, Tensor], Tensor], expected: object) -> None:
    form = affine(fn)
    assert factors(form) == expected
    assert form.terms == form.keeps == ()


def test_a_scale_after_the_bias_scales_both() -> None:
    form = affine(lambda s, c: (s + c) * 0.25)
    assert factors(form) == [("mul", 0.25)]
    (term,) = form.terms
    assert isinstance(term.value, Node)
    assert term.steps == (("mul", 0.25),)


def test_subtraction_on_either_side() -> None:
    (term,) = affine(lambda s, c: s - c).terms
    assert term.steps == (("mul", -1.0),)
    form = affine(lambda s, c: c - s)
    assert factors(form) == [("mul", -1.0)]
    assert form.terms[0].steps == ()


def test_a_sum_of_two_products() -> None:
    form = affine(lambda s, t, c: s * 0.5 + t / 3 + c, scores=2)
    assert factors(form) == [("mul", 0.5)]
    assert factors(form, "s1") == [("div", 3)]
    assert len(form.terms) == 1


@pytest.mark.parametrize("fill", [-torch.inf, LOWEST, -1e30])
@pytest.mark.parametrize(
    ("fn", "negated"),
    [
        (lambda s, c, fill: s.masked_fill(c > 0, fill), True),
        (lambda s, c, fill: torch.where(c > 0, s, fill), False),
        (lambda s, c, fill: torch.where(c > 0, fill, s), True),
    ],
)
def test_masks(fn: Callable[..., Tensor], negated: bool, fill: float) -> None:
    (keep,) = affine(lambda s, c: fn(s, c, fill)).keeps
    assert keep.negated is negated
    assert keep.fill == fill


def test_a_scale_after_the_mask_scales_its_fill() -> None:
    (keep,) = affine(lambda s, c: s.masked_fill(c > 0, -1e35) * 0.5).keeps
    assert keep.fill == -0.5e35


def test_a_clamp_at_the_lowest_number_is_kept() -> None:
    form = affine(lambda s, c: (s + c).clamp_min(LOWEST))
    assert form.floor == LOWEST


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda s, c: torch.tanh(s / 30) * 30 + c, "tanh"),
        (lambda s, c: s * s + c, "multiplied with each other"),
        (lambda s, c: c / s, "division"),
        (lambda s, c: s.masked_fill(c > 0, 0.0), "does not rule them out"),
        (lambda s, c: s.masked_fill(c > 0, -100.0), "does not rule them out"),
        (lambda s, c: torch.where(s > c, s, -torch.inf), "`gt`"),
        (lambda s, c: s.masked_fill(s < 0, -torch.inf) + c, "`lt`"),
        (lambda s, c: s.masked_fill(c > 0, -torch.inf) * c, "positive"),
        (lambda s, c: s.masked_fill(c > 0, -torch.inf) * -1.0, "positive"),
        (lambda s, c: s * 0.0 + c, "zero"),
        (lambda s, c: s.clamp_min(-5.0) + c, "clamped"),
        (lambda s, c: s + s * 0.5 + c, "twice"),
        (lambda s, c: s.floor() + c, "floor"),
        (lambda s, c: torch.where(c > 0, s, s * 2), "choice"),
    ],
)
def test_not_affine(fn: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(NotAffine, match=reason):
        affine(fn)


def test_overwritten_scores() -> None:
    text = '{"inputs":["s0","c0"],"body":[],"out":"c0"}'
    with pytest.raises(NotAffine, match="overwritten"):
        read(Program(text), lambda node: None)
