"""A region by itself, as it is or as it may be replaced: a small graph to compile and to run.

Its inputs are what the replacement reads, with made-up values: floating-point numbers are random,
integers are zero, since they may be indices, and what is known while compiling is as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .builder import Builder
from .errors import PatternError
from .graph.between import Between
from .graph.fold import Folder
from .graph.ops import Kind, value
from .graph.view import GraphView
from .inductor_private import attention_patterns_off, inductor
from .lowering import Emission
from .measure import Run, bucket
from .pattern import Match
from .standing import Standing, Unrehearsable, number

MODE = "max-autotune-no-cudagraphs"
"""Of Inductor, for every candidate: with CUDA graphs, inputs would be copied before each run."""


@dataclass(frozen=True)
class Rehearsal:
    """One region and the tensors that stand for its inputs.

    Attributes:
        inputs: nodes of the captured graph; inputs of both small graphs.
        inside: nodes of the original, in order, views that lead to it included.
        training: whether a run takes gradients too.
        autocast: the dtype that autocast chooses where the region runs; None where it is off.
    """

    view: GraphView
    match: Match
    folder: Folder
    inputs: tuple[Node, ...]
    inside: tuple[Node, ...]
    training: bool
    autocast: torch.dtype | None

    @staticmethod
    def of(
        view: GraphView, match: Match, folder: Folder, *, training: bool, whole: bool = False
    ) -> Rehearsal:
        """
        Args:
            view: the graph.
            match: the region.
            folder: values that are known.
            training: whether a run takes gradients too.
            whole: whether the original begins where the replacement does, so that gradients of
                what both read are the same: what is made of that on the way to the region is a
                part of it.

        Raises:
            Unrehearsable: an input is no tensor, or a size is counted in the data.
        """
        read = dict.fromkeys([*_operands(match), *match.onto])
        end = 1 + max(view.order[node] for node in match.nodes)
        between = Between(view, read.keys(), end) if whole else None
        inside: set[Node] = set()
        writers = {view.nodes[position] for position, _ in view.mutations}
        pending = [*match.outputs, *(match.nodes & writers)]
        while pending:
            node = pending.pop()
            if node in inside or node in read:
                continue
            if node in match.nodes or view.op(node).kind is Kind.VIEW:
                inside.add(node)
                pending += node.all_input_nodes
            elif between is not None and node in between:
                inside.add(node)
                pending += [*node.all_input_nodes, *between.writers(node)]
            elif not isinstance(value(node), (int, torch.SymInt)):
                read[node] = None
        sizes = [node for node in read if isinstance(value(node), torch.SymInt)]
        for node in sizes:
            del read[node]
        if not all(isinstance(value(node), Tensor) for node in read):
            raise Unrehearsable("an operand is no tensor")
        order = sorted(inside, key=view.order.__getitem__)
        device = value(match.outputs[0]).device.type
        on = torch.is_autocast_enabled(device)
        autocast = torch.get_autocast_dtype(device) if on else None
        return Rehearsal(view, match, folder, tuple(read), tuple(order), training, autocast)

    def original(self) -> GraphModule:
        """The region as it was captured."""
        graph, made = Graph(), dict[Node, Any]()
        for i, node in enumerate(self.inputs):
            made[node] = graph.placeholder(f"x{i}")

        def look(node: Node) -> Any:
            return made[node] if node in made else number(value(node))

        for node in self.inside:
            made[node] = graph.node_copy(node, look)
            made[node].meta = {}
        graph.output(tuple(made[node] for node in self.match.outputs))
        return GraphModule({}, graph)

    def replaced(self, emissions: Sequence[Emission]) -> GraphModule:
        """The region as lowerings would have it."""
        module = GraphModule({}, Graph())
        standing = Standing(module.graph, self.inputs)
        sizes = [n for n in self.view.size_sources if isinstance(value(n), torch.SymInt)]
        builder = _builder(module, standing, self.match, [*self.inputs, *sizes])
        standing.output.args = (tuple(emit(builder, self.match, emissions)),)
        standing.clean()
        for node in module.graph.nodes:
            node.meta = {}
        module.graph.lint()
        module.recompile()
        return module

    def described(self) -> list[Any]:
        """Dtype, sizes by powers of two, and order in memory of every input."""
        return [
            [
                str(x.dtype).removeprefix("torch."),
                [bucket(number(size)) for size in x.shape],
                sorted(range(x.ndim), key=lambda d: (-number(x.stride(d)), d)),
            ]
            for x in map(value, self.inputs)
        ]

    def operands(self) -> list[Tensor]:
        """The inputs, made up."""
        return [_made_up(value(node), self.folder.tensor(node)) for node in self.inputs]

    @property
    def device(self) -> torch.device:
        """On which it runs."""
        found: torch.device = value(self.match.outputs[0]).device
        return found

    def compiled(
        self, module: GraphModule, operands: Sequence[Tensor], inner: Callable[..., Any]
    ) -> Callable[..., Any]:
        """One of the graphs, compiled by an inner backend.

        To be called, and run, within `torch_private.apart`.
        """
        with (
            torch.set_grad_enabled(self.training),
            casting(self.device, self.autocast),
            attention_patterns_off(self.device),
        ):
            return inner(module, operands)

    def run(self, module: GraphModule, operands: Sequence[Tensor]) -> Run:
        """One of the graphs, compiled by Inductor; a run takes gradients too, in training."""
        compiled = self.compiled(module, operands, inductor(MODE, {}))
        return stepping(compiled, operands, training=self.training)


def stepping(call: Callable[..., Any], operands: Sequence[Any], *, training: bool) -> Run:
    """One call, and in training a backward from all of its results to all of its inputs."""
    if not training:
        return lambda: _without_gradients(call, operands)
    leaves = [x for x in operands if isinstance(x, Tensor) and x.requires_grad]

    def forward() -> list[Tensor]:
        with torch.enable_grad():
            found = call(*operands)
        return [x for x in found if isinstance(x, Tensor) and x.requires_grad]

    grads = [torch.ones_like(x) for x in forward()]

    def run() -> object:
        results = forward()
        return torch.autograd.grad(results, leaves, grads, allow_unused=True) if grads else results

    return run


def casting(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[Any]:
    """Autocast to a dtype; nothing where that is None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


