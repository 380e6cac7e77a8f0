"""An inner backend that keeps what reached it, then has it run as in other tests.

graphs = caught()
compiled(fn, args, inner=CATCH)
operators(graphs[-1])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend, register_backend
from torch.fx import GraphModule

from fuser.graph.view import GraphView
from fuser.transform import bodies

from . import every

CATCH = "fuser_tests_catch"

_graphs: list[GraphModule] = []
_keywords: list[dict[str, Any]] = []


@register_backend(name=CATCH)
def catch(gm: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """What `every.inner` says, after the very graph module and the keywords were kept."""
    _graphs.append(gm)
    _keywords.append(dict(kwargs))
    return lookup_backend(every.inner())(gm, inputs)


def caught() -> list[GraphModule]:
    """The list that is filled from now on."""
    _graphs.clear()
    _keywords.clear()
    return _graphs


def keywords() -> list[dict[str, Any]]:
    """What else the inner backend was called with, since `caught()`."""
    return _keywords


def operators(module: GraphModule) -> Counter[str]:
    """How often each canonical operator stands in a graph and the bodies within it."""
    view = GraphView(module)
    names = Counter(_names(view))
    for body in bodies(module):
        names += operators(body)
    return names


def _names(view: GraphView) -> Iterator[str]:
    for node in view.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            yield str(node.target._schema.name).replace("::", ".")
        else:
            yield view.op(node).name or str(getattr(node.target, "__name__", node.target))
