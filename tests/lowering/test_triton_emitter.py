"""Every pointwise operator as Triton text, interpreted, against the program in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from fuser.graph.program import Program
from fuser.lowering.triton.emitter import Emitter, Value
from fuser.lowering.triton.source import load
from fuser.lowering.triton.trace import Input, trace, trace_gradient
from tests.lowering import emitted
from tests.lowering.emitted import Job, described, run
from tests.lowering.pointwise_cases import (
    MIXED,
    ONE,
    TWO,
    UNTESTED,
    Function,
    mixed,
    numbers,
    pairs,
    program,
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SUMS = {"add", "sub", "rsub", "add_alpha", "addcmul", "addcdiv", "lerp", "lerp_tensor"}
"""Errors are counted in units of the largest operand, which may cancel."""
CROSSING = {"tanh", "gelu", "gelu_tanh", "mish"}
"""Derivatives with a root, or 1 - y**2: errors are counted in units of the cotangent."""
QUOTIENTS = ("fmod", "remainder", "floor_divide", "div_floor", "floor_number", "x % c")
"""Beyond a quotient of 2**28 nothing is left of the remainder."""


def units(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of a dtype, at fp64 numbers."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(reference.abs().clamp(min=info.tiny, max=info.max))
    return torch.ldexp(torch.full_like(reference, info.eps), exponent - 1)


def judge(
    name: str, ours: Tensor, eager: Tensor, exact: Tensor, scale: Tensor | None = None
) -> str:
    """What is wrong with a result, in words; nothing where it is as near as eager's.

    As near: within twice eager's error and four units in the last place, of the result or of
    `scale` where that is larger. Special values must be eager's, or those of eager in fp64.
    """
    assert ours.dtype == eager.dtype, name
    if not eager.dtype.is_floating_point:
        bad = ours != eager
        return f"{name}: differs at {bad.nonzero().flatten().tolist()[:5]}" if bad.any() else ""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        bad = (kind(ours) != kind(eager)) & (kind(ours) != kind(exact.to(ours.dtype)))
        if bad.any():
            return f"{name}: {kind.__name__} differs at {bad.nonzero().flatten().tolist()[:5]}"
    fine = torch.isfinite(exact) & torch.isfinite(ours) & torch.isfinite(eager)
    largest = exact.abs() if scale is None else exact.abs().maximum(scale.double().abs())
    slack = 300 if ours.dtype is torch.float64 else 4  # in fp64 a power errs by its logarithm
    allowed = 2 * (eager.double() - exact).abs() + slack * units(largest, ours.dtype)
    excess = ((ours.double() - exact).abs() / allowed)[fine]
    if excess.numel() and excess.max() > 1:
        at = int(fine.nonzero().flatten()[excess.argmax()])
        return f"{name}: {float(excess.max()):.2f} times the allowed error at {at}"
    return ""


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}


def names_of(p: Program) -> list[str]:
    return [str(n.target) for n in p.graph.nodes if n.op == "placeholder"]


def check(cases: Mapping[str, Function], tensors: Mapping[str, Tensor]) -> None:
    """All programs in one kernel, each against eager."""
    programs = {name: program(function) for name, function in cases.items()}
    inputs = described(tensors)
    jobs = [Job(trace(p, inputs), {n: n for n in names_of(p)}) for p in programs.values()]
    found: list[str] = []
    for (name, p), ours in zip(programs.items(), run(jobs, tensors), strict=True):
        given = {n: tensors[n] for n in names_of(p)}
        eager, exact = (torch.as_tensor(p(**g)).expand(ours.shape) for g in (given, widened(given)))
        keep = torch.ones_like(ours, dtype=torch.bool)
        operands = [
            torch.nan_to_num(t.double().abs(), 0, 0).expand(ours.shape) for t in given.values()
        ]
        if name.startswith(QUOTIENTS):
            keep = operands[0] < (operands[1] if len(operands) > 1 else 0.7) * 2**28
        scale = torch.stack(operands).amax(0)[keep] if name in SUMS else None
        found.append(judge(name, ours[keep], eager[keep], exact[keep], scale))
    assert not [text for text in found if text]


def test_every_operator_has_a_case() -> None:
    spelled_out = {name for name in UNTESTED if name.startswith("bitwise_")}
    assert len(spelled_out) == 6  # of integers: `~ & | ^ << >>`
    casts = {"bool", "int", "long", "type", "type_as"}
    assert UNTESTED == spelled_out | casts | {"alias", "contiguous", "clone"}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_operand(dtype: torch.dtype) -> None:
    check(ONE, {"x": numbers(dtype)})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_two_operands(dtype: torch.dtype) -> None:
    check(TWO, dict(zip("xy", pairs(dtype), strict=True)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scalars_integers_and_bools(dtype: torch.dtype) -> None:
    check(MIXED, mixed(dtype))


# -- gradients


def gradients(p: Program, tensors: Mapping[str, Tensor], grad: Tensor) -> list[Tensor]:
    """Eager's, and zeros where the result does not depend on an operand."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    out = p(**leaves)
    found = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype), allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g
        for g, t in zip(found, tensors.values(), strict=True)
    ]


