"""`python -m fuser bench`, with a backend in Inductor's place that costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuser
from fuser import bench
from fuser.__main__ import main
from fuser.allocated import on_host, peak
from fuser.bench import Comparison, Measured
from fuser.errors import FuserError
from fuser.report.report import Report
from tests.report.models import HERE, Encoder, SelfAttention, tokens

FILE = str(HERE)
ALWAYS = {"fuser.policy": "always"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the graphs that Inductor's stand-in was given."""
    torch._dynamo.reset()
    seen: list[int] = []

    def inductor(mode: Any, options: Any) -> Callable[..., Any]:
        def compiler(gm: Any, inputs: Any) -> Callable[..., Any]:
            seen.append(len(gm.graph.nodes))
            return gm.forward

        return compiler

    monkeypatch.setattr(bench, "inductor", inductor)
    monkeypatch.setattr(bench, "SAMPLE", 0.0)
    monkeypatch.setenv("FUSER_INNER", "eager")
    return seen


def run(fn: Any, *args: Any, training: bool = False) -> Comparison:
    return bench.bench(fn, args, {}, training=training, options=ALWAYS, rounds=3)


def test_three_ways_of_one_model(compiled: list[int]) -> None:
    found = run(Encoder(SelfAttention()), tokens())
    assert list(found.ways) == ["eager", "inductor", "fuser"]
    assert all(len(way.milliseconds) == 3 for way in found.ways.values())
    assert found.ways["eager"].compile_seconds is None
    assert all(found.ways[name].compile_seconds for name in ("inductor", "fuser"))
    assert found.report.expect(attention=1).graphs == 1
    assert len(compiled) == 2  # what comes first in a process, and the model
    assert found.ratio("fuser", "fuser") == 1


@pytest.mark.parametrize("compile_", [partial(torch.compile, backend="eager"), fuser.compile])
def test_the_model_may_be_compiled_already(compile_: Any, compiled: list[int]) -> None:
    run(compile_(Encoder(SelfAttention())), tokens()).report.expect(attention=1)
    assert len(compiled) == 2


def test_loops_over_experts_are_captured_where_they_were(compiled: list[int]) -> None:
    """Of what `fuser.compile` returned; torch.compile breaks the graph at them."""

    def experts(x: Tensor) -> Tensor:
        y, chosen = torch.zeros_like(x), x[:, 0].abs().long() % 2
        for e in range(2):
            (rows,) = torch.where(chosen == e)
            y = y.index_add(0, rows, x[rows] * (e + 1))
        return y

    x = torch.arange(12.0).reshape(6, 2)
    assert run(fuser.compile(experts), x).report.graphs == 1
    assert run(experts, x).report.graphs != 1


def test_ratios_are_medians_within_rounds() -> None:
    """A machine that becomes ten times slower changes none of them."""
    ways = {
        "eager": Measured((1.0, 10.0, 100.0), 2 << 20),
        "inductor": Measured((0.5, 5.0, 50.0), 3 << 20, 7.0),
        "fuser": Measured((0.25, 2.5, 25.0), 1 << 20, 8.0),
    }
    found = Comparison(ways, Report(), training=True, device="a machine")
    assert found.ratio("fuser", "eager") == 4
    assert found.ratio("fuser", "inductor") == 2
    lines = str(found).splitlines()
    assert lines[0] == "forward and backward on a machine"
    assert [line.split() for line in lines[3:6]] == [
        ["eager", "10.000", "1.00x", "0.50x", "2.0"],
        ["inductor", "5.000", "2.00x", "1.00x", "7.0", "3.0"],
        ["fuser", "2.500", "4.00x", "2.00x", "8.0", "1.0"],
    ]
    data = json.loads(json.dumps(found.to_json()))
    assert data["ways"]["fuser"]["over_inductor"] == 2
    assert data["ways"]["fuser"]["peak_bytes"] == 1 << 20
    assert data["ways"]["eager"]["compile_seconds"] is None


def test_rounds_take_turns() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = bench._interleaved(steps, CPU, 3)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order[6:]) == "abcbcacab"


def test_training_leaves_no_gradients_and_has_some() -> None:
    model, seen = nn.Linear(4, 4), list[bool]()
    model.weight.register_hook(lambda grad: seen.append(True))
    run(model, torch.randn(2, 4), training=True)
    assert len(seen) > 9
    assert model.weight.grad is None
    seen.clear()
    run(model, torch.randn(2, 4))
    assert not seen


def test_nothing_to_train() -> None:
    with pytest.raises(FuserError, match="nothing that the model returns has a gradient"):
        run(torch.sin, torch.randn(3), training=True)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def inductor(mode: Any, options: Any) -> Callable[..., Any]:
        def compiler(gm: Any, inputs: Any) -> Callable[..., Any]:
            if any(node.target is torch.cos for node in gm.graph.nodes):
                raise ValueError("no cosines")
            return gm.forward

        return compiler

    monkeypatch.setattr(bench, "inductor", inductor)
    with pytest.raises(FuserError, match=r"(?s)inductor failed on the model: .*no cosines"):
        run(lambda x: torch.cos(x), torch.randn(3))


def test_memory_is_what_a_call_has_at_once() -> None:
    def twice(x: Tensor) -> Tensor:
        y = x.exp()
        del x
        return y.sin().sum()

    x = torch.ones(1000)
    most, largest = on_host(lambda: twice(x))
    assert largest == 4000
    assert 8000 <= most < 8100
    assert peak(lambda: twice(x), CPU) == most


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{FILE}:tiny", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("forward on CPU, ")
    assert "over inductor" in out
    assert "fuser: 1 region rewritten, 1 declined" in out
    command = ["bench", f"{FILE}:tiny", "--training", "--rounds", "2", "--json"]
    assert main([*command, "--policy", "always"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["training"] is True
    assert data["rewritten"] == {"attention.softmax": 1}
    assert len(data["ways"]["fuser"]["rounds"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{FILE}:tiny", "--rounds", "0"], "'0' is not a number of 1 or more"),
        ([f"{FILE}:wrong_inputs"], "on its inputs"),
        ([f"{FILE}:tiny_both_ways", "--training"], "has a gradient"),
        (["no_such_module:tiny"], "cannot import 'no_such_module'"),
    ],
)
def test_wrong_commands(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
