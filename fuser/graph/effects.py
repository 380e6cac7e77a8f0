"""What a node does beside computing its value: writes to tensors, draws random numbers.

torch's functions are known by their schema or by the conventions of names. What else may stand in
a graph (functions under `allow_in_graph`, operators that run a body nobody can look into) is taken
to do both.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..torch_private import HigherOrderOperator, OpOverload, OpOverloadPacket, memory
from ..turns import MARKS
from .ops import Kind, Op, is_tensor, read, value

_RANDOM = {
    "dropout", "rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal",
    "rand_like", "randn_like", "randint_like", "alpha_dropout", "feature_dropout", "rrelu",
    "dropout1d", "dropout2d", "dropout3d", "uniform", "exponential", "gumbel_softmax", "random",
    "geometric", "cauchy", "log_normal", "poisson", "binomial", "feature_alpha_dropout",
}  # fmt: skip
_SPECIAL = {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
}  # fmt: skip
_KNOWN_PACKAGES = {"torch", "_operator", "operator", "math", "builtins", "einops"}
_RUNNING_STATISTICS = ("batch_norm", "instance_norm")


def written(node: Node, op: Op) -> list[Node]:
    """The tensors that a node writes to in place."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return []
    return [n for n in dict.fromkeys(_nodes(_targets(node, op))) if is_tensor(n)]


def draws(node: Node, op: Op) -> bool:
    """Whether a node takes numbers from the random generator."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    if op.kind is Kind.DROPOUT:
        return dropout_probability(op) > 0
    name = _name(node).rstrip("_")
    if name == "scaled_dot_product_attention":
        probability = op.args.get("dropout_p", 0.0)
        return not (isinstance(probability, (int, float)) and probability == 0)
    if isinstance(node.target, HigherOrderOperator):
        bodies = _bodies(node)
        return not bodies or any(draws(n, read(n)) for body in bodies for n in body.graph.nodes)
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded in node.target.tags
    return name in _RANDOM or is_foreign(node)


def dropout_probability(op: Op) -> float:
    """Of a dropout node: 0 where it is switched off."""
    probability = op.args.get("p", 0.5)
    if op.args.get("training", True) is False:
        return 0.0
    return float(probability) if isinstance(probability, (int, float)) else 1.0


def is_foreign(node: Node) -> bool:
    """Whether a node calls what is neither torch's nor Python's own; any module counts as such."""
    if node.op != "call_function" or _is_operator(node.target):
        return node.op == "call_module"
    if inspect.ismethoddescriptor(node.target) or node.target in MARKS:  # torch.Tensor.add_
        return False
    module = getattr(node.target, "__module__", None) or ""
    return module.partition(".")[0] not in _KNOWN_PACKAGES


def _targets(node: Node, op: Op) -> Any:
    """Arguments, nested as they may be, that are written to."""
    target, everything = node.target, (node.args, node.kwargs)
    if isinstance(target, HigherOrderOperator):
        bodies = _bodies(node)
        return () if bodies and not any(map(_writes_to_inputs, bodies)) else everything
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return _by_schema(node)
    if is_foreign(node):
        return everything
    found: list[Any] = [node.kwargs.get("out")]
    name = _name(node)
    if op.inplace or target is operator.setitem or _ends_inplace(node, name):
        several = name.startswith("_") and not name.startswith("_foreach")
        found.append(everything if several else node.args[:1] or node.kwargs.get("input"))
    arguments = _bound(node)
    if arguments.get("inplace") is True:
        found.append(arguments.get("input"))
    if name.startswith("embedding") and arguments.get("max_norm") is not None:
        found.append(arguments.get("weight"))
    if any(kind in name for kind in _RUNNING_STATISTICS) and _updates(arguments):
        named = [arguments.get(n) for n in ("running_mean", "running_var")]
        found.append(named if "running_mean" in arguments else node.args[1:])
    return found


def _by_schema(node: Node) -> Any:
    found: list[Any] = [node.kwargs.get("out")]
    for schema in _schemas(node.target):
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found.append(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name))
    return found


def _schemas(target: Any) -> list[Any]:
    if isinstance(target, OpOverload):
        return [target._schema]
    return [getattr(target, name)._schema for name in target.overloads()]


def _bodies(node: Node) -> list[GraphModule]:
    """The graph modules that a higher-order operator runs."""
    owner = node.graph.owning_module
    attributes = [n for n in _nodes((node.args, node.kwargs)) if n.op == "get_attr"]
    found = [getattr(owner, str(n.target), None) for n in attributes]
    return [body for body in found if isinstance(body, GraphModule)]


def _writes_to_inputs(body: GraphModule) -> bool:
    inputs = {_memory(n) for n in body.graph.nodes if n.op in ("placeholder", "get_attr")}
    return any(_memory(t) in inputs for n in body.graph.nodes for t in written(n, read(n)))


def _memory(node: Node) -> Any:
    """A key that is equal for tensors in the same memory; None for what has none."""
    example = value(node)
    return memory(example) if isinstance(example, torch.Tensor) else None


def _nodes(argument: Any) -> Iterator[Node]:
    found: list[Node] = []
    map_arg(argument, found.append)
    return iter(found)


def _updates(arguments: dict[str, Any]) -> bool:
    """Whether a norm may write its running statistics."""
    flags = [arguments[n] for n in ("training", "use_input_stats") if n in arguments]
    return not flags or flags[0] is not False


def _bound(node: Node) -> dict[str, Any]:
    """Arguments by name, as far as torch tells the names of a function's parameters."""
    if node.op != "call_function":
        return dict(node.kwargs)
    defaults = _parameters(node.target)  # type: ignore[arg-type]
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


@lru_cache(maxsize=4096)
def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Names and defaults of a Python function's parameters."""
    if not inspect.isfunction(function):
        return {}
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_operator(target: Any) -> bool:
    return isinstance(target, (OpOverload, OpOverloadPacket, HigherOrderOperator))


def _ends_inplace(node: Node, name: str) -> bool:
    """By the convention of names; `operator.and_` and its kin only avoid Python's keywords."""
    if getattr(node.target, "__module__", "") == "_operator":
        return False
    return name in _SPECIAL or (name.endswith("_") and not name.endswith("__"))
