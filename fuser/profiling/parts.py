"""A captured graph taken apart: its regions, each by itself, and what is left without them.

What is left is one graph still. The results of regions are inputs of it, and what they read are
results, for the original regions and for their replacements apart: those may read something else.
So it can be compiled, run and counted by itself, forward and backward, and what the inner backend
fuses across a region's side (a residual) it fuses there too. What it fuses with the inside of a
region it does not: the sum of the parts may differ from the step by that. The body of a checkpoint
in which something is rewritten is cut out as a region is, and taken apart itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..errors import first_sentence
from ..events import Where
from ..graph.fold import Folder
from ..graph.modes import modes_at
from ..graph.ops import value
from ..graph.view import GraphView
from ..plan import Planned
from ..rehearsal import Rehearsal
from ..report.source import where
from ..swallowed import swallow
from ..torch_private import FakeTensor, faked, hints, make_fx, pytree
from ..verification.observe import Reading, observe, real
from ..verification.regions import beside
from . import kept, regions
from .checkpoints import cuts_of, within
from .cutting import (
    Cut,
    base_of,
    left_without,
    read_by,
    structure,
    with_bodies,
    with_constants,
    with_views,
)
from .work import Work


@dataclass
class Piece:
    """One of the original and the replacement of a region, or of the two that are left.

    Attributes:
        module: a graph of tensors.
        operands: its inputs, as they are in this call.
    """

    module: GraphModule
    operands: list[Any]

    def key(self) -> str:
        """Equal for pieces that take the same time."""
        sizes = [
            (x.dtype, x.shape, x.stride(), x.requires_grad) if isinstance(x, Tensor) else x
            for x in self.operands
        ]
        return f"{structure(self.module)}{sizes}"


@dataclass
class Region:
    """A region that is rewritten.

    Attributes:
        lowering: what is put there.
        work: of its spec; where its pattern has none, of its ATen graph.
        ours, theirs: replacement and original.
        problem: why it cannot be run by itself; it is part of what is left then.
        planned: for those who want to know more.
    """

    pattern: str
    where: Where
    lowering: str
    planned: Planned
    work: Work | None = None
    ours: Piece | None = None
    theirs: Piece | None = None
    problem: str = ""


@dataclass
class Parts:
    """One graph.

    Attributes:
        regions: in the order of the graph.
        ours, theirs: what is left where replacements, or originals, are cut out.
        ours_work, theirs_work: of these.
        nothing: whether nothing is left.
        bodies: of checkpoints, which are cut out too.
        where: of the checkpoint, if it is the body of one.
        sizes: numbers for symbols.
        start: inputs of the graph; operands of what is left are these and the results of regions.
        training: whether a step takes gradients too.
        autocast: the dtype that autocast chooses; None where it is off.
        folder: values that are known.
        dtype: in which most is multiplied.
        device: of the inputs.
    """

    regions: list[Region]
    ours: Piece
    theirs: Piece
    ours_work: Work
    theirs_work: Work
    nothing: bool
    bodies: list[Parts]
    where: Where
    sizes: dict[Any, Any]
    start: list[Any]
    training: bool
    autocast: torch.dtype | None
    folder: Folder
    dtype: torch.dtype
    device: torch.device

    def all(self) -> Iterator[Parts]:
        """These, and those of all bodies before them."""
        for body in self.bodies:
            yield from body.all()
        yield self


def take_apart(
    view: GraphView,
    planned: Sequence[Planned],
    inputs: Sequence[Any],
    captured: GraphModule,
    call: Node | None = None,
    bodies: Mapping[GraphModule, Parts] | None = None,
) -> Parts:
    """Take a graph apart, before it is rewritten.

    Args:
        view: the graph, in which bodies have been rewritten already.
        planned: its rewrites.
        inputs: of this call.
        captured: the same, with its bodies as they were.
        call: the checkpoint that runs it; None where it is no body.
        bodies: those that were taken apart already.

    Raises:
        Unobservable: it may not be run twice.
    """
    folder, given = Folder(view), real(inputs)
    tensors = _tensors(given)
    device = next((x.device for x in tensors), torch.device("cpu"))
    on = torch.is_autocast_enabled(device.type)
    autocast = torch.get_autocast_dtype(device.type) if on else None
    bodies = bodies or {}
    ends = {node for item in planned for node in item.match.outputs}
    found = [_region(view, item, folder, ends) for item in planned]
    alone = [(region, cut) for region, cut in found if cut is not None]
    called = cuts_of(view, bodies)
    cuts = [*(cut for _, cut in alone), *called.values()]
    results = {n: None for cut in cuts for n in cut.outputs}
    values = _observed(view, cuts, given, device)
    left = []
    for side in ("ours", "theirs"):
        read = {n: None for cut in called.values() for n in cut.inputs}
        for region, cut in alone:
            read |= dict.fromkeys(read_by(getattr(region, side).module, cut.inputs))
        left.append(left_without(view, cuts, [n for n in read if n not in results]))
    examples = [n for n in view.nodes if n.op == "placeholder"]
    start = [_leaf(x, value(n)) for x, n in zip(given, examples, strict=True)]
    start = [_unshared(view, n, x) for x, n in zip(start, examples, strict=True)]
    operands = [*start, *(_leaf(values[n], value(n)) for n in results)]
    training = torch.is_grad_enabled() and any(x.requires_grad for x in _tensors(start))
    original = [with_bodies(module, captured) for module in left]
    counted = [_counted(module, [*examples, *results], training) for module in original]
    for region, cut in alone:
        for piece in (region.ours, region.theirs):
            assert piece is not None
            piece.module = within(call, piece.module)
            piece.operands = [_leaf(values[n], value(n)) for n in cut.inputs]
    return Parts(
        [region for region, _ in found],
        Piece(within(call, left[0]), operands),
        Piece(within(call, original[1]), operands),
        counted[0],
        counted[1],
        not any(n.op.startswith("call_") for module in left for n in module.graph.nodes),
        [bodies[body] for body in called],
        where(call) if call is not None else Where(""),
        hints([x for n in view.nodes if isinstance(x := value(n), Tensor)]),
        start,
        training,
        autocast,
        folder,
        autocast or _dtype(tensors),
        device,
    )


def _region(
    view: GraphView, item: Planned, folder: Folder, ends: Container[Node]
) -> tuple[Region, Cut | None]:
    match = item.match
    names = dict.fromkeys(emission.name for emission in item.emissions)
    lowering = "; ".join(names) or "replacement"
    region = Region(match.pattern, where(match.anchor), lowering, item)
    try:
        with modes_at(view, match.anchor):
            wants = any(value(o).requires_grad for o in match.outputs)
            training = torch.is_grad_enabled() and wants
            region.work = regions.work_of(match, folder, training=training)
            rehearsal = Rehearsal.of(view, match, folder, training=training, whole=True)
            if region.work is None:
                region.work = _counted(rehearsal.original(), rehearsal.inputs, training)
            both = (rehearsal.replaced(item.emissions), with_constants(rehearsal, folder))
            bases = [base_of(view, node, ends) for node in rehearsal.inputs]
            cut = Cut.of(rehearsal, tuple(dict.fromkeys(bases)))
            for module in both:
                with_views(module, rehearsal.inputs, cut.inputs)
    except Exception as error:
        swallow(error)
        region.problem = first_sentence(error)
        return region, None
    region.ours, region.theirs = (Piece(module, []) for module in both)
    return region, cut


def _observed(
    view: GraphView, cuts: Sequence[Cut], given: list[Any], device: torch.device
) -> dict[Node, Any]:
    """Values of what is read by, and comes out of, what is cut out."""
    values: dict[Node, Any] = {}
    readings = []

    def reading(wanted: tuple[Node, ...], inside: Iterable[Node]) -> Reading:
        def receive(found: list[Any]) -> None:
            values.update(zip(wanted, found, strict=True))

        return Reading(wanted, tuple(sorted(inside, key=view.order.__getitem__)), receive)

    for cut in cuts:
        readings.append(reading(cut.inputs, cut.inside))
        behind = view.nodes[1 + max(view.order[node] for node in cut.outputs)]
        readings.append(reading(cut.outputs, [behind]))
    if readings:
        with beside(device):
            observe(view, given, readings)
    return values


def _leaf(x: Any, example: Any) -> Any:
    """A value that is differentiated by where its node is."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().requires_grad_(example.requires_grad)


