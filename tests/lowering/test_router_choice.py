"""When a router goes to its kernels, and what the plan sees to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from fuser.graph.axes import fresh
from fuser.graph.view import GraphView
from fuser.lowering import Context, Emission, Refusal
from fuser.lowering.moe.router.lowering import GeneratedRouter
from fuser.options import Options
from fuser.pattern import Call, Match, Operand
from fuser.plan import _Planner
from fuser.specs import RouterSpec
from tests.lowering.routers import router


def prepared(spec: RouterSpec, experts: int, device: str = "cuda") -> Emission | Refusal:
    """What the kernels say of a call on a device."""
    node = Graph().placeholder("logits")
    node.meta["example_value"] = torch.empty(4, experts, device="meta")
    dims = fresh((4, experts))
    call = Call(spec, {"logits": Operand(node, dims, dims)})
    folder: Any = None
    context = Context(torch.device(device), True, False, "inductor", folder)
    return GeneratedRouter().prepare(call, context)


def test_on_a_gpu_nothing_is_said_that_was_not_measured() -> None:
    found = prepared(router(), 8)
    assert isinstance(found, Emission)
    assert found.name == "triton"
    assert "has not been measured on any GPU" in found.slower


@pytest.mark.parametrize(
    ("spec", "experts", "reason"),
    [
        (router(), 600, "more than 512 experts"),
        (router(choices=40), 64, "more than 32 experts are chosen"),
        (router(weights=lambda g, t: torch.cumsum(g, -1) / t), 8, "cumsum"),
    ],
)
def test_what_the_kernels_refuse(spec: RouterSpec, experts: int, reason: str) -> None:
    found = prepared(spec, experts)
    assert isinstance(found, Refusal)
    assert reason in found.reason


def _chain() -> tuple[GraphView, list[Node]]:
    graph = Graph()
    nodes = [graph.placeholder("x")]
    for function in (torch.sigmoid, torch.relu, torch.exp, torch.tanh):
        nodes.append(graph.call_function(function, (nodes[-1],)))
    graph.output(nodes[-1])
    return GraphView(GraphModule({}, graph)), nodes


def _match(pattern: str, nodes: list[Node], operand: Node) -> Match:
    dims = fresh((2,))
    call = Call(None, {"x": Operand(operand, dims, dims)})
    return Match(pattern, nodes[-1], frozenset(nodes), (nodes[-1],), (call,))


def test_an_operand_of_one_rewrite_is_not_removed_by_another() -> None:
    view, (x, sigmoid, relu, exp, tanh) = _chain()
    planner = _Planner(view, Options())
    planner._claim(_match("one", [tanh], sigmoid))  # it reads beyond what its region reads
    rival = planner._rival(_match("another", [sigmoid, relu], x))
    assert rival == "one, which has priority or was tried before, reads a part of it"
    assert planner._rival(_match("another", [sigmoid], x)) is None
    planner._claim(_match("more", [relu, exp], sigmoid))
    rival = planner._rival(_match("third", [sigmoid], relu))
    assert rival == "more, which has priority or was tried before, has its input"