def _without_gradients(compiled: Callable[..., Any], operands: Sequence[Any]) -> object:
    with torch.no_grad():
        return compiled(*operands)


def _builder(
    module: GraphModule, standing: Standing, match: Match, sizes_from: Sequence[Node]
) -> Builder:
    mode = value(match.outputs[0]).fake_mode
    return Builder(module, standing.output, mode, None, sizes_from, standing)


def _operands(match: Match) -> list[Node]:
    """What the replacement reads; where a pattern makes that itself, it is found by trying."""
    if match.replacement is None:
        return [operand.node for call in match.calls for operand in call.operands.values()]
    module = GraphModule({}, Graph())
    standing = Standing(module.graph)
    match.replacement(_builder(module, standing, match, ()))
    return list(standing)


def emit(builder: Builder, match: Match, emissions: Sequence[Emission]) -> list[Node]:
    """What stands for the outputs of a match: its replacement's results, or all of its calls, added
    up and arranged.

    Raises:
        PatternError: the replacement gave something else.
    """
    if match.replacement is not None:
        return _results(match, match.replacement(builder))
    totals: list[Node] = []
    for emission in emissions:
        found = emission.emit(builder)
        given = [found] if isinstance(found, Node) else list(found)
        sums = zip(totals, given, strict=True) if totals else ()
        totals = [builder.call(torch.add, *pair) for pair in sums] or given
    parts = match.parts or ((match.result, match.dims),)
    placed = [
        _as_image(builder, builder.arrange(total, *part, materialise=True), output)
        for total, part, output in zip(totals, parts, match.outputs, strict=True)
    ]
    for other in match.onto:
        placed[0] = builder.call(torch.add, other, placed[0])
    return [_constant(builder, *pair) for pair in zip(placed, match.outputs, strict=True)]


def _constant(builder: Builder, node: Node, output: Node) -> Node:
    """A result without a gradient, if the original has none: an operator has one for all of its
    results where it has one for any."""
    differentiable = value(node).requires_grad and not value(output).requires_grad
    return builder.method("detach", node) if differentiable else node


def _as_image(builder: Builder, node: Node, output: Node) -> Node:
    """A result with the strides that dimensions of one element have in an image whose channels come
    last, if the original is one.

    Views give them others, which tensors without data do not show; by the stride of a batch of one
    PyTorch would take the image for one whose channels come first.
    """
    was = value(output)
    ones = [d for d, size in enumerate(was.shape) if isinstance(size, int) and size == 1]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not ones or was.ndim not in formats or was.is_contiguous():
        return node
    if not was.is_contiguous(memory_format=formats[was.ndim]):
        return node
    last = (0, *range(2, was.ndim), 1)
    node = builder.method("permute", node, last)
    for dim in sorted((last.index(d) for d in ones), reverse=True):
        node = builder.method("unsqueeze", builder.method("squeeze", node, dim), dim)
    return builder.method("permute", node, tuple(last.index(d) for d in range(was.ndim)))


def _results(match: Match, given: Any) -> list[Node]:
    """What a replacement returned, if it is one node for each output."""
    expected = f"a list of {len(match.outputs)} nodes, one for each output, is expected"
    if not isinstance(given, (list, tuple)) or not all(isinstance(n, Node) for n in given):
        raise PatternError(f"the replacement returned {given!r}; {expected}.")
    if len(given) != len(match.outputs):
        raise PatternError(f"the replacement returned {len(given)} nodes; {expected}.")
    return list(given)


def _made_up(example: Tensor, known: Tensor | None) -> Tensor:
    """A tensor of the example's sizes, strides, dtype and device."""
    sizes, strides = map(number, example.shape), map(number, example.stride())
    sizes, strides = list(sizes), list(strides)
    memory = 1 + sum(max(size - 1, 0) * stride for size, stride in zip(sizes, strides, strict=True))
    flat = torch.zeros(memory, dtype=example.dtype, device=example.device)
    if known is not None:
        if 0 in strides:
            return known.to(example.device)
        flat.as_strided(sizes, strides).copy_(known)
    elif example.is_floating_point():
        flat.normal_()
    elif example.dtype is torch.bool:
        flat.bernoulli_(0.5)
    found = flat.as_strided(sizes, strides).detach()
    return found.requires_grad_(example.requires_grad)