def differentiable(p: Program, tensors: Mapping[str, Tensor]) -> bool:
    """Not floor_divide, for which eager has no formula either."""
    out = p(**{n: t.detach().requires_grad_() for n, t in tensors.items()})
    return out.requires_grad and "NotImplemented" not in type(out.grad_fn).__name__


def check_gradients(cases: Mapping[str, Function], tensors: Mapping[str, Tensor]) -> None:
    """All gradients in one kernel; eager's kernels disagree among themselves at NaN."""
    programs = {name: program(function) for name, function in cases.items()}
    programs = {name: p for name, p in programs.items() if differentiable(p, tensors)}
    size = next(iter(tensors.values())).numel()
    grad = torch.randn(size, generator=torch.Generator().manual_seed(1))
    given, jobs = dict(tensors), list[Job]()
    for p in programs.values():
        dtype = p(**tensors).dtype
        cotangent = f"g_{str(dtype).removeprefix('torch.')}"
        given[cotangent] = grad.to(dtype)
        names = {**{n: n for n in tensors}, "grad": cotangent}
        jobs.append(Job(trace_gradient(p, described(tensors), list(tensors)), names))
    results = iter(run(jobs, given))
    found: list[str] = []
    for (name, p), job in zip(programs.items(), jobs, strict=True):
        g = given[job.inputs["grad"]]
        eager, exact = gradients(p, tensors, g), gradients(p, widened(tensors), g.double())
        for which, e, x in zip(tensors, eager, exact, strict=True):
            keep = regular(name, tensors)
            scale = g[keep] if name in CROSSING else None
            found.append(judge(f"{name} by {which}", next(results)[keep], e[keep], x[keep], scale))
    assert not [text for text in found if text]


