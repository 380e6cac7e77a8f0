"""Pointwise programs: recorded as written, kept as text, run as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.graph.program import IDENTITY_TEXT, Program, ProgramBuilder, from_json, to_json

from .capture import captured, last


def recorded(fn: Callable[..., Tensor], *inputs: Tensor) -> Program:
    """The whole of a captured graph as a program; inputs are named like the parameters."""
    view = captured(fn, inputs)
    builder = ProgramBuilder()
    mapped: dict[Any, Any] = {}
    for node in view.nodes:
        if node.op == "placeholder":
            mapped[node] = builder.input(str(node.target).strip("L_"))
        elif node.op != "output":
            mapped[node] = builder.pointwise(view.op(node), node, mapped)
    return builder.finish(mapped[last(view)])


A = torch.linspace(-2, 2, 12).reshape(3, 4)
B = torch.linspace(1, 3, 4)
M = A > 0

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda a, b: (a * 2 - b) / 3 + 1,
    "scalars on the left": lambda a, b: 2 - a + (1 / b) + 2**a,
    "rsub": lambda a, b: torch.rsub(a, b, alpha=2) if a.ndim else a,
    "alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "softcap": lambda a, b: torch.tanh(a / 30.0) * 30.0,
    "fill with -inf": lambda a, b: a.masked_fill(a > b, -torch.inf),
    "fill with inf": lambda a, b: a.masked_fill(a > b, math.inf),
    "where": lambda a, b: torch.where(a < b, a, -0.0),
    "casts": lambda a, b: (a.to(torch.bfloat16).float() + b.half()).to(torch.float32),
    "type_as": lambda a, b: a.double().type_as(b),
    "clamp": lambda a, b: a.clamp(-1, 1) + b.clamp(min=2),
    "logic": lambda a, b: ((a > 0) & ~(b > 2) | (a == b)).float(),
    "noise": lambda a, b: a.clone().contiguous() + b,
    "activations": lambda a, b: torch.nn.functional.gelu(a, approximate="tanh") + b.relu(),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
}


@pytest.mark.parametrize("name", FORMS)
def test_recorded_runs_as_written(name: str) -> None:
    """Bit for bit, also after a round trip through its text."""
    fn = FORMS[name]
    program = recorded(fn, A, B)
    inputs = dict(zip("ab", (A, B), strict=True))
    again = Program(to_json(from_json(program.text)))
    for version in (program, again):
        used = {n.name for n in version.graph.nodes if n.op == "placeholder"}
        found = version(**{k: v for k, v in inputs.items() if k in used})
        torch.testing.assert_close(found, fn(A, B), rtol=0, atol=0, equal_nan=True)
        assert found.dtype == fn(A, B).dtype
    assert again == program
    assert hash(again) == hash(program)


@pytest.mark.parametrize(
    "number", [math.inf, -math.inf, -0.0, 0.0, 1e-45, 0.1, -1.0, 3, True, 2**53 + 1, math.nan]
)
def test_numbers_survive(number: float | int | bool) -> None:
    builder = ProgramBuilder()
    a = builder.input("a")
    text = builder.finish(builder.call(torch.add, a, number)).text
    (node,) = (n for n in from_json(text).nodes if n.op == "call_function")
    found = node.args[1]
    assert type(found) is type(number)
    assert found == number or (math.isnan(number) and math.isnan(found))
    assert math.copysign(1, found) == math.copysign(1, number)


def test_infinity_stays_json() -> None:
    """`Infinity` is no JSON, and neither is NaN."""
    program = recorded(FORMS["fill with -inf"], A, B)
    assert "Infinity" not in program.text
    assert "NaN" not in program.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.bool])
def test_dtypes_survive(dtype: torch.dtype) -> None:
    builder = ProgramBuilder()
    a = builder.input("a")
    program = builder.finish(builder.graph.call_method("to", (a,), {"dtype": dtype}))
    assert Program(program.text)(a=torch.ones(2, dtype=torch.float64)).dtype is dtype


def test_programs_differ_by_their_numbers() -> None:
    texts = {recorded(lambda a, c=c: a + c, A).text for c in (1.0, 1.5, math.inf, -math.inf)}
    assert len(texts) == 4


def test_identity() -> None:
    assert Program(IDENTITY_TEXT)(p=A) is A
    assert str(Program(IDENTITY_TEXT)) == "p"


def test_formula() -> None:
    assert str(recorded(lambda a, b: a * 0.5 + b, A, B)) == "((a * 0.5) + b)"


def test_dead_code_is_dropped() -> None:
    builder = ProgramBuilder()
    a = builder.input("a")
    builder.call(torch.exp, a)
    program = builder.finish(builder.call(torch.neg, a))
    assert "exp" not in program.text


def test_broadcasting_and_gradients() -> None:
    program = recorded(FORMS["softcap"], A, B)
    a = A.clone().requires_grad_()
    (found,) = torch.autograd.grad(program(a=a, b=B).sum(), a)
    torch.testing.assert_close(found, 1 - torch.tanh(A / 30) ** 2)


def test_arguments_that_have_no_text() -> None:
    builder = ProgramBuilder()
    a = builder.input("a")
    with pytest.raises(KeyError):
        builder.finish(builder.call(torch.add, a, complex(0, 1)))


def test_steps_left_out() -> None:
    found = recorded(lambda a, b: (torch.tanh(a * 2) + b).masked_fill(b > 2, -1.0) * 3, A, B)
    program = Program(found.text.replace('"a"', '"s0"').replace('"b"', '"c0"'))
    names = {n.name for n in program.graph.nodes if n.name.startswith(("add", "masked_fill"))}
    assert len(names) == 2
    bare = program.without(names)
    assert [str(n.target) for n in bare.graph.nodes if n.op == "placeholder"] == ["s0"]
    assert torch.equal(bare(s0=A), torch.tanh(A * 2) * 3)
    assert program.without(()) is program
