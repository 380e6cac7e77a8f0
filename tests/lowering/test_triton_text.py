"""Tracing of pointwise programs, and the text that is printed of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from fuser.graph.program import ProgramBuilder
from fuser.lowering.triton import trace as tracing
from fuser.lowering.triton.emitter import Emitter, NotPrintable, Value
from fuser.lowering.triton.trace import Input, trace, trace_gradient
from fuser.torch_private import FakeTensorMode
from tests import accepted
from tests.lowering.emitted import Job, described, run
from tests.lowering.pointwise_cases import Function, numbers, program, result_dtype

ROOT = Path(__file__).parents[2]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def targets(graph: Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if n.op == "call_function"]


def test_views_copies_and_dead_code_are_left_out() -> None:
    def function(x: Tensor, bias: Tensor) -> Tensor:
        unused = torch.exp(x)
        del unused
        return (x.clone().detach() + bias.expand(1, 1, 1, 1).reshape(1, 1, 1, 1)).contiguous()

    graph = trace(program(function), described({"x": torch.ones(1), "bias": torch.tensor(1.0)}))
    assert [n.target for n in graph.nodes if n.op == "placeholder"] == ["x", "bias"]
    assert targets(graph) == ["aten.add.Tensor"]


def test_writes_in_place_are_read_afterwards() -> None:
    def function(x: Tensor) -> Tensor:
        doubled = x * 2
        doubled.add_(1)
        return doubled * x

    x = numbers(torch.float32)
    (ours,) = run([Job(trace(program(function), {"x": Input(x.dtype)}), {"x": "x"})], {"x": x})
    torch.testing.assert_close(ours, (x * 2 + 1) * x, equal_nan=True)


def test_inputs_are_not_written_in_place() -> None:
    graph = trace(program(lambda x: x.mul_(2) + x), {"x": Input(torch.float32)})
    assert targets(graph) == ["aten.mul.Tensor", "aten.add.Tensor"]


def test_dtypes_are_those_of_eager() -> None:
    half, scalar = Input(torch.bfloat16), Input(torch.float64, is_scalar=True)
    p = program(lambda x, c: x * c)
    assert result_dtype(trace(p, {"x": half, "c": scalar})) is torch.bfloat16
    assert result_dtype(trace(p, {"x": half, "c": Input(torch.float32)})) is torch.float32
    assert result_dtype(trace(p, {"x": half, "c": Input(torch.int64)})) is torch.bfloat16


def _within_make_fx(job: Callable[[], Graph]) -> Graph:
    found: list[Graph] = []

    def function(x: Tensor) -> Tensor:
        found.append(job())
        return x + 1

    make_fx(function)(torch.ones(1))
    return found[0]


def test_tracing_sees_nothing_of_its_surroundings() -> None:
    p = program(lambda x, y: torch.tanh(x * y))
    inputs = {n: Input(torch.bfloat16) for n in "xy"}
    plain = targets(trace_gradient(p, inputs, "xy"))

    def afresh() -> Graph:
        tracing._trace.cache_clear()
        tracing._trace_gradient.cache_clear()
        return trace_gradient(p, inputs, "xy")

    contexts = [
        FakeTensorMode(), torch.no_grad(), torch.inference_mode(), torch.device("meta"),
        torch.autocast("cpu", torch.float16),
    ]  # fmt: skip
    for context in contexts:
        with context:
            assert targets(afresh()) == plain
    assert targets(_within_make_fx(afresh)) == plain


# -- text


def lines_of(function: Function, **inputs: torch.dtype) -> list[str]:
    lines: list[str] = []
    graph = trace(program(function), {n: Input(d, n == "c") for n, d in inputs.items()})
    Emitter(lines.append).run(graph, {n: Value(n, d) for n, d in inputs.items()})
    return lines


def test_equal_expressions_are_assigned_once() -> None:
    text = lines_of(lambda x: torch.tanh(x * 2) + torch.tanh(x * 2), x=torch.float32)
    assert text == ["t0 = x * 2.0", "t1 = tanh(t0)", "t2 = t1 + t1"]


def test_what_does_nothing_is_not_written() -> None:
    p = program(lambda x: ((x * 1 - 0) / 1.0) ** 1)
    lines: list[str] = []
    graph = trace(p, {"x": Input(torch.bfloat16)})
    (value,) = Emitter(lines.append).run(graph, {"x": Value("s[None, :]", torch.bfloat16)})
    assert not lines
    assert value == Value("s[None, :]", torch.bfloat16)


def test_half_precision_is_rounded_at_every_node_and_widened_for_nothing() -> None:
    text = lines_of(lambda x: torch.exp(x.float() * 2).to(torch.float16) + 1, x=torch.bfloat16)
    assert text == [
        "t0 = x * 2.0",
        "t1 = tl.exp(t0)",
        "t2 = float16(t1)",
        "t3 = float16(t2 + 1.0)",
    ]


def test_choices_are_not_rounded_again() -> None:
    text = lines_of(lambda x: torch.where(x > 0.1, torch.relu(x), -x), x=torch.bfloat16)
    assert text == [
        "t0 = x > 0.10009765625",  # the number in the dtype in which eager compares
        "t1 = maximum(x, 0.0)",
        "t2 = -1.0 * x",
        "t3 = tl.where(t0, t1, t2)",
    ]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_most_negative_number_stays_finite(dtype: torch.dtype) -> None:
    lowest = torch.finfo(dtype).min
    x, m = torch.ones(4, dtype=dtype), torch.tensor([True, False, True, False])
    builder = ProgramBuilder()
    filled = builder.call(torch.where, builder.input("m"), lowest, builder.input("x"))
    p = builder.finish(filled)
    tensors = {"m": m, "x": x}
    (ours,) = run([Job(trace(p, described(tensors)), {"m": "m", "x": "x"})], tensors)
    assert ours.tolist() == [lowest, 1.0, lowest, 1.0]


@pytest.mark.parametrize(
    ("number", "dtype", "text"),
    [
        (0.1, torch.float32, "0.1"),
        (0.1, torch.float16, "0.0999755859375"),
        (torch.inf, torch.float32, 'float("inf")'),
        (-1e300, torch.float32, 'float("-inf")'),
        (-1e300, torch.float64, "-1e+300"),
        (torch.nan, torch.bfloat16, 'float("nan")'),
        (2.7, torch.int64, "2"),
        (3, torch.bool, "True"),
        (2**40, torch.int64, "1099511627776"),
    ],
)
def test_numbers_are_converted_exactly(number: float, dtype: torch.dtype, text: str) -> None:
    graph = trace(program(lambda x: torch.full_like(x, number)), {"x": Input(dtype)})
    (value,) = Emitter(lambda line: None).run(graph, {"x": Value("x", dtype)})
    assert value == Value(text, dtype)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.igamma(x, x), "igamma has no Triton text"),
        (lambda x: torch.polygamma(2, x), "polygamma of an order other than one"),
        (lambda x: x.to(torch.float8_e5m2).to(torch.float32), "float8_e5m2 is only stored"),
        (lambda x: torch.softmax(x, -1), "_softmax has no Triton text"),
    ],
)
def test_what_has_no_text_is_named(function: Function, reason: str) -> None:
    with pytest.raises(NotPrintable, match=reason):
        lines_of(function, x=torch.float32)


def softcap_alibi_and_mask(s0: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """Gemma's softcap, a bias by distance, a mask."""
    capped = torch.tanh(s0 / 50.0) * 50.0
    return torch.where(c2, capped + c0 * c1, -torch.inf)


