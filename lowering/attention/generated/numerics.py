"""What a program does to its numbers: may it be applied before the sum is known, may it be huge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.program import Program, gather
from fuser.specs import AttentionSpec

_FINITE = {"add", "sub", "mul", "neg", "tanh", "sigmoid", "to", "abs", "relu"}
_LARGEST = 1e30


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def tables_of(spec: AttentionSpec) -> set[str]:
    """Captured tensors that programs read through `gather` alone, by computed indices."""
    found: set[str] = set()
    for program in spec.programs:
        for node in program.graph.nodes:
            if node.op == "placeholder" and str(node.target)[0] == "c":
                if node.users and all(_gathers(user, node) for user in node.users):
                    found.add(str(node.target))
    return found


def _gathers(user: Node, table: Node) -> bool:
    return user.target is gather and user.args[0] is table and table not in user.args[1:]


def is_linear(program: Program, name: str) -> bool:
    """Whether a program is linear in one input, whatever the others are."""
    linear: set[Node] = set()
    result: Any = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.target == name:
                linear.add(node)
        elif node.op == "output":
            result = node.args[0]
        elif linear & set(node.all_input_nodes):
            rule = _LINEAR.get(_name(node))
            if rule is None or not rule(node, linear):
                return False
            linear.add(node)
    return result in linear


_ARITHMETIC = {
    "add", "sub", "mul", "truediv", "div", "neg", "abs", "to", "rounded", "where", "masked_fill",
    "maximum", "minimum", "clamp", "relu", "full_like", "scalar_tensor", "gather",
    "lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not",
    "and", "or", "xor", "invert", "bitwise_and", "bitwise_or", "bitwise_not", "floordiv", "mod",
}  # fmt: skip


def is_arithmetic(program: Program) -> bool:
    """Whether every step is a few instructions, as no exponential or hyperbolic tangent is."""
    steps = (n for n in program.graph.nodes if n.op in ("call_function", "call_method"))
    return all(_name(node) in _ARITHMETIC for node in steps)


def chooses(program: Program) -> bool:
    """Whether a program may put something else in the place of a NaN."""
    return any(_name(node) in ("where", "masked_fill") for node in program.graph.nodes)


def keeps_a_key(score: Program) -> bool:
    """Whether no score is -inf as long as products are finite, so that every query has a key."""
    if not is_bounded(score) or any(name[0] == "c" for name in score.inputs):
        return False
    return not any(a == -math.inf for node in score.graph.nodes for a in node.args)


def _both(node: Node, linear: set[Node]) -> bool:
    plain = node.kwargs.get("alpha") in (None, 1)
    return plain and node.args[0] in linear and node.args[1] in linear


def _scaled(node: Node, linear: set[Node]) -> bool:
    return (node.args[0] in linear) != (node.args[1] in linear)


def _divided(node: Node, linear: set[Node]) -> bool:
    plain = node.kwargs.get("rounding_mode") is None
    return plain and node.args[0] in linear and node.args[1] not in linear


def _cast(node: Node, linear: set[Node]) -> bool:
    dtype = node.kwargs.get("dtype")
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2


def _chosen(node: Node, linear: set[Node]) -> bool:
    condition, *branches = node.args
    return condition not in linear and all(b in linear or _zero(b) for b in branches)


def _filled(node: Node, linear: set[Node]) -> bool:
    score, mask, fill = node.args
    return score in linear and mask not in linear and _zero(fill)


def _zero(argument: Any) -> bool:
    return isinstance(argument, (int, float)) and argument == 0


_LINEAR: dict[str, Callable[[Node, set[Node]], bool]] = {
    "add": _both, "sub": _both, "mul": _scaled, "truediv": _divided, "div": _divided,
    "neg": lambda node, linear: True, "to": _cast, "where": _chosen, "masked_fill": _filled,
}  # fmt: skip


def overflows(program: Program, dtype: torch.dtype) -> bool:
    """Whether a finite number in a program is infinite in a dtype, as the region would round it."""
    largest = torch.finfo(dtype).max
    return any(
        isinstance(a, (int, float)) and math.isfinite(a) and abs(a) > largest
        for node in program.graph.nodes
        for a in node.args
    )


def is_bounded(program: Program) -> bool:
    """Whether finite scores certainly stay finite and of moderate size, or become -inf."""
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        name = _name(node)
        numbers = [a for a in node.args if isinstance(a, (int, float))]
        if any(abs(n) > _LARGEST and n != -math.inf for n in numbers):
            return False
        if name == "truediv":
            if not isinstance(node.args[1], (int, float)) or abs(node.args[1]) < 1 / _LARGEST:
                return False
        elif name not in _FINITE and name not in ("where", "masked_fill"):
            if not _is_condition(name):
                return False
    return True


def _is_condition(name: str) -> bool:
    return name in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "bitwise_and",
                    "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_not",
                    "bitwise_not", "invert", "floordiv", "mod", "floor_divide")  # fmt: skip


def scaled(program: Program, factor: float) -> Program:
    """The program with its result multiplied by a number, in one with a last multiplication."""
    data = json.loads(program.text)
    body = data["body"]
    last = body[-1] if body and body[-1][0] == data["out"] else None
    if last is not None and last[1] in ("operator:mul", "torch:mul") and not last[3]:
        for i, argument in enumerate(last[2]):
            if isinstance(argument, dict) and "float" in argument:
                number = float.fromhex(argument["float"]) if "0x" in argument["float"] else math.nan
                if math.isfinite(number) and not _is_read(body, last):
                    last[2][i] = {"float": (number * factor).hex()}
                    return Program(json.dumps(data, separators=(",", ":")))
    step = ["in_units", "operator:mul", [{"$": data["out"]}, {"float": factor.hex()}], {}]
    data = {**data, "body": [*body, step], "out": "in_units"}
    return Program(json.dumps(data, separators=(",", ":")))


def _is_read(body: list[Any], step: list[Any]) -> bool:
    return any({"$": step[0]} in other[2] for other in body)
