"""Specs and operands for the generated kernels, and the comparison with the reference.

In Triton's interpreter, or on the device that `FUSER_DEVICE` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import symbolic_trace

from fuser.graph.program import IDENTITY_TEXT, Program, to_json
from fuser.lowering.attention.reference import attend
from fuser.specs import AttentionSpec
from tests.compiled import Run, assert_near, wide

IDENTITY = Program(IDENTITY_TEXT)
DEVICE = torch.device(os.environ.get("FUSER_DEVICE", "cpu"))
INTERPRETED = pytest.mark.skipif(DEVICE.type != "cpu", reason="sizes are those of the interpreter")
FACTOR = 2.0
"""At most so many times the reference's error against fp64."""


def program(function: Callable[..., Any]) -> Program:
    """A program with the function's parameters as inputs."""
    return Program(to_json(symbolic_trace(function).graph))


def spec(
    score: Callable[..., Any] = lambda s0: s0 * 0.3,
    *,
    probs: Callable[..., Any] | None = None,
    mask: Callable[..., Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> AttentionSpec:
    """A spec whose scores, product and result have one dtype, and whose softmax is fp32."""
    scores = program(score)
    captured = {n for n in scores.inputs if n[0] == "c"}
    for extra in (probs, mask):
        captured |= {n for n in program(extra).inputs if n[0] == "c"} if extra else set()
    captured |= {fields.get("sink", "")} - {"", "0"}
    return AttentionSpec(
        contractions=sum(n[0] == "s" for n in scores.inputs),
        captured=len(captured),
        score=scores,
        probs=program(probs) if probs else IDENTITY,
        mask=program(mask) if mask else None,
        dtype=dtype,
        score_dtype=dtype,
        softmax_dtype=torch.float32,
        **fields,
    )


@dataclass
class Operands:
    """q, k, v and captured; floating ones want a gradient, unless they are `tables`."""

    q: list[Tensor]
    k: list[Tensor]
    v: Tensor
    captured: list[Tensor] = field(default_factory=list)

    @property
    def all(self) -> list[Tensor]:
        return [*self.q, *self.k, self.v, *self.captured]

    def placed(self) -> Operands:
        """The same where the kernels run."""

        def place(t: Tensor) -> Tensor:
            return t if t.device.type == DEVICE.type else _leaf_like(t, t.detach().to(DEVICE))

        def each(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [place(t) for t in tensors]

        return Operands(each(self.q), each(self.k), place(self.v), each(self.captured))


def _leaf_like(t: Tensor, moved: Tensor) -> Tensor:
    return moved.requires_grad_(t.requires_grad)


def operands(
    *shapes: Sequence[int],
    batch: int = 2,
    heads: int = 4,
    kv: int = 2,
    rows: int = 20,
    keys: int = 28,
    features: int = 16,
    values: int | None = None,
    products: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Operands:
    """Gaussian operands; `shapes` are those of captured tensors."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    return Operands(
        [normal(batch, heads, rows, features) for _ in range(products)],
        [normal(batch, kv, keys, features) for _ in range(products)],
        normal(batch, kv, keys, features if values is None else values),
        [normal(*shape) for shape in shapes],
    )


def generated(
    of: AttentionSpec, x: Operands, seed: Tensor | None = None, *, atomics: bool = False
) -> Tensor:
    """By the operator."""
    text, x = of.to_text(), x.placed()
    seed = None if seed is None else seed.to(DEVICE)
    return torch.ops.fuser.generated_attention(x.q, x.k, x.v, x.captured, seed, text, "", atomics)[
        0
    ]


def reference(of: AttentionSpec, x: Operands) -> Tensor:
    x = x.placed()
    return attend(of, x.q, x.k, x.v, x.captured)


def outcome(
    function: Callable[[AttentionSpec, Operands], Tensor], of: AttentionSpec, x: Operands
) -> Run:
    """The result and all gradients, for a cotangent that differs everywhere."""
    x = x.placed()
    leaves = [t for t in x.all if t.requires_grad]
    out = function(of, x)
    generator = torch.Generator().manual_seed(9)
    seed = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(out, leaves, seed.to(out), allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]
    return Run([out.detach()], list(zeros))


def check(of: AttentionSpec, x: Operands, *, atomics: bool = False) -> Run:
    """As near to fp64 as the reference, with NaN in the same places; gradients included."""
    x = x.placed()
    ours = outcome(partial(generated, atomics=atomics), of, x)
    exact = Operands(*(wide(part) for part in (x.q, x.k, x.v, x.captured)))
    near, found = outcome(reference, of, x), outcome(reference, of, exact)
    assert_near(ours, near, found, factor=FACTOR, added=_added(of, exact))
    return ours


def _added(of: AttentionSpec, x: Operands) -> dict[int, float]:
    """Of gradients of numbers that all scores read, by their place: the size of what is added."""
    shape = (*x.q[0].shape[:-1], x.k[0].shape[-2])
    ahead = sum(t.requires_grad for t in (*x.q, *x.k, x.v))
    numbers, spread = dict[int, int](), list[Tensor]()
    for i, t in enumerate(x.captured):
        if t.requires_grad and t.numel() == 1 and of.sink != f"c{i}":
            numbers[i] = ahead + sum(c.requires_grad for c in x.captured[:i])
            t = t.detach().expand(shape).clone().requires_grad_()
        spread.append(t)
    if not numbers:
        return {}
    terms = outcome(reference, of, Operands(x.q, x.k, x.v, spread)).grads
    return {at: float(terms[at].abs().sum()) for at in numbers.values()}