def readable(dtype: torch.dtype) -> str:
    """The program and its gradient, as text."""
    dtypes = {"s0": dtype, "c0": torch.float32, "c1": torch.int64, "c2": torch.bool}
    inputs = {n: Input(d, n == "c0") for n, d in dtypes.items()}
    p = program(softcap_alibi_and_mask)
    lines = [f"# {p}, {dtype}"]
    values = {n: Value(n, d) for n, d in dtypes.items()}
    for prefix, graph in (("t", trace(p, inputs)), ("g", trace_gradient(p, inputs, ["s0", "c0"]))):
        emitter = Emitter(lines.append, prefix)
        grad = Value("grad", result_dtype(trace(p, inputs)))
        found = emitter.run(graph, {**values, "grad": grad})
        lines.append(f"# -> {', '.join(f'{v.text}: {v.dtype}' for v in found)}")
        lines.append(f"# functions: {', '.join(sorted(emitter.functions))}")
    return "\n".join(lines) + "\n"


def test_text_is_the_golden_file() -> None:
    text = "\n".join(readable(dtype) for dtype in (torch.float32, torch.bfloat16))
    accepted.check("triton/pointwise.txt", text)


# -- other processes


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_operator_compiles_for_gpus() -> None:
    done = python("-m", "tests.lowering.compile_emitted")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cubin" in done.stdout
    assert "hsaco" in done.stdout


def test_nothing_but_the_functions_needs_triton() -> None:
    modules = "fuser, fuser.lowering.triton.emitter, fuser.lowering.triton.trace"
    done = python("-c", f"import sys; sys.modules['triton'] = None; import {modules}")
    assert done.returncode == 0, done.stderr
