"""Find a template around one node of a graph.

Goals are pairs of a template value and a graph value. An operator opens into goals for its
arguments; where it can be read in several ways (operands swapped, a no-op skipped) the search tries
one after the other. Scalars computed from shapes are compared last, when their shapes are bound.
The work at one anchor is bounded, so that matching stays linear in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from ..graph.effects import draws
from ..graph.ops import is_tensor
from ..graph.view import GraphView
from ..pattern import Decline
from . import form
from .equal import equal, is_scalar, same_kind, scalar
from .goals import Branch, Fail, Goal
from .pair import branches
from .trace import Template
from .values import Permuted, Product, Value
from .verify import alike, verify

_STEPS_BASE, _STEPS_EACH = 300, 40
_SIDEWAYS = 64


@dataclass(frozen=True)
class Solution:
    """A template found.

    Attributes:
        bound: for every argument and operation of the template what stands for it.
        region: the nodes that the template covers; no-ops between them included.
    """

    bound: Mapping[Node, Any]
    region: frozenset[Node]


@dataclass
class _State:
    goals: list[Goal]
    bound: dict[Node, Any] = field(default_factory=dict)
    region: dict[Node, None] = field(default_factory=dict)
    deferred: list[Goal] = field(default_factory=list)
    depth: int = 0

    def fork(self, branch: Branch) -> _State:
        bound = self.bound if branch.bind is None else self.bound | dict([branch.bind])
        return _State(
            [*self.goals, *reversed(branch.goals)],
            dict(bound),
            self.region | dict.fromkeys(branch.region),
            list(self.deferred),
            self.depth + (branch.bind is not None),
        )


class Solver:
    """One template in one graph."""

    def __init__(self, template: Template, view: GraphView) -> None:
        self.template, self.view = template, view
        self.operations = frozenset(template.operations)
        self.tensors = frozenset(a for a in template.arguments if is_tensor(a))
        self.scalars = frozenset(template.arguments) - self.tensors

    def solve(self, root: Node, anchor: Node) -> Solution | Decline | None:
        """The template with its node `root` at `anchor`; a Decline holds the deepest failure."""
        budget = _STEPS_BASE + _STEPS_EACH * len(self.operations)
        states = [_State([Goal(root, anchor, anchor)])]
        deepest, depth = Fail("", anchor), 0
        while states:
            state = states.pop()
            found = self._advance(state, states)
            while found is None and budget > 0:
                budget -= 1
                found = self._advance(state, states)
            if isinstance(found, Solution):
                return found
            if found is None:
                return Decline(
                    "the pattern can be read in too many ways here; the search was given up",
                    anchor,
                    state.depth,
                )
            if state.depth > depth and found.reason:
                deepest, depth = found, state.depth
            budget -= 1
        return Decline(deepest.reason, deepest.node, depth) if depth >= 2 else None

    def _advance(self, state: _State, states: list[_State]) -> Solution | Fail | None:
        """One step; None while there is more to do. Alternatives are put on `states`."""
        if not state.goals:
            missing = next((o for o in self.template.outputs if o not in state.bound), None)
            if missing is None:
                return self._finish(state)
            options: list[Branch] | Fail = self._sideways(state, missing)
        else:
            options = self._open(state, state.goals.pop())
        if isinstance(options, Fail):
            return options
        if not options:
            return None
        states.extend(state.fork(branch) for branch in reversed(options[1:]))
        first = state.fork(options[0])
        state.goals, state.bound, state.region = first.goals, first.bound, first.region
        state.depth = first.depth
        return None

    def _open(self, state: _State, goal: Goal) -> list[Branch] | Fail:
        p, g = goal.template, goal.graph
        if not isinstance(p, Node):
            return self._literal(goal)
        if p in state.bound:
            return self._again(state, goal)
        if p in self.scalars:
            if not is_scalar(g) or isinstance(g, (Permuted, Product)):
                return Fail(f"{goal.what or 'an argument'} is a tensor, not a number", goal.reader)
            if not same_kind(p.meta["example_value"], g):
                return Fail(f"{goal.what or 'an argument'} is {_show(g)}", goal.reader)
            state.bound[p] = g
            return []
        if p in self.tensors:
            if is_scalar(g) and not isinstance(g, (Permuted, Product)):
                return Fail(f"expected a tensor for `{p.target}`, found {_show(g)}", goal.reader)
            state.bound[p] = g
            return []
        if p not in self.operations:
            if not is_scalar(g):
                return Fail(f"{goal.what} is a tensor, not a number", goal.reader)
            state.deferred.append(goal)
            return []
        if is_scalar(g) and not isinstance(g, (Permuted, Product)) and not _is_tuple(g):
            return Fail(
                f"expected {form.label(self.template.view, p)}, found {_show(g)}", goal.reader
            )
        return branches(self.template.view, self.view, p, g, goal.reader)

    def _literal(self, goal: Goal) -> list[Branch] | Fail:
        p, g = goal.template, goal.graph
        if isinstance(p, (tuple, list)) and isinstance(g, (tuple, list)) and len(p) == len(g):
            pairs = zip(p, g, strict=True)
            return [Branch([Goal(a, b, goal.reader, goal.what) for a, b in pairs])]
        if isinstance(p, slice) and isinstance(g, slice):
            pairs = zip(_parts(p), _parts(g), strict=True)
            return [Branch([Goal(a, b, goal.reader, goal.what) for a, b in pairs])]
        if isinstance(g, (Permuted, Product)) or not is_scalar(g) or not equal(p, g):
            what = goal.what or "an operand"
            return Fail(f"{what} is {_show(g)} instead of {_show(p)}", goal.reader)
        return []

    def _again(self, state: _State, goal: Goal) -> list[Branch] | Fail:
        """The second use of a template value must be the same value of the graph."""
        known, g, p = state.bound[goal.template], goal.graph, goal.template
        if p in self.scalars:
            if known is g or (is_scalar(g) and equal(known, g)):
                return []
        elif known == g:
            return []
        elif p in self.tensors:
            if not self.view.mutations and self._peel(known)[0] == self._peel(g)[0]:
                return []
        else:
            peeled, skipped = self._peel(g, known)
            if peeled == known:
                state.region.update(dict.fromkeys(skipped))
                return []
            if self._may_repeat(p, known, g):
                ways = branches(self.template.view, self.view, p, g, goal.reader)
                if not isinstance(ways, Fail):
                    return [replace(way, bind=None) for way in ways]
        name = p.target if p.op == "placeholder" else p.name
        return Fail(
            f"`{name}` stands for two different values, {_show(known)} and {_show(g)}", goal.reader
        )

    def _may_repeat(self, p: Node, known: Value, g: Value) -> bool:
        """Whether two values of the graph can be one computation of the same, done twice."""
        if not isinstance(known, Node) or not isinstance(g, Node) or self.view.mutations:
            return False
        op = self.template.view.op(p)
        return not draws(p, op) and alike(known, g)

    def _peel(self, graph: Value, stop: Value | None = None) -> tuple[Value, list[Node]]:
        skipped: list[Node] = []
        while isinstance(graph, Node) and graph != stop and form.is_noop(self.view, graph):
            skipped.append(graph)
            graph = self.view.op(graph).args["input"]
        return graph, skipped

    def _sideways(self, state: _State, output: Node) -> list[Branch] | Fail:
        """Another output: look among the readers of what it shares with what was found."""
        for p in self.template.operations:
            if p in state.bound or not _reaches(p, output, self.operations):
                continue
            known = [state.bound.get(a) for a in p.all_input_nodes]
            shared = next((g for g in known if isinstance(g, Node) and is_tensor(g)), None)
            if shared is None:
                continue
            heads = form.heads(self.template.view, p)
            readers = [u for u in shared.users if u in self.view.order and u not in state.region]
            found = [u for u in readers[:_SIDEWAYS] if form.head(self.view, u) in heads]
            if not found:
                what = form.label(self.template.view, p)
                return Fail(f"no {what} reads this value, as another output does", shared)
            return [Branch([Goal(p, u, u)]) for u in found]
        return Fail("another output of the pattern was not found", output)

    def _finish(self, state: _State) -> Solution | Fail:
        unbound = [a for a in self.template.arguments if a not in state.bound]
        if unbound:
            return Fail(
                f"nothing says what `{unbound[0].target}` stands for", next(iter(state.region))
            )
        outputs = [state.bound[o] for o in self.template.outputs]
        if any(o not in state.region for o in outputs):
            return Fail("an output is no value of its own in the graph", next(iter(state.region)))
        failed = verify(self.template, state.bound, state.deferred)
        return failed or Solution(state.bound, frozenset(state.region))


def _reaches(node: Node, output: Node, operations: frozenset[Node]) -> bool:
    pending, seen = [output], set[Node]()
    while pending:
        current = pending.pop()
        if current is node:
            return True
        if current not in seen:
            seen.add(current)
            pending += [n for n in current.all_input_nodes if n in operations]
    return False


def _parts(part: slice) -> tuple[Any, Any, Any]:
    return part.start, part.stop, part.step


def _is_tuple(graph: Any) -> bool:
    return isinstance(graph, Node) and isinstance(scalar(graph), (tuple, list))


def _show(given: Any) -> str:
    if isinstance(given, (Permuted, Product)):
        return "a part of an einsum"
    if isinstance(given, Node):
        return f"`{given.name}`"
    return repr(given)
