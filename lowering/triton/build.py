"""From a layout to kernels, each made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from fuser.torch_private import differentiable, eager_world

from .kernel import Kernel


class Text(Protocol):
    """The text of a kernel."""

    def kernel(self, origin: str) -> Kernel: ...


class Build(Protocol):
    """What makes kernels of one family."""

    def __call__(
        self, layout: Any, stage: str, arguments: tuple[Any, ...], config: Any, origin: str = ""
    ) -> Kernel: ...


def builder_of(texts: Mapping[str, Callable[..., Text]]) -> Build:
    """What makes kernels from texts, by stage.

    It takes a layout, what a kernel is specialised on; a stage and its arguments; how it is cut;
    pattern and source lines, for the header.
    """

    @lru_cache(maxsize=4096)
    def build(
        layout: Any, stage: str, arguments: tuple[Any, ...], config: Any, origin: str = ""
    ) -> Kernel:
        # below autograd, where operators run, no derivative could be traced
        with eager_world(), differentiable():
            return texts[stage](layout, config, *arguments).kernel(origin)

    return build
