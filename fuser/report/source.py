"""From a node to the user's program: file, line, code and module path."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..events import Row, Where
from ..torch_private import OpOverload

_FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<code>[^\n]+))?'
)
_TORCH = os.path.dirname(torch.__file__)
_INTERNAL = (
    *(os.path.join(_TORCH, part) for part in ("nn/", "_", "utils/")),
    os.path.join(os.path.dirname(os.path.dirname(__file__)), ""),
)
"""Torch's modules and machinery, and this package; a checkout of ours holds user code, too."""


def where(node: Node) -> Where:
    """The innermost frame of the user's program in which a node was made."""
    file, line, code = _innermost(node.meta.get("stack_trace") or "")
    return Where(node.name, file, line, code, module_path(node))


@lru_cache(maxsize=1024)
def _innermost(trace: str) -> tuple[str, int, str]:
    """File, line and code of the user's frame in a stack; nodes of one line share their stack."""
    frames = list(_FRAME.finditer(trace))
    own = [f for f in frames if not f["file"].startswith(_INTERNAL)] or frames
    if not own:
        return "", 0, ""
    return own[-1]["file"], int(own[-1]["line"]), (own[-1]["code"] or "").strip()


def rows(module: GraphModule) -> tuple[Row, ...]:
    """Every node of a graph in one line, with its place."""
    return tuple(Row(describe(node), where(node)) for node in module.graph.nodes)


def origin(pattern: str, node: Node) -> str:
    """A pattern and the user's line, `attention.softmax at modeling_llama.py:123`.

    Nothing in it differs from machine to machine, or between layers that share their code: no
    folder, no module path, and no place at all in code that was never in a file.
    """
    place = where(node)
    if not place.file or place.file[0] == "<":
        return pattern
    return f"{pattern} at {os.path.basename(place.file)}:{place.line}"


def module_path(node: Node) -> str:
    """The module that made a node, as a user would write it: `model.layers.3.self_attn`."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return _dotted(str(list(stack.values())[-1][0]))


@lru_cache(maxsize=1024)
def _dotted(path: str) -> str:
    path = re.sub(r"^[LG]\[['\"]([^'\"]+)['\"]\]", r"\1", path)
    path = re.sub(r"^self(\.|$)", "", path)
    path = re.sub(r"_modules\[['\"]([^'\"]+)['\"]\]", r"\1", path)
    return re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path).strip(".")


def describe(node: Node) -> str:
    """One line of FX with its dtype and shape."""
    example = node.meta.get("example_value")
    kind = f": {_type(example)}" if isinstance(example, torch.Tensor) else ""
    if node.op == "get_attr":
        return f"{node.name}{kind} = self.{node.target}"
    args = ", ".join(
        [_show(a) for a in node.args] + [f"{k}={_show(v)}" for k, v in node.kwargs.items()]
    )
    name = str(node.target)
    if node.op == "call_function":
        name = getattr(node.target, "__name__", name)
        if isinstance(node.target, OpOverload):
            name = str(node.target)
    return f"{node.name}{kind} = {'.' if node.op == 'call_method' else ''}{name}({args})"


def _type(example: torch.Tensor) -> str:
    sizes = ", ".join(str(s) for s in example.shape)
    return f"{str(example.dtype).removeprefix('torch.')}[{sizes}]"


def _show(argument: Any) -> str:
    if isinstance(argument, Node):
        return argument.name
    if isinstance(argument, (tuple, list)):
        return f"({', '.join(map(_show, argument))})"
    text = str(argument).removeprefix("torch.")
    return text if len(text) < 80 else f"{text[:60]}…{len(text)} characters"