def regular(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """No NaN; no pole, where eager's rounding of pi gives a huge number in place of inf."""
    operands = torch.stack(list(tensors.values()))
    pole = (operands <= 0) & (operands == operands.floor()) if name == "digamma" else False
    return ~(operands.isnan() | pole).any(0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_of_one_operand(dtype: torch.dtype) -> None:
    check_gradients(ONE, {"x": numbers(dtype)})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_of_two_operands(dtype: torch.dtype) -> None:
    check_gradients(TWO, dict(zip("xy", pairs(dtype), strict=True)))


def gradient(function: Function, wrt: str, **tensors: Tensor) -> list[float]:
    """By one operand, for a cotangent of ones."""
    p = program(function)
    graph = trace_gradient(p, described(tensors), [wrt])
    ones = torch.ones(tensors[wrt].shape, dtype=p(**tensors).dtype)
    (found,) = run([Job(graph, {**{n: n for n in tensors}, "grad": "g"})], {**tensors, "g": ones})
    return found.tolist()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, m: x.masked_fill(m, -torch.inf), [0.0, 1.0, 0.0, 1.0]),
        (lambda x, m: torch.where(m, 0.0, torch.exp(x)), [0.0, 1.0, 0.0, math.exp(-2)]),
        (lambda x, m: torch.maximum(x, x * m), [1.0, 0.5, 1.0, 0.0]),
        (lambda x, m: torch.abs(x) * m, [1.0, 0.0, -1.0, 0.0]),
        (lambda x, m: torch.relu(x), [1.0, 0.0, 0.0, 0.0]),
        (lambda x, m: x**2 + m, [2.0, 0.0, -2.0, -4.0]),
        (lambda x, m: (x > 0) * 1.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_gradients_keep_to_conventions(function: Function, expected: list[float]) -> None:
    x = torch.tensor([1.0, 0.0, -1.0, -2.0])
    mask = torch.tensor([True, False, True, False])
    assert gradient(function, "x", x=x, m=mask) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_zero_where_another_branch_is_undefined() -> None:
    x = torch.tensor([torch.inf, torch.nan, 1.0, -torch.inf])
    mask = torch.tensor([True, True, False, True])
    assert gradient(lambda x, m: x.masked_fill(m, 0.0), "x", x=x, m=mask) == [0.0, 0.0, 1.0, 0.0]


def test_gradients_are_in_the_order_asked_for_and_literal_where_there_is_none() -> None:
    p = program(lambda a, b, c: a * 2 + b * b)
    inputs = {n: Input(torch.float32) for n in "abc"}
    graph = trace_gradient(p, inputs, ["c", "b", "a"])
    placeholders = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    assert placeholders == ["a", "b", "c", "grad"]
    lines: list[str] = []
    values = Emitter(lines.append).run(graph, {n: Value(n, torch.float32) for n in placeholders})
    assert lines == ["t0 = grad * b", "t1 = t0 + t0", "t2 = grad * 2.0"]
    assert values == [Value(t, torch.float32) for t in ("0.0", "t1", "t2")]


# -- broadcasting

KINDS = ("tile", "row", "column", "scalar", "literal")
BROADCAST: dict[str, Function] = {
    name: TWO[name]
    for name in (
        "add", "mul", "div", "pow", "lt", "eq", "maximum", "fmin", "atan2", "remainder", "fmod",
        "floor_divide", "logical_and", "logical_xor", "copysign", "hypot", "xlogy", "logaddexp",
        "where", "clamp_tensors", "lerp", "masked_fill", "div_trunc", "float_power",
    )
}  # fmt: skip
BROADCAST |= {
    "masks": lambda x, y: (x > 0) & (y < 1) | ~(x < y) ^ (y > 0.5),
    "activations": lambda x, y: torch.tanh(x) + torch.nn.functional.gelu(y) * torch.sigmoid(x * y),
    "constants": lambda x, y: torch.where(x > 0, 1.0, 2.0) + torch.where(y > 0, 3.0, 4.0),
}


def operand(letter: str, kind: str) -> Value:
    text = {
        "tile": f"tl.load({letter} + rows[:, None] * 4 + columns[None, :])",
        "row": f"tl.load({letter} + columns)[None, :]",
        "column": f"tl.load({letter} + rows)[:, None]",
        "scalar": f"tl.load({letter})",
        "literal": {"x": "-1.25", "y": "0.5"}[letter],
    }
    return Value(text[kind], torch.float32)


def seen(x: Tensor, kind: str, number: float) -> Tensor:
    """What `operand` reads of a 4 x 4 tensor."""
    flat = x.flatten()
    shapes = {"tile": x, "row": flat[:4], "column": flat[:4, None], "scalar": flat[0]}
    return torch.tensor(number) if kind == "literal" else shapes[kind]


@pytest.mark.parametrize("first", KINDS)
def test_operands_broadcast(first: str) -> None:
    x, y = torch.randn(4, 4), torch.rand(4, 4) + 0.25
    lines = ["rows, columns = tl.arange(0, 4), tl.arange(0, 4)"]
    lines.append("place = rows[:, None] * 4 + columns[None, :]")
    functions, expected = {"tanh"}, list[Tensor]()
    for second in KINDS:
        for name, function in BROADCAST.items():
            emitter = Emitter(lines.append, f"t{len(lines)}_")
            graph = trace(program(function), {n: Input(torch.float32) for n in "xy"})
            (value,) = emitter.run(graph, {"x": operand("x", first), "y": operand("y", second)})
            stored = f"tl.zeros([4, 4], tl.float32) + {value.text}"
            if value.dtype is torch.bool:
                stored = f"tl.where({value.text}, tl.full([4, 4], 1.0, tl.float32), 0.0)"
            lines.append(f"tl.store(out + {16 * len(expected)} + place, {stored})  # {name}")
            expected.append(function(seen(x, first, -1.25), seen(y, second, 0.5)).float())
            functions |= emitter.functions
    text = emitted.IMPORTS.format(functions=", ".join(sorted(functions)))
    text += "@triton.jit\ndef kernel(x, y, out):\n" + "".join(f"    {line}\n" for line in lines)
    out = torch.zeros(len(expected), 4, 4)
    with np.errstate(all="ignore"):
        load(text).kernel[(1,)](x, y, out)
    for ours, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(ours, wanted.expand(4, 4), rtol=1e-5, atol=1e-6, equal_nan=True)
