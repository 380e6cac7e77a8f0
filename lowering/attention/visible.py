"""Which scores are -inf whatever q and k are: what a kernel may skip, if a whole tile is.

The end of a score program is walked backwards, over the steps that hide something by a captured
tensor or a position: `where(keep, score, -inf)`, `score.masked_fill(gone, -inf)`, `score + bias`
where the bias is -inf; and over those that leave -inf as it is, which are casts and positive
factors. Anything else ends the walk: what lies before it is taken for visible.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.program import Program, ProgramBuilder


@dataclass(frozen=True)
class Visible:
    """Where a score may be more than -inf.

    Attributes:
        condition: a program of captured tensors, positions and sizes.
        in_score: a part of it comes from the score program, which hides those positions by itself.
        in_mask: where it holds, the mask beside the score holds too.
    """

    condition: Program
    in_score: bool
    in_mask: bool

    @property
    def captured(self) -> tuple[int, ...]:
        """Numbers of the captured tensors that it depends on."""
        return tuple(int(name[1:]) for name in self.condition.inputs if name[0] == "c")


@lru_cache(maxsize=1024)
def visible(
    score: Program, mask: Program | None, unread: frozenset[str] = frozenset()
) -> Visible | None:
    """What is visible under a score program and a mask beside it; None where all may be.

    Args:
        score: of a spec.
        mask: of the same spec.
        unread: captured tensors that are not to be read; what they hide counts as visible.
    """
    reader = _Reader()
    hidden = [part for part in reader.score(score) if not unread & _inputs(part)]
    beside = [] if mask is None or unread & set(mask.inputs) else [reader.result(mask)]
    parts = [*hidden, *beside]
    if not parts:
        return None
    whole = reduce(partial(reader.builder.call, operator.and_), parts)
    return Visible(reader.builder.finish(whole), bool(hidden), bool(beside))


def _inputs(node: Node) -> set[str]:
    """Names of the inputs that a step depends on."""
    if node.op == "placeholder":
        return {node.name}
    return set[str]().union(*map(_inputs, node.all_input_nodes))


@dataclass(frozen=True)
class _Step:
    """One step of the walk.

    Attributes:
        score: what comes before it.
        keeps: it makes a score -inf where one of these is false.
        infinite: where one of these is true, a score that was -inf is no more.
    """

    score: Node
    keeps: tuple[Node, ...] = ()
    infinite: tuple[Node, ...] = ()


class _Reader:
    """Copies what conditions consist of into one program."""

    def __init__(self) -> None:
        self.builder = ProgramBuilder()
        self._inputs: dict[str, Node] = {}
        self._copies: dict[Node, Node] = {}

    def result(self, program: Program) -> Node:
        """A whole program, copied."""
        return self._copy(_result(program))

    def score(self, program: Program) -> list[Node]:
        """Conditions that all hold where a score is visible."""
        live: set[Node] = set()
        result = _result(program)
        for node in result.graph.nodes:
            if node.op == "placeholder" and str(node.target)[0] == "s":
                live.add(node)
            elif live & set(node.all_input_nodes):
                live.add(node)
        found: list[Node] = []
        infinite: list[Node] = []
        while result in live:
            rule = _RULES.get(str(getattr(result.target, "__name__", result.target)).strip("_"))
            step = None if rule is None else rule(self, result, live)
            if step is None:
                break
            for keep in step.keeps:
                found.append(reduce(partial(self.builder.call, operator.or_), infinite, keep))
            infinite += step.infinite
            result = step.score
        return found

    # -- the steps

    def _cast(self, node: Node, live: set[Node]) -> _Step | None:
        dtype = node.kwargs.get("dtype")
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        return _Step(node.all_input_nodes[0]) if floating else None

    def _scale(self, node: Node, live: set[Node]) -> _Step | None:
        score, factor = node.args[:2]
        if not isinstance(score, Node):
            score, factor = factor, score
        positive = isinstance(factor, (int, float)) and 0 < factor < math.inf
        return _Step(score) if positive and isinstance(score, Node) else None

    def _divide(self, node: Node, live: set[Node]) -> _Step | None:
        return self._scale(node, live) if node.args[0] in live and not node.kwargs else None

    def _where(self, node: Node, live: set[Node]) -> _Step | None:
        keep, score, other = node.args
        if keep in live or (score in live) == (other in live):
            return None
        if score in live:
            return self._filled(self._copy(keep), other, score)
        return self._filled(self._not(keep), score, other)

    def _fill(self, node: Node, live: set[Node]) -> _Step | None:
        score, gone, value = node.args
        if score not in live or gone in live or value in live:
            return None
        return self._filled(self._not(gone), value, score)

    def _filled(self, keep: Node, value: Any, score: Any) -> _Step | None:
        if isinstance(value, Node):
            number = self.builder.call(operator.ne, self._copy(value), -math.inf)
            return _Step(score, (self.builder.call(operator.or_, keep, number),))
        return _Step(score, (keep,)) if value == -math.inf else None

    def _add(self, node: Node, live: set[Node]) -> _Step | None:
        score, bias = node.args
        if score not in live:
            score, bias = bias, score
        if bias in live or node.kwargs or not isinstance(score, Node):
            return None
        if isinstance(bias, (int, float)):
            return _Step(score) if abs(bias) < math.inf else None
        bias = self._copy(bias)
        finite = self.builder.call(operator.lt, bias, math.inf)
        too_large = self.builder.call(torch.logical_not, finite)
        return _Step(score, (self.builder.call(operator.ne, bias, -math.inf),), (too_large,))

    # -- copies

    def _not(self, condition: Any) -> Node:
        return self.builder.call(torch.logical_not, self._copy(condition))

    def _copy(self, node: Any) -> Any:
        if not isinstance(node, Node):
            return node
        if node.op == "placeholder":
            name = str(node.target)
            if name not in self._inputs:
                self._inputs[name] = self.builder.input(name)
            return self._inputs[name]
        if node not in self._copies:
            self._copies[node] = self.builder.graph.node_copy(node, self._copy)
        return self._copies[node]


_Rule = Callable[[_Reader, Node, set[Node]], _Step | None]
_RULES: dict[str, _Rule] = {
    "to": _Reader._cast, "mul": _Reader._scale, "truediv": _Reader._divide, "div": _Reader._divide,
    "where": _Reader._where, "masked_fill": _Reader._fill, "add": _Reader._add,
}  # fmt: skip


def _result(program: Program) -> Node:
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    found = output.args[0]
    assert isinstance(found, Node)
    return found
