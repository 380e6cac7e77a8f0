"""What fuser costs while compiling: its own time, against Inductor's cold compile.

    chains    N nodes in which nothing matches, of several kinds, N up to 20,000: milliseconds per
              1,000 nodes, and whether they grow linearly
    graphs    real models, with and without something to match

Our part alone is timed inside a Dynamo compile, with fuser given `{"fuser.inner": "eager"}`, on a
copy of the captured graph each time (a rewrite happens in place). "cold" is the first call of
`torch.compile(fn, backend="inductor")` with empty caches, Dynamo's part included.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import fx, nn

from benchmarks.devices import Device
from benchmarks.figures import spread
from benchmarks.providers import INDUCTOR, Function
from benchmarks.records import Row, make_row
from benchmarks.runner import first_calls
from benchmarks.targets import Check
from fuser.distinct import distinct

Tensor = torch.Tensor
Backend = Callable[..., Any]

SIZES = (100, 300, 1_000, 3_000, 10_000, 20_000)
QUICK_SIZES = (100, 1_000)
COLD_LIMIT, QUICK_COLD_LIMIT = 1_000, 100
"""Longest chain that Inductor is asked to compile: beyond, it takes minutes and tells no more."""
REPEATS = 5
SHARE_TARGET, MS_TARGET, GROWTH_TARGET = 0.01, 50.0, 1.1


@dataclass(frozen=True)
class Graph:
    """A function to compile, and what is known of it."""

    name: str
    fn: Function
    args: tuple[Tensor, ...]
    cold: bool
    chain: bool = True


@dataclass
class Cost:
    """What one graph cost.

    Attributes:
        graph: the graph.
        nodes: of the captured graph, all subgraphs counted.
        ours_ms: fuser alone, one figure a repetition.
        cold_s: Inductor's cold compile; None where it was left out.
    """

    graph: Graph
    nodes: int = 0
    ours_ms: list[float] = field(default_factory=list[float])
    cold_s: float | None = None

    @property
    def ms_per_1000(self) -> float:
        return spread(self.ours_ms)[1] * 1e3 / self.nodes

    @property
    def share(self) -> float | None:
        """Our time over Inductor's cold compile."""
        return None if self.cold_s is None else spread(self.ours_ms)[1] / 1e3 / self.cold_s


