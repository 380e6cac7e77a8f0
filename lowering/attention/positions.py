"""Masks and biases as functions of positions, instead of tensors of Sq x Sk that are captured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fuser.graph.fold import Folder
from fuser.graph.ops import value
from fuser.graph.positional import TRUE, both
from fuser.graph.program import POSITIONS, SIZES, Program
from fuser.pattern import Call, Operand
from fuser.specs import AttentionSpec
from fuser.swallowed import swallow

from . import affine
from .absorption.follow import Follower
from .absorption.known import Known
from .absorption.masks import Finder, Mask
from .absorption.moderate import Magnitudes
from .absorption.rows import movable, simplified
from .affine import Free, NotAffine
from .evaluate import Evaluator


def absorb(call: Call, folder: Folder) -> Call:
    """The same attention with less captured: what follows from positions is computed from them.

    Masks that may be -inf move from `score` to `mask`. A captured tensor is replaced by the inputs
    of its producers where these have fewer elements. What cannot be followed stays as it is; so
    does the call, where nothing can.
    """
    spec: AttentionSpec = call.spec
    read = {name for program in spec.programs for name in program.inputs}
    if not spec.captured or spec.mask is not None or read & {*POSITIONS, *SIZES}:
        return call
    try:
        return _Absorber(call, folder).call()
    except Exception as error:  # a call that cannot be rewritten is as good as before
        swallow(error)
        return call


def is_alive(call: Call) -> bool:
    """Whether all tensors that a call reads are still there.

    A producer that `absorb` went past may belong to a region that was rewritten since.
    """
    return not any(operand.node._erased for operand in call.operands.values())


class _Absorber:
    """Puts the programs of one call together anew."""

    def __init__(self, call: Call, folder: Folder) -> None:
        self.old = call
        self.spec: AttentionSpec = call.spec
        self.folder = folder
        self.follower = Follower(call, folder)
        self.scratch = self.follower.scratch
        self._copies: dict[Node, Any] = {}

    def call(self) -> Call:
        masks = self._masks()
        for mask in masks:
            if mask.term is not None and mask.rest is not None:
                self._copies[mask.term] = mask.rest
        dropped = {mask.at for mask in masks if mask.rest is None}
        score = self._program(self.spec.score, self.spec.score_dtype, dropped)
        probs = self._program(self.spec.probs, self.spec.softmax_dtype, set())
        results = [score, probs]
        condition = simplified(both(*(mask.condition for mask in masks)), self.follower.places)
        if condition != TRUE:
            reader = self.follower.reader
            results.append(self.follower.steps.condition(condition, reader.opaque))
        return self._put_together(results)

    def _put_together(self, results: list[Node]) -> Call:
        needed = [n for n in self.scratch.needed(results) if n in self.scratch.operands]
        sink = self.spec.sink if self.spec.sink[:1] == "c" else ""
        if sink:
            needed.append(self.scratch.captured(self.old.operands[sink]))
        names = {node: f"c{i}" for i, node in enumerate(dict.fromkeys(needed))}
        programs = [self.scratch.program(result, names) for result in results]
        spec = replace(
            self.spec,
            captured=len(names),
            score=programs[0],
            probs=programs[1],
            mask=programs[2] if len(programs) > 2 else None,
            sink=names[needed[-1]] if sink else self.spec.sink,
        )
        kept = {n: o for n, o in self.old.operands.items() if n[0] in "qkv"}
        captured = {name: self.scratch.operands[node] for node, name in names.items()}
        operands: dict[str, Operand] = {**kept, **captured}
        before = {o.node for n, o in self.old.operands.items() if n[0] == "c"}
        same = spec.mask is None and before == {o.node for o in captured.values()}
        return self.old if same and len(names) == self.spec.captured else Call(spec, operands)

    def _masks(self) -> list[Mask]:
        evaluator = Evaluator(self.old, self.folder)
        try:
            form, graph = affine.read(self.spec.score, evaluator.number, opaque=True)
        except NotAffine:
            return []
        known = Known(evaluator, self.follower.places)
        magnitudes = Magnitudes(self.follower, self.folder)
        parts = Finder(self.follower, magnitudes, self._copy, known.mask).parts(form)
        one_more = self.spec.sink == "0"  # a logit of zero stands beside the keys of every query
        trained = self._is_trained()
        return movable(parts, self.follower, graph, has_sink=one_more, trained=trained)

    def _is_trained(self) -> bool:
        examples = [value(operand.node) for operand in self.old.operands.values()]
        wanted = [x for x in examples if isinstance(x, Tensor) and x.requires_grad]
        return torch.is_grad_enabled() and bool(wanted)

    def _copy(self, node: Free) -> Any:
        """The step for a free node of a program."""
        if not isinstance(node, Node):
            return node
        if node not in self._copies:
            self._copies[node] = self._copied(node)
        return self._copies[node]

    def _copied(self, node: Node) -> Node:
        if node.op == "placeholder":
            return self.follower.operand(self.old.operands[str(node.target)])
        args, kwargs = map_arg((node.args, node.kwargs), self._copy)
        create = self.scratch.graph.create_node
        return self.scratch.append(lambda: create(node.op, node.target, args, kwargs))

    def _program(self, program: Program, dtype: torch.dtype, dropped: set[str]) -> Node:
        """The steps of a program, without those that are dropped; gives its result."""
        graph: Graph = program.graph
        live: dict[Node, Node] = {}

        def look(node: Node) -> Any:
            return live[node] if node in live else self._copy(node)

        for node in graph.nodes:
            if node.op == "placeholder":
                if str(node.target)[0] in "sp":
                    live[node] = self.scratch.named(str(node.target), dtype)
            elif node.op == "output":
                return look(node.args[0])
            elif any(source in live for source in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), look)
                made = self.scratch.graph.create_node(node.op, node.target, args, kwargs)
                live[node] = self.scratch.run(made)
                if node.name in dropped:
                    score = next(n for n in node.all_input_nodes if n in live)
                    live[node] = self._as(live[score], made.meta["dtype"])
        raise AssertionError("a program has an output")

    def _as(self, score: Node, dtype: torch.dtype) -> Node:
        """A score in the dtype that a mask promoted it to."""
        if score.meta["dtype"] is dtype:
            return score
        cast = self.scratch.graph.call_method("to", (score,), {"dtype": dtype})
        return self.scratch.run(cast)
