"""Who wants to see what will be done to a graph, just before it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import TypeAlias

from .graph.view import GraphView
from .plan import Planned

Onlooker: TypeAlias = Callable[[GraphView, Sequence[Planned]], None]

_onlookers: ContextVar[tuple[Onlooker, ...]] = ContextVar("onlookers", default=())


@contextlib.contextmanager
def looking(look: Onlooker) -> Generator[None]:
    """Within the block, call `look` with every graph, and body in one, that is transformed, and
    the rewrites that will be made; it changes nothing."""
    token = _onlookers.set((*_onlookers.get(), look))
    try:
        yield
    finally:
        _onlookers.reset(token)


def show(view: GraphView, planned: Sequence[Planned]) -> None:
    """Call all of them."""
    for look in _onlookers.get():
        look(view, planned)