def _unshared(view: GraphView, node: Node, x: Any) -> Any:
    """A copy of an input that the graph writes to: the user's is changed by the user's call."""
    written = {view.storages.get(target) for _, target in view.mutations}
    if isinstance(x, Tensor) and view.storages.get(node) in written:
        return x.detach().clone().requires_grad_(x.requires_grad)
    return x


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor)]


def _counted(module: GraphModule, examples: Sequence[Node], training: bool) -> Work:
    """The work of a graph, from its ATen graph at example values."""
    fakes = [value(n) for n in examples]
    mode = next((x.fake_mode for x in fakes if isinstance(x, FakeTensor)), None)

    def differentiable(found: Any) -> list[Tensor]:
        leaves = pytree.tree_leaves(found)
        return [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]

    def step(inputs: list[Any], grads: list[Tensor]) -> Any:
        results = module(*inputs)
        wanted = differentiable(inputs)
        outs = differentiable(results)
        if not (grads and wanted and outs):
            return results
        given = torch.autograd.grad(outs, wanted, grads, allow_unused=True)
        return results, list(given)

    with torch.no_grad(), faked(mode):
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).requires_grad_(
                training and x.requires_grad
            )
            if isinstance(x, Tensor)
            else x
            for x in fakes
        ]
        with torch.set_grad_enabled(training):
            outs = differentiable(module(*inputs)) if training else []
            grads = [x.detach().clone() for x in outs]
            traced = make_fx(step)(inputs, grads)
    traced.graph.eliminate_dead_code()
    return kept.work_of(traced)


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """In which most of the inputs' numbers are."""
    sizes: dict[torch.dtype, int] = {}
    for x in tensors:
        if x.is_floating_point():
            sizes[x.dtype] = sizes.get(x.dtype, 0) + x.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)
