"""Hypothesis strategies for programs that are attention, or nearly.

`attention_cases()` composes one choice from each of a spelling's parts; half of its programs get
one perturbation from PERTURBATIONS, each of which makes attention into something else:

    operands -> heads shared -> contraction -> scale -> cap, biases, mask -> softmax -> values
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from hypothesis import strategies as st
from torch import Tensor

from . import random_parts as parts
from .cases import Arg, Inputs, normal, take

Result = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A drawn program, its inputs, and whether it must be recognised as attention."""

    fn: Callable[..., Result]
    inputs: Inputs
    is_attention: bool
    text: str

    def __repr__(self) -> str:
        return f"Case({self.text})"


@dataclass(frozen=True)
class Plan:
    """The choices that make up one program; names are keys of the tables in random_parts."""

    layout: str
    heads: str
    contraction: str
    scale: str
    program: tuple[str, ...]
    softmax: str
    dropout: str
    values: str
    noise: bool
    sizes: parts.Sizes
    perturbation: str = "none"

    @property
    def text(self) -> str:
        """A short account of the choices, as hypothesis prints it."""
        chain = (self.layout, self.heads, self.contraction, self.scale, *self.program, self.softmax)
        tail = (self.dropout, self.values, "noise" if self.noise else "quiet", self.perturbation)
        return " | ".join((*chain, *tail, str(self.sizes)))


def _choice(table: Iterable[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(list(table))


@st.composite
def _sizes(draw: st.DrawFn, self_attention: bool, square: bool) -> parts.Sizes:
    drawn = st.lists(st.integers(3, 13), min_size=4, max_size=4, unique=True)
    queries, keys, depth, values = draw(drawn)
    kv, group = draw(st.sampled_from([(1, 4), (2, 3), (3, 2), (5, 1)]))
    if square:
        return parts.Sizes(kv * group, kv, group, kv * group, kv * group, kv * group, kv * group)
    return parts.Sizes(2, kv, group, queries, queries if self_attention else keys, depth, values)


@st.composite
def plans(draw: st.DrawFn, perturbations: Sequence[str] = ("none",)) -> Plan:
    """A plan for one program."""
    perturbation = draw(st.sampled_from(list(perturbations)))
    square = perturbation in parts.NEEDS_EQUAL_SIZES
    sizes = draw(_sizes(self_attention=draw(st.booleans()) or square, square=square))
    softmaxes = parts.SOFTMAXES
    if perturbation != "none":  # a perturbation stays visible under a plain normalisation only
        softmaxes = parts.PLAIN_SOFTMAXES
    program = draw(st.lists(_choice(parts.PROGRAMS), max_size=3, unique=True))
    masks = [name for name in program if name in parts.MASKS]
    return Plan(
        layout=draw(_choice(parts.LAYOUTS)),
        heads=draw(_choice(parts.HEADS)),
        contraction=draw(_choice(parts.CONTRACTIONS)),
        scale=draw(_choice(parts.SCALES)),
        program=tuple(name for name in program if name not in masks[1:]),
        softmax=draw(_choice(softmaxes)),
        dropout=draw(_choice(parts.DROPOUTS)),
        values=draw(_choice(parts.VALUES)),
        noise=draw(st.booleans()),
        sizes=sizes,
        perturbation=perturbation,
    )


def attention_cases() -> st.SearchStrategy[Case]:
    """Attention in random spellings, half of them perturbed."""
    return st.one_of(sound_cases(), perturbed_cases())


def sound_cases() -> st.SearchStrategy[Case]:
    """Random spellings of attention."""
    return plans().map(build)


def perturbed_cases() -> st.SearchStrategy[Case]:
    """Random spellings with one perturbation each."""
    return plans(tuple(parts.PERTURBATIONS)).map(build)


def build(plan: Plan) -> Case:
    """The program and inputs that a plan describes."""
    return Case(
        partial(_run, plan), take(*_arguments(plan)), plan.perturbation == "none", plan.text
    )


def _arguments(plan: Plan) -> tuple[Arg, ...]:
    z = plan.sizes
    order = parts.LAYOUTS[plan.layout].order

    def operand(heads: int, rows: int, depth: int, std: float) -> Arg:
        shape = {"b": z.batch, "h": heads, "s": rows, "d": depth}
        return normal(*(shape[axis] for axis in order), std=std)

    return (
        operand(z.kv * z.group, z.queries, z.depth, 1.3),
        operand(z.kv, z.keys, z.depth, 1.3),
        operand(z.kv, z.keys, z.values, 1.0),
        normal(z.kv * z.group, z.queries, z.keys),
        normal(z.kv * z.group, 1, 1, std=0.4),
    )


def _run(plan: Plan, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, temperature: Tensor) -> Result:
    q, k, v = (parts.LAYOUTS[plan.layout].heads_first(x) for x in (q, k, v))
    k, v = (parts.HEADS[plan.heads](x, plan.sizes.group) for x in (k, v))
    perturb = parts.PERTURBATIONS.get(plan.perturbation, parts.Perturbation())
    scores = parts.SCALES[plan.scale](
        parts.CONTRACTIONS[plan.contraction], q, perturb.keys(k), temperature
    )
    for name in plan.program:
        scores = parts.PROGRAMS[name](scores, bias)
    if plan.noise:
        scores = scores.contiguous().view(scores.shape).clone()
    scores = perturb.scores(scores)
    p = parts.SOFTMAXES[plan.softmax](scores, perturb.axis).to(v.dtype)
    p = parts.DROPOUTS[plan.dropout](perturb.probabilities(p))
    out = parts.VALUES[plan.values](p, perturb.values(v, scores))
    out = parts.LAYOUTS[plan.layout].restore(out)
    return (out, p) if perturb.returns_probabilities else out
