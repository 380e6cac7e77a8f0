"""Smaller inputs that show a mismatch as well.

Sizes are halved, one after the other, all dimensions of one size together. At each step the region
is found anew by its pattern, so that what is compared is what would stand there at those sizes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from ..graph.fold import Folder
from ..graph.view import GraphView
from ..options import Options, Policy
from ..plan import Planned, plan
from ..precision import is_fractional
from ..rehearsal import casting
from ..swallowed import swallow
from ..torch_private import FakeTensorMode, faked
from .compare import Conditions, ReplacementError, judge
from .prepare import EAGER, Trial, prepare
from .script import Reproduction, random_operands

SECONDS = 20.0
"""How long is looked for smaller ones."""
_SHAPED = {"view", "reshape", "expand", "unflatten", "broadcast_to", "_unsafe_view"}
"""Operators whose numbers are sizes."""


def minify(
    trial: Trial, operands: Sequence[Tensor], pattern: str, lowering: str, options: Options
) -> Reproduction:
    """A reproduction that is as small as was found.

    Args:
        trial: a region whose replacement is wrong.
        operands: at which it is.
        pattern, lowering: by which it was found, and what was put there.
        options: of the compile.
    """
    found = Reproduction(
        trial.original, trial.replacement, operands, trial.conditions, options.inner
    )
    alone = replace(found, inner=EAGER)
    kind = _kind(alone)
    if kind is _Kind.NOTHING:
        return found  # wrong as it is compiled, which is too slow to be tried often
    wanted = replace(options, patterns=(pattern,), policy=Policy.ALWAYS, verify=False)
    return _seeded(_shrunk(alone, lowering, wanted, kind), kind)


class _Kind(Enum):
    """What is wrong with a replacement."""

    NOTHING = auto()
    NUMBERS = auto()
    RAISES = auto()


def _kind(found: Reproduction) -> _Kind:
    try:
        compared = judge(found.original, found.replacement, found.operands, found.conditions)
    except ReplacementError:
        return _Kind.RAISES
    except Exception as error:  # sizes that do not fit, for the most part
        swallow(error)
        return _Kind.NOTHING
    return _Kind.NUMBERS if any(c.problem for c in compared) else _Kind.NOTHING


def _seeded(found: Reproduction, kind: _Kind) -> Reproduction:
    if not all(is_fractional(x) and x.dtype.itemsize > 1 for x in found.operands):
        return found
    try:
        operands = random_operands(found.operands)
    except RuntimeError:  # several elements in one place
        return found
    other = replace(found, operands=operands, seeded=True)
    return other if _kind(other) is kind else found


def _shrunk(found: Reproduction, lowering: str, options: Options, kind: _Kind) -> Reproduction:
    if any(x.is_cuda and not is_fractional(x) for x in found.operands):
        return found  # an index out of range is an error that a GPU does not recover from
    end, sizes = time.monotonic() + SECONDS, _sizes(found)
    while sizes and time.monotonic() < end:
        smaller = _halved(found, sizes.pop(), lowering, options)
        if smaller is not None and _kind(smaller) is kind:
            found, sizes = smaller, _sizes(smaller)
    return found


def _sizes(found: Reproduction) -> list[int]:
    """The largest last."""
    return sorted({n for x in found.operands for n in x.shape if n > 1})


def _halved(found: Reproduction, size: int, lowering: str, options: Options) -> Reproduction | None:
    """The same with another size, where its pattern finds it there."""
    operands = [_cut(x, size) for x in found.operands]
    try:
        module = _captured(_resized(found.original, size), operands, found.conditions)
        view = GraphView(module)
        with _under(found.conditions):
            planned = [item for item in plan(view, options) if isinstance(item, Planned)]
            if len(planned) != 1 or lowering not in ("; ".join(_names(planned[0])), "replacement"):
                return None
            trial = prepare(view, planned[0], Folder(view))
    except Exception as error:
        swallow(error)
        return None
    places = [n.target for n in trial.rehearsal.inputs]
    given = {n.target: x for n, x in zip(_inputs(view), operands, strict=True)}
    if not all(place in given for place in places):
        return None
    chosen = trial.operands([given[place] for place in places])
    return replace(
        found,
        original=trial.original,
        replacement=trial.replacement,
        operands=chosen,
        conditions=trial.conditions,
    )


def _names(item: Planned) -> list[str]:
    return list(dict.fromkeys(emission.name for emission in item.emissions))


def _inputs(view: GraphView) -> list[Node]:
    return [node for node in view.nodes if node.op == "placeholder"]


@contextlib.contextmanager
def _under(conditions: Conditions) -> Generator[None]:
    with torch.set_grad_enabled(conditions.training):
        with casting(conditions.device, conditions.autocast):
            yield


def _cut(x: Tensor, size: int) -> Tensor:
    """The first half along every dimension of a size."""
    smaller = x.detach()
    for dim, given in enumerate(x.shape):
        if given == size:
            smaller = smaller.narrow(dim, 0, size // 2)
    return smaller.clone().requires_grad_(x.requires_grad)


def _resized(module: GraphModule, size: int) -> GraphModule:
    """A graph with half of a size wherever it is spelled out."""
    graph, copies = Graph(), dict[Node, Node]()

    def halve(argument: Any) -> Any:
        return size // 2 if type(argument) is int and argument == size else argument

    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        name = getattr(node.target, "__name__", node.target)
        if node.op in ("call_function", "call_method") and name in _SHAPED:
            copies[node].args = map_aggregate(copies[node].args, halve)
            copies[node].kwargs = map_aggregate(copies[node].kwargs, halve)
    return GraphModule(module, graph)


def _captured(
    module: GraphModule, operands: Sequence[Tensor], conditions: Conditions
) -> GraphModule:
    """The graph with example values, as Dynamo would hand it over."""
    mode = FakeTensorMode()
    given = iter([mode.from_tensor(x, static_shapes=True) for x in operands])
    with _under(conditions), faked(mode):
        for node in module.graph.nodes:
            if node.op == "placeholder":
                node.meta["example_value"] = next(given)
            elif node.op != "output":
                args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
                method = node.op == "call_method"
                called = getattr(args[0], str(node.target)) if method else node.target
                node.meta["example_value"] = called(*args[method:], **kwargs)
    return module
