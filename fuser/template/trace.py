"""Record `find` and `replace` as graphs, run them on fake examples, and reject what cannot work."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from ..errors import PatternError, PatternOutputsError, UnrunnablePatternError
from ..graph.effects import draws
from ..graph.ops import is_tensor, read, value
from ..graph.view import GraphView
from ..torch_private import FakeTensorMode, faked, pytree, unset_fake_temporarily
from .arguments import arguments_of
from .rounding import exacting
from .run import run
from .tracer import Recorder
from .values import open_einsums


@dataclass(frozen=True)
class Template:
    """`find`, recorded.

    Attributes:
        view: its graph, with the examples' fake values.
        arguments: its placeholders, in order; tensors and scalars.
        operations: the nodes to be found in a graph; what is computed from shapes and scalars is
            not among them.
        outputs: what it returns.
    """

    view: GraphView
    arguments: tuple[Node, ...]
    operations: tuple[Node, ...]
    outputs: tuple[Node, ...]


def holds_tensor(node: Node) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value(node)))


def record(
    pattern_id: str, find: Any, replace: Any, examples: Sequence[Any]
) -> tuple[Template, GraphModule]:
    """Trace both functions and check that one can stand for the other.

    Raises:
        PatternError: one cannot be traced, fails on the examples, or returns something else.
    """
    names, others = arguments_of(pattern_id, find, replace, examples)
    with unset_fake_temporarily(), torch.enable_grad():
        mode = FakeTensorMode()
        fakes = [_fake(e, mode) for e in examples]
        found = _trace(pattern_id, "find", find, names, fakes, mode)
        replacement = _trace(pattern_id, "replace", replace, others, fakes, mode)
        open_einsums(found.graph, exacting(GraphView(found)))
        _propagate(pattern_id, "find", found, fakes, mode)
        _share(found.graph)
        _compare(pattern_id, found, replacement)
    return _template(pattern_id, found), replacement


def outputs_of(graph: Graph) -> tuple[Any, ...]:
    result = graph.output_node().args[0]
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _fake(example: Any, mode: FakeTensorMode) -> Any:
    """A fake tensor like the example, which may itself belong to a compile that is under way."""
    if not isinstance(example, torch.Tensor):
        return example
    with mode:
        return torch.empty_strided(
            [int(s) for s in example.shape],
            [int(s) for s in example.stride()],
            dtype=example.dtype,
            device=example.device,
        )


def _trace(
    pattern_id: str,
    role: str,
    function: Any,
    names: Sequence[str],
    fakes: Sequence[Any],
    mode: FakeTensorMode,
) -> GraphModule:
    recorder = Recorder(pattern_id, role, function, names)
    graph = recorder.record()
    module = GraphModule(recorder.root, graph)
    _propagate(pattern_id, role, module, fakes, mode)
    # looked for before dead code goes, to which a write belongs
    if GraphView(module).mutations or any(map(is_tensor, recorder.written)):
        recorder.refuse_write()
    _index_results(graph)
    graph.eliminate_dead_code()
    outputs = outputs_of(graph)
    if not outputs or not all(isinstance(o, Node) and is_tensor(o) for o in outputs):
        raise PatternError(
            f"pattern {pattern_id!r}: `{role}` must return a tensor or a tuple of tensors."
        )
    return module


def _index_results(graph: Graph) -> None:
    """Write `x.max(-1).values` as `x.max(-1)[0]`, as Dynamo does."""
    for node in list(graph.nodes):
        source: Any = node.args[0] if node.target is getattr else None
        if not isinstance(source, Node) or not isinstance(value(source), tuple):
            continue
        for position, result in enumerate(value(source)):
            if result is value(node):
                node.target, node.args = operator.getitem, (source, position)


def _share(graph: Graph) -> None:
    """Make equal computations one: the solver finds them shared in a model, and repeated."""
    known: dict[str, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or draws(node, read(node)):
            continue
        first = known.setdefault(repr((node.op, node.target, node.args, node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _propagate(
    pattern_id: str, role: str, module: GraphModule, fakes: Sequence[Any], mode: FakeTensorMode
) -> None:
    remaining = iter(fakes)
    for node in module.graph.nodes:
        try:
            if node.op == "placeholder":
                example = next(remaining)
            elif node.op == "get_attr":
                raise PatternError(
                    f"pattern {pattern_id!r}: `{role}` holds a tensor from elsewhere "
                    f"({node.target}); pass it as an argument, or make it within the function."
                )
            elif node.op == "output":
                continue
            else:
                with faked(mode):
                    example = run(node, map_values(node.args), map_values(node.kwargs))
        except PatternError:
            raise
        except Exception as error:
            step = node.format_node() or node.name
            raise UnrunnablePatternError(pattern_id, role, step, error) from error
        node.meta["example_value"] = example


def map_values(arguments: Any) -> Any:
    return map_aggregate(arguments, lambda a: value(a) if isinstance(a, Node) else a)


def _compare(pattern_id: str, found: GraphModule, replacement: GraphModule) -> None:
    old, new = outputs_of(found.graph), outputs_of(replacement.graph)
    if len(old) != len(new):
        raise PatternOutputsError(pattern_id, "the number of outputs", len(old), len(new))
    for index, (a, b) in enumerate(zip(old, new, strict=True)):
        for what, get in (
            ("shape", lambda t: tuple(t.shape)),
            ("dtype", lambda t: t.dtype),
            ("device", lambda t: t.device),
        ):
            if get(value(a)) != get(value(b)):
                raise PatternOutputsError(
                    pattern_id, f"the {what} of output {index}", get(value(a)), get(value(b))
                )


def _template(pattern_id: str, found: GraphModule) -> Template:
    graph = found.graph
    arguments = tuple(n for n in graph.nodes if n.op == "placeholder")
    outputs = outputs_of(graph)
    operations = tuple(
        n for n in graph.nodes if n.op in ("call_function", "call_method") and holds_tensor(n)
    )
    if any(o not in operations for o in outputs) or len(set(outputs)) != len(outputs):
        raise PatternError(
            f"pattern {pattern_id!r}: `find` must compute each of its outputs, and return it once."
        )
    _require_bound(pattern_id, arguments, operations)
    _require_connected(pattern_id, arguments, operations, outputs)
    return Template(GraphView(found), arguments, operations, outputs)


def _require_bound(pattern_id: str, arguments: Sequence[Node], operations: Sequence[Node]) -> None:
    for argument in arguments:
        if not any(user in operations for user in argument.users):
            raise PatternError(
                f"pattern {pattern_id!r}: `find` must use its argument `{argument.target}` "
                "directly in an operator: nothing in a graph would say what it stands for."
            )


def _require_connected(
    pattern_id: str,
    arguments: Sequence[Node],
    operations: Sequence[Node],
    outputs: Sequence[Node],
) -> None:
    allowed = {*operations, *(a for a in arguments if is_tensor(a))}
    reached: set[Node] = set()
    pending = [outputs[0]]
    while pending:
        node = pending.pop()
        if node in reached or node not in allowed:
            continue
        reached.add(node)
        pending += [*node.all_input_nodes, *node.users]
    apart = [o.name for o in outputs if o not in reached]
    if apart:
        raise PatternError(
            f"pattern {pattern_id!r}: the outputs of `find` share no tensor, so they cannot be "
            "found together; register one pattern for each."
        )
