"""Graphs as they would be captured on a GPU: captured on the CPU, their examples moved.

Nothing runs, and no GPU has to be there: tensors of a graph are fake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule

from fuser.graph.fold import Folder
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.lowering import Emission
from fuser.options import Options
from fuser.plan import Failed, Left, Planned, plan
from fuser.rehearsal import Rehearsal

DEVICE = torch.device("cuda", 0)


class _Captured(Exception):
    pass


def graph_of(fn: Callable[..., Any], inputs: Sequence[Tensor], *, grad: bool) -> GraphView:
    """The view of the single graph of a function, with examples on a GPU."""
    graphs: list[GraphModule] = []

    def keep(gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        raise _Captured

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        try:
            torch.compile(fn, backend=keep, fullgraph=True, dynamic=False)(*inputs)
        except Exception:
            if not graphs:
                raise
    (graph,) = graphs
    for node in graph.graph.nodes:
        if isinstance(value(node), FakeTensor):
            node.meta["example_value"] = _moved(value(node))
    return GraphView(graph)


def _moved(x: FakeTensor) -> FakeTensor:
    meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return FakeTensor(x.fake_mode, meta, DEVICE).requires_grad_(x.requires_grad)


def planned(
    fn: Callable[..., Any], inputs: Sequence[Tensor], *, grad: bool = False, **options: Any
) -> Emission | str:
    """What the plan puts there on a GPU, or why it leaves the only attention alone."""
    view = graph_of(fn, inputs, grad=grad)
    with torch.set_grad_enabled(grad):
        decision = _only(view, Options(strict=True, **options))
    if isinstance(decision, Planned):
        (emission,) = decision.emissions
        return emission
    assert isinstance(decision, Left), decision
    return decision.decline.reason


def _only(view: GraphView, options: Options) -> Planned | Left | Failed:
    """What is decided of the only attention; its softcap may be an activation, too."""

    def pattern(found: Planned | Left | Failed) -> str:
        return found.match.pattern if isinstance(found, Planned) else found.pattern

    (decision,) = (d for d in plan(view, options) if pattern(d).startswith("attention."))
    return decision


def replacement(fn: Callable[..., Any], inputs: Sequence[Tensor]) -> Graph:
    """What replaces the only attention in inference, by itself."""
    view = graph_of(fn, inputs, grad=False)
    with torch.no_grad():
        decision = _only(view, Options(strict=True))
        assert isinstance(decision, Planned), decision
        alone = Rehearsal.of(view, decision.match, Folder(view), training=False)
        return alone.replaced(decision.emissions).graph
