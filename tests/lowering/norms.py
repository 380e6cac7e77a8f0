"""Specs of norms with random operands, and what operators make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.program import Program
from fuser.lowering.norm.reference import normalise
from fuser.specs import NormSpec
from tests.compiled import Run, assert_near, wide
from tests.lowering.generated import DEVICE, FACTOR, program

FP32, HALF = torch.float32, torch.bfloat16


def itself(c0: Tensor) -> Tensor:
    return c0


def affine_silu(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return F.silu(n * c1.to(torch.float32) + c2.to(torch.float32))


def modulated(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return n * (1 + c1) + c2


def modulated_again(n: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
    return n * (1 + c3) + c4


def rotated(na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2a: Tensor, c3a: Tensor) -> Tensor:
    return na * c1a * c2a - nb * c1b * c3a


def rotated_back(
    na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2b: Tensor, c3b: Tensor
) -> Tensor:
    return nb * c1b * c2b + na * c1a * c3b


def total(c0: Tensor, c1: Tensor) -> Tensor:
    return c0 + c1


def scaled(n: Tensor, c2: Tensor) -> Tensor:
    return n * c2.to(torch.float32)


def norm(
    before: Callable[..., Tensor] = itself,
    *after: Callable[..., Tensor],
    inner: int = 1,
    centred: bool = True,
    summed: bool = False,
    floor: bool = False,
    eps: float = 1e-5,
    norm_dtype: torch.dtype = FP32,
    dtype: torch.dtype = FP32,
    kept: torch.dtype | None = None,
    paired: bool = False,
    bare: bool = False,
) -> NormSpec:
    """A spec whose programs are these functions."""
    first, last = program(before), tuple(map(program, after or (affine_silu,)))
    names = {n.rstrip("ab") for p in (first, *last) for n in p.inputs} - {"n"}
    dtypes = (dtype,) * (len(last) // (1 + paired))
    return NormSpec(
        len(names), inner, first, last, centred, summed, floor, eps, norm_dtype, dtypes, kept,
        paired, bare,
    )  # fmt: skip


def operands(*shapes: Sequence[int], dtype: torch.dtype = FP32, mean: float = 0.0) -> list[Tensor]:
    """Gaussian ones that want a gradient; the first has a mean."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[0] = made[0] + mean
    return [t.to(DEVICE, dtype).requires_grad_() for t in made]


def row_norm(*shape: int) -> list[tuple[int, ...]]:
    """Shapes of x, and of what is along its last dimension."""
    along = (*(1 for _ in shape[1:]), shape[-1])
    return [shape, along, along]


def permuted(t: Tensor, *order: int) -> Tensor:
    """The same numbers, in another order in memory."""
    back = [order.index(d) for d in range(len(order))]
    return t.detach().permute(order).contiguous().permute(back).requires_grad_()


def generated(spec: NormSpec, x: Sequence[Tensor], *, keep: bool = True) -> list[Tensor]:
    found = torch.ops.fuser.generated_norm(list(x), spec.to_text(), "a test", keep)
    return list(found[: len(spec.results)])


def in_fp64(spec: NormSpec) -> NormSpec:
    """Nothing is rounded."""

    def widened(p: Program) -> Program:
        text = p.widened().text
        return Program(text.replace('{"dtype":"float32"}', '{"dtype":"float64"}'))

    double = torch.float64
    return replace(
        spec, before=widened(spec.before), after=tuple(map(widened, spec.after)),
        norm_dtype=double, dtypes=(double,) * len(spec.dtypes),
        kept=None if spec.kept is None else double,
    )  # fmt: skip


def exact(spec: NormSpec, x: Sequence[Tensor]) -> list[Tensor]:
    """What `NormSpec` says, in fp64."""
    named = {f"c{i}": c for i, c in enumerate(x)}
    shape = torch.broadcast_shapes(*(c.shape for c in x))
    dims = list(range(len(shape) - spec.inner - spec.paired, len(shape)))
    found = spec.before(**{n: named[n] for n in spec.before.inputs}).expand(shape)
    away = found - found.mean(dims, keepdim=True) if spec.centred else found
    v = away.square().sum(dims, keepdim=True)
    v = v if spec.summed else v / math.prod(shape[d] for d in dims)
    root = v.sqrt().clamp_min(spec.eps) if spec.floor else (v + spec.eps).sqrt()
    values = {**named, "n": found if spec.bare else away / root}
    if spec.paired:
        first, second = ({f"{n}{m}": t[..., i * (t.shape[-1] - 1)] for n, t in values.items()}
                         for i, m in enumerate("ab"))  # fmt: skip
        values = first | second | {n: t[..., 0] for n, t in values.items() if t.shape[-1] == 1}
    each = [p(**{n: values[n] for n in p.inputs}) for p in spec.after]
    if spec.paired:
        each = [torch.stack(pair, -1) for pair in zip(each[::2], each[1::2], strict=True)]
    results = [y.expand(shape) for y in each]
    return results if spec.kept is None else [*results, found]


def outcome(function: Callable[..., list[Tensor]], spec: NormSpec, x: Sequence[Tensor]) -> Run:
    """The results, and the gradients of everything that requires one."""
    results = function(spec, x)
    cotangents = [
        torch.linspace(-1.0, 1.5, y.numel(), device=y.device).sin().reshape(y.shape).to(y)
        for y in results
    ]
    leaves = [t for t in x if t.requires_grad]
    differ = [(y, g) for y, g in zip(results, cotangents, strict=True) if y.requires_grad]
    ys, gs = zip(*differ, strict=True) if differ else ((), ())
    grads = torch.autograd.grad(ys, leaves, gs) if leaves else ()
    return Run([y.detach() for y in results], list(grads))


def check(
    spec: NormSpec,
    x: Sequence[Tensor],
    theirs: Callable[..., list[Tensor]] = normalise,
    *,
    added: Mapping[int, float] | None = None,
    **more: Any,
) -> Run:
    """As near to fp64 as the reference, or another: the results, and gradients of everything; for
    `added` see `assert_near`."""

    def ours(of: NormSpec, given: Sequence[Tensor]) -> list[Tensor]:
        return generated(of, given, **more)

    found = outcome(ours, spec, x)
    right = outcome(exact, in_fp64(spec), wide(list(x)))
    assert_near(found, outcome(theirs, spec, x), right, factor=FACTOR, added=added)
    return found
