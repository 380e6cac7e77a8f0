"""Bind the arguments of operators by the names of their signatures or ATen schemas."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from ..torch_private import OpOverload, dispatched
from .run import SYMBOLIC

RENAMED = {"exponent": "other", "self": "input", "axis": "dim", "keepdims": "keepdim"}


def bind(node: Node) -> dict[str, Any]:
    """Arguments of an operator that the tables do not know, by the names of its signature."""
    function: Any = dispatched(node.target)
    if node.op == "call_method":
        function = getattr(torch.Tensor, str(node.target), None)
    if inspect.isfunction(function):
        try:
            bound = inspect.signature(function).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            return _positional(node)
        bound.apply_defaults()
        return bound.arguments
    if isinstance(function, OpOverload):
        schemas = [function._schema]
    else:
        name = getattr(function, "__name__", "")
        schemas = _schemas(name) if name != "getattr" else []
    for schema in schemas:
        found = _bind_schema(schema, node)
        if found is not None:
            return found
    return _positional(node)


def _positional(node: Node) -> dict[str, Any]:
    return {f"_{i}": a for i, a in enumerate(node.args)} | dict(node.kwargs)


def _bind_schema(schema: Any, node: Node) -> dict[str, Any] | None:
    names = [a.name for a in schema.arguments if not a.kwarg_only]
    args, known = list(node.args), {a.name: a for a in schema.arguments}
    keywords = {
        "self" if k == "input" and "self" in known else k: v for k, v in node.kwargs.items()
    }
    lists = int(names[:1] == ["self"])  # where sizes or dimensions may be given one by one
    if len(args) > len(names) == lists + 1:
        args = [*args[:lists], tuple(args[lists:])]
    if len(args) > len(names) or any(k not in known for k in keywords):
        return None
    bound = dict(zip(names, args, strict=False)) | keywords
    for name, argument in known.items():
        if name not in bound:
            if not argument.has_default_value():
                return None
            bound[name] = argument.default_value
        if argument.N and _is_number(bound[name]):  # one for all dimensions
            bound[name] = (bound[name],) * argument.N
    return bound


def _is_number(given: Any) -> bool:
    found = given.meta.get("example_value") if isinstance(given, Node) else given
    return isinstance(found, (int, float, *SYMBOLIC)) and not isinstance(found, bool)


@lru_cache(maxsize=1024)
def _schemas(name: str) -> list[Any]:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return []
    found = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return [s for s in found if not any("Dimname" in str(a.type) for a in s.arguments)]


@lru_cache(maxsize=1024)
def defaults(name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for schema in _schemas(name):
        for argument in schema.arguments:
            key = str(argument.name)
            if argument.has_default_value():
                found.setdefault(RENAMED.get(key, key), argument.default_value)
    return found
