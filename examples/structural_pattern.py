"""A structural pattern: what two plain functions cannot say, as a class that proves it.

`log(softmax(x))` loses everything below the smallest float; `log_softmax` does not. The axis, the
spelling and the dtype of the softmax may be any, and nothing but the logarithm may read it.

    python -m examples.structural_pattern
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

import fuser
from fuser.graph.ops import Kind
from fuser.graph.view import GraphView


class LogOfSoftmax(fuser.Pattern):
    """`log(softmax(x, dim))`, however either is called."""

    id: ClassVar[str] = "mine.log_of_softmax"

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return [node for node in view.nodes if view.op(node).name == "log"]

    def match(self, view: GraphView, anchor: Node) -> fuser.Match | fuser.Decline | None:
        softmax = view.op(anchor).args["input"]
        op = view.op(softmax)
        if op.kind is not Kind.SOFTMAX or view.op(anchor).inplace:
            return None
        if op.args.get("dtype") is not None:
            return fuser.Decline("the softmax casts its input", softmax)
        source, dim = op.args["input"], op.args["dim"]
        return fuser.Match(
            self.id,
            anchor,
            nodes=frozenset([anchor, softmax]),
            outputs=(anchor,),
            facts={"axis": str(dim)},
            replacement=lambda builder: [builder.call(torch.log_softmax, source, dim)],
        )


def model(x: Tensor) -> Tensor:
    """A user's code."""
    return torch.log(x.softmax(dim=-1)).sum(-1)


def leaks(x: Tensor) -> Tensor:
    """The probabilities are used elsewhere: the engine itself declines."""
    p = torch.softmax(x, 1)
    return p.log() * p


def main() -> None:
    """Compiles both, and prints what was found and what was not, and why."""
    fuser.register_pattern(LogOfSoftmax)
    try:
        x = torch.tensor([[0.0, -200.0], [3.0, 1.0]])
        report = fuser.explain(model, x)
        print(report)
        report.expect(mine=1)
        compiled = torch.compile(model, backend="fuser", options={"fuser.inner": "aot_eager"})
        print("eager:", model(x).tolist(), "compiled:", compiled(x).tolist())
        assert not model(x).isfinite().all()
        assert compiled(x).isfinite().all()
        print(fuser.explain(leaks, x))
    finally:
        fuser.unregister_pattern(LogOfSoftmax.id)


if __name__ == "__main__":
    main()
