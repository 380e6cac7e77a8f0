"""Patterns given as two plain PyTorch functions: what to find, and what to put there.

The functions are recorded once, when the pattern is registered; examples only serve to record them.
`find` is then looked for on the canonical view, which reads many spellings as one, and at other
shapes, ranks and dtypes; what it would compute from what was bound is compared with the graph,
node for node, before anything is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from .errors import PatternError
from .graph.effects import draws
from .graph.ops import Kind, is_tensor, value
from .graph.view import GraphView
from .pattern import Decline, Match, Pattern
from .template import form
from .template.insert import insert, size_source
from .template.solve import Solution, Solver
from .template.trace import Template, outputs_of, record
from .template.values import Permuted, Product
from .template.verify import fake_mode, realise
from .torch_private import faked, has_gradient, is_data_dependent, pytree

Function = Callable[..., Any]


class FunctionPattern(Pattern):
    """Two recorded functions; made by `make`, one subclass for each pattern.

    Attributes:
        find, replace, example_inputs: what was registered.
        where: called with the bound arguments by name (fake tensors, numbers); None accepts a
            match, a text declines it.
    """

    def __init__(
        self,
        find: Function,
        replace: Function,
        example_inputs: Sequence[Any],
        where: Function | None = None,
    ) -> None:
        self.find, self.replace, self.where = find, replace, where
        self.template, self.replacement = record(self.id, find, replace, example_inputs)
        self.example_inputs = tuple(example_inputs)
        self._names = [str(a.target) for a in self.template.arguments]
        self._asked = _asked(self.id, where, self._names)
        self._root = max(self.template.outputs, key=_cone)
        self._fresh = all(
            _is_fresh(GraphView(module), output)
            for module in (self.template.view.module, self.replacement)
            for output in outputs_of(module.graph)
        )

    def anchors(self, view: GraphView) -> Iterable[Node]:
        by_head = form.by_head(view)
        heads = form.heads(self.template.view, self._root)
        found = [node for head in heads for node in by_head.get(head, ())]
        return sorted(found, key=view.order.__getitem__)

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        found = Solver(self.template, view).solve(self._root, anchor)
        if not isinstance(found, Solution):
            return found
        depth = len(found.region)
        arguments = [found.bound[a] for a in self.template.arguments]
        declined = self._refuse(view, found, arguments)
        if declined is not None:
            return Decline(declined, anchor, depth)
        return Match(
            self.id,
            anchor,
            found.region,
            tuple(found.bound[o] for o in self.template.outputs),
            facts={n: _describe(a) for n, a in zip(self._names, arguments, strict=True)},
            replacement=lambda builder: insert(builder, self.replacement, arguments),
            random=any(draws(n, view.op(n)) for n in found.region),
        )

    def _refuse(self, view: GraphView, found: Solution, arguments: Sequence[Any]) -> str | None:
        for name, bound in zip(self._names, arguments, strict=True):
            if isinstance(bound, torch.SymInt) and size_source(bound, arguments) is None:
                return f"`{name}` is a size that no argument has"
        for output in (found.bound[o] for o in self.template.outputs):
            writer = view.mutated_between(output, view.order[output] + 1, len(view.nodes))
            if not self._fresh and writer is not None and writer not in found.region:
                return "an output is written to in place later, and may share memory with an input"
        if any(value(found.bound[o]).requires_grad for o in self.template.outputs):
            return self._lacks_gradient(arguments) or self._ask(found.bound, arguments)
        return self._ask(found.bound, arguments)

    def _lacks_gradient(self, arguments: Sequence[Any]) -> str | None:
        """An operator of the replacement that stands between the gradients and the arguments."""
        graph = self.replacement.graph
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        carrying = {n for n, a in zip(inputs, arguments, strict=True) if _wants_gradient(a)}
        for node in graph.nodes:
            if node.target in ("detach", torch.detach) or not _is_differentiable(value(node)):
                continue
            if carrying.isdisjoint(node.all_input_nodes):
                continue
            if not has_gradient(node.target):
                return (
                    f"`{node.target}` of the replacement has no autograd formula, "
                    "and gradients are wanted"
                )
            carrying.add(node)
        return None

    def _ask(self, bound: Mapping[Node, Any], arguments: Sequence[Any]) -> str | None:
        if self.where is None:
            return None
        mode = fake_mode(bound)
        assert mode is not None
        with faked(mode):
            named = {n: realise(a) for n, a in zip(self._names, arguments, strict=True)}
            try:
                answer = self.where(**{n: named[n] for n in self._asked})
            except Exception as error:
                if not is_data_dependent(error):
                    raise
                raise PatternError(
                    f"pattern {self.id!r}: `where` looks at the values of a tensor, which are not "
                    "known when a model is compiled; shapes, strides and dtypes are."
                ) from error
        if answer is None or isinstance(answer, str):
            return answer if answer is None or answer.strip() else "`where` declined"
        raise PatternError(
            f"pattern {self.id!r}: `where` returned {answer!r}; it must return None to accept a "
            "match, or the reason not to as a string."
        )


def make(
    find: Function,
    replace: Function,
    example_inputs: Sequence[Any],
    *,
    id: str,
    where: Function | None = None,
    priority: int = 0,
) -> FunctionPattern:
    """A pattern from two functions; see `fuser.register_pattern`."""
    kind = type("FunctionPattern", (FunctionPattern,), {"id": id, "priority": priority})
    return kind(find, replace, example_inputs, where)


def _asked(pattern_id: str, where: Function | None, names: Sequence[str]) -> list[str]:
    """Which of the arguments the predicate takes."""
    if where is None:
        return []
    if not callable(where):
        raise PatternError(f"pattern {pattern_id!r}: `where` must be a function.")
    try:
        parameters = inspect.signature(where).parameters.values()
    except ValueError:  # a builtin
        raise PatternError(
            f"pattern {pattern_id!r}: `where` must be a Python function, not {where!r}."
        ) from None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return list(names)
    for parameter in parameters:
        if parameter.name in names and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise PatternError(
                f"pattern {pattern_id!r}: `where` is called by name, but takes "
                f"`{parameter.name}` by position only."
            )
        if parameter.name not in names and parameter.default is inspect.Parameter.empty:
            raise PatternError(
                f"pattern {pattern_id!r}: `where` takes {parameter.name!r}, which is not an "
                f"argument of `find` that has an example ({', '.join(names)})."
            )
    return [p.name for p in parameters if p.name in names]


def _cone(output: Node) -> int:
    seen: set[Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return len(seen)


def _is_fresh(view: GraphView, node: Node) -> bool:
    """Whether a value has memory of its own, whatever the strides of the inputs."""
    op = view.op(node)
    own = {Kind.POINTWISE, Kind.CONTRACT, Kind.SOFTMAX, Kind.CAT, Kind.ATTENTION}
    if form.is_alias(view, node):
        return is_tensor(op.args["input"]) and _is_fresh(view, op.args["input"])
    return op.kind in own


def _is_differentiable(example: Any) -> bool:
    tensors = [x for x in pytree.tree_leaves(example) if isinstance(x, torch.Tensor)]
    return any(x.is_floating_point() or x.is_complex() for x in tensors)


def _wants_gradient(bound: Any) -> bool:
    """Whether an argument, or what an einsum makes of its operands, requires a gradient."""
    if isinstance(bound, Permuted):
        return _wants_gradient(bound.value)
    if isinstance(bound, Product):
        return _wants_gradient(bound.a) or _wants_gradient(bound.b)
    return is_tensor(bound) and value(bound).requires_grad


def _describe(bound: Any) -> str:
    if isinstance(bound, Node) and is_tensor(bound):
        example = value(bound)
        return f"{bound.name} {tuple(example.shape)} {str(example.dtype).removeprefix('torch.')}"
    return str(value(bound) if isinstance(bound, Node) else bound)


__all__ = ["FunctionPattern", "Template", "make"]
