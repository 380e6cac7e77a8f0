"""What a rewrite removes and adds, line by line, against a file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests import accepted
from tests.compiled import compiled
from tests.inner import CATCH, caught


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    return (q @ k.mT * 0.25).masked_fill(~mask, -torch.inf).softmax(-1) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, :2].repeat_interleave(2, dim=1) for x in (k, v))
    return torch.einsum("bhqk,bhkd->bqhd", (q @ k.mT).softmax(-1), v)


def escaping(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = (q @ k.mT).softmax(-1)
    return p @ v, p


def diff(fn: Callable[..., object]) -> str:
    """The declined reasons, the removed and added lines, and the graph that came out."""
    graphs = caught()
    ours = compiled(fn, [torch.zeros(2, 4, 6, 16) for _ in range(3)], inner=CATCH)
    lines = [f"== {fn.__name__}"]
    for miss in ours.record.near_misses:
        lines.append(f"! {miss.pattern}: {miss.reason}")
    for made in ours.record.rewritten:
        lines.append(f"@@ {made.pattern} -> {made.lowering}")
        lines += [f"- {line}" for line in made.removed]
        lines += [f"+ {line}" for line in made.added]
    lines += [str(graph.graph).strip() for graph in graphs]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())


def test_graphs_are_the_golden_file() -> None:
    text = "\n\n".join(diff(fn) for fn in (plain, causal, grouped, escaping)) + "\n"
    accepted.check("diff.txt", text)
