"""The autocast and grad mode under which a part of a captured graph runs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch.fx import Node

from .axes import Unproven
from .view import GraphView


@contextlib.contextmanager
def modes_at(view: GraphView, node: Node) -> Generator[None]:
    """The autocast and grad mode under which a node of the graph runs.

    Raises:
        Unproven: another mode is switched before the node.
    """
    casts: dict[Any, Any] = {}
    with contextlib.ExitStack() as stack:
        for switch in (view.nodes[p] for p in view.mode_switches if p < view.order[node]):
            name = getattr(switch.target, "__name__", "")
            if "_enter_autocast" in name:
                casts[switch] = torch.autocast(*switch.args, **switch.kwargs)  # type: ignore[arg-type]
            elif "_exit_autocast" in name:
                casts.pop(switch.args[0], None)
            elif "_set_grad_enabled" in name:
                stack.enter_context(torch.set_grad_enabled(bool(switch.args[0])))
            else:
                raise Unproven(f"a mode is switched before it, by `{switch.name}`")
        for cast in casts.values():
            stack.enter_context(cast)
        yield