def pointwise(x: Tensor, w: Tensor, n: int) -> Tensor:
    """add, mul, relu, over and over."""
    for i in range(n // 3):
        x = torch.relu((x + 1.0) * (0.5 + i))
    return x


def linear(x: Tensor, w: Tensor, n: int) -> Tensor:
    """Residual blocks of matmuls: contractions, but no softmax between two of them."""
    for _ in range(n // 3):
        x = x + F.gelu(x @ w)
    return x


def softmaxes(x: Tensor, w: Tensor, n: int) -> Tensor:
    """Anchors with no contraction around them."""
    for _ in range(n // 3):
        x = torch.softmax(x * 2.0, dim=-1) + x
    return x


def near_misses(x: Tensor, w: Tensor, n: int) -> Tensor:
    """Everything that attention has, with the softmax over the queries: must be declined."""
    for _ in range(n // 5):
        x = x + torch.softmax(x @ x.transpose(-2, -1) * 0.5, dim=-2) @ x
    return x


CHAINS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "pointwise": pointwise,
    "linear": linear,
    "softmaxes": softmaxes,
    "near_misses": near_misses,
}


def chain(kind: str, nodes: int, device: torch.device, cold: bool) -> Graph:
    """A chain of about `nodes` nodes; `cold`: Inductor's compile of it is timed too."""
    body = CHAINS[kind]

    def fn(x: Tensor, w: Tensor) -> Tensor:
        return body(x, w, nodes)

    args = torch.randn(4, 8, 8, device=device), torch.randn(8, 8, device=device)
    return Graph(kind, fn, args, cold=cold)


class ConvNet(nn.Module):
    """Twelve residual blocks of convolutions and BatchNorm: nothing to match."""

    def __init__(self, width: int = 32, blocks: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        parts = (self._block(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(parts)

    @staticmethod
    def _block(width: int) -> nn.Module:
        conv, again = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), again, nn.BatchNorm2d(width))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x.mean((2, 3))


def real_graphs(quick: bool, device: torch.device) -> list[Graph]:
    """A convolutional network, and the models of `benchmarks.models` at a small size."""
    net = ConvNet(blocks=2 if quick else 12).to(device).eval()

    def conv_net(image: Tensor) -> Tensor:
        return net(image)

    image = torch.randn(1, 3, 32, 32, device=device)
    graphs = [Graph("conv_net", conv_net, (image,), cold=True, chain=False)]
    if quick:
        return graphs
    from benchmarks.models import MODELS, VOCABULARY, Size, step_of

    ids = torch.randint(0, VOCABULARY, (1, 64), device=device)
    for name, spec in MODELS.items():
        model = spec.make(Size(1, 64, 4, 128, 4)).to(device).eval()
        graphs.append(Graph(name, step_of(model), (ids,), cold=True, chain=False))
    return graphs


def all_graphs(quick: bool, device: torch.device) -> list[Graph]:
    """Chains of every kind and size, then the real graphs."""
    sizes = QUICK_SIZES if quick else SIZES
    limit = QUICK_COLD_LIMIT if quick else COLD_LIMIT
    chains = [chain(kind, n, device, cold=n <= limit) for kind in CHAINS for n in sizes]
    return chains + real_graphs(quick, device)


def cost(graph: Graph, fuser: Backend, repeats: int = REPEATS) -> Cost:
    """Times fuser alone, then Inductor's cold compile of the same function."""
    found = Cost(graph)

    def timing(gm: fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Function:
        found.nodes += count_nodes(gm)
        taken: list[float] = []
        # One more than is kept: the first pays for lazy imports.
        for copy in [copy_of(gm) for _ in range(repeats + 1)]:
            gc.collect()
            start = time.perf_counter()
            fuser(copy, inputs, options={"fuser.inner": "eager"})
            taken.append((time.perf_counter() - start) * 1e3)
        kept = taken[1:]
        before = found.ours_ms or [0.0] * len(kept)
        found.ours_ms = [a + b for a, b in zip(before, kept, strict=True)]
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(distinct(graph.fn, "ours"), backend=timing)(*graph.args)
        if graph.cold:
            torch._dynamo.reset()
            cold = torch.compile(distinct(graph.fn, INDUCTOR), backend=INDUCTOR)
            (found.cold_s,) = first_calls([lambda: cold(*graph.args)], backward=False)
    return found


def copy_of(gm: fx.GraphModule) -> fx.GraphModule:
    """The same nodes with the same meta in a graph of their own; parameters are shared."""
    graph = fx.Graph()
    output = graph.graph_copy(gm.graph, values := {})
    graph.output(output)
    copy = fx.GraphModule(gm, graph)
    copy.meta.update(gm.meta)
    for old, new in values.items():
        new.meta = dict(old.meta)
    return copy


def count_nodes(gm: fx.GraphModule) -> int:
    """Nodes of the graph and of every graph inside it."""
    inner = (m for m in gm.modules() if isinstance(m, fx.GraphModule))
    return sum(len(m.graph.nodes) for m in inner)


def growth(costs: Sequence[Cost]) -> float | None:
    """How time grows with the node count: the slope of log time over log nodes (1 is linear).

    Least squares over the fastest repetitions (of an algorithm, not of the machine's other work)
    of chains of 1,000 nodes and more, where fixed costs no longer show.
    """
    points = [(math.log(c.nodes), math.log(min(c.ours_ms))) for c in costs if c.nodes >= 900]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    up = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return up / sum((x - mean_x) ** 2 for x, _ in points)


def checks(costs: Sequence[Cost]) -> list[Check]:
    """≤1% of Inductor's cold compile, ≤50 ms per 1,000 nodes, linear; chains and conv net."""
    nothing = [c for c in costs if c.graph.chain or c.graph.name == "conv_net"]
    found: list[Check] = []
    shares = [c.share for c in nothing if c.share is not None]
    if shares:
        text = "fuser's time, percent of Inductor's cold compile, largest"
        found.append(Check(text, 100 * max(shares), 100 * SHARE_TARGET, least=False))
    if nothing:
        most = max(c.ms_per_1000 for c in nothing)
        found.append(Check("ms per 1,000 nodes, largest", most, MS_TARGET, least=False))
    for kind in CHAINS:
        slope = growth([c for c in costs if c.graph.chain and c.graph.name == kind])
        if slope is not None:
            text = f"{kind}: time grows as nodes to the power"
            found.append(Check(text, slope, GROWTH_TARGET, least=False))
    return found


def rows(costs: Sequence[Cost], device: Device) -> list[Row]:
    """CSV rows: fuser_ms, ms_per_1000_nodes, and where measured inductor's compile_s and share."""
    found: list[Row] = []
    for c in costs:
        low, middle, high = spread(c.ours_ms)
        scale = 1e3 / c.nodes
        name, x = f"compile.{c.graph.name}", ("nodes", c.nodes)
        figures: list[tuple[str, str, float | tuple[float, float, float]]] = [
            ("fuser", "compile_ms", (low, middle, high)),
            ("fuser", "ms_per_1000_nodes", (low * scale, middle * scale, high * scale)),
        ]
        if c.cold_s is not None and c.share is not None:
            figures.append((INDUCTOR, "compile_s", c.cold_s))
            figures.append(("fuser", "percent_of_inductor", 100 * c.share))
        found += [
            make_row(name, who, "compile", metric, x, y, {}, device) for who, metric, y in figures
        ]
    return found


def show(costs: Sequence[Cost], console: Console) -> None:
    """Prints the table."""
    table = Table(title="compile: fuser alone, and Inductor's cold compile of the same")
    table.add_column("graph")
    for header in ("nodes", "fuser ms", "ms per 1,000", "inductor cold s", "share"):
        table.add_column(header, justify="right")
    for c in costs:
        low, middle, high = spread(c.ours_ms)
        cold = "-" if c.cold_s is None else f"{c.cold_s:.1f}"
        share = "-" if c.share is None else f"{c.share:.2%}"
        ours = f"{middle:.1f} ({low:.1f}-{high:.1f})"
        table.add_row(c.graph.name, f"{c.nodes:,}", ours, f"{c.ms_per_1000:.2f}", cold, share)
    console.print(table)
