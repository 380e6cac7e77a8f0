"""All private APIs of Inductor: its attention patterns, options, caches, orders of tensors."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch._inductor import config
from torch._ops import OpOverload
from torch.fx import Node


def fresh_cache() -> contextlib.AbstractContextManager[None]:
    """Within the block, nothing that was compiled before is found on disk or in memory."""
    from torch._inductor import utils

    return utils.fresh_cache()


# Inductor's own attention patterns ignore constants and axes (pytorch#196468) and crash on integer
# or tensor scales. Each pattern's check is wrapped once; the wrapper answers "no match" only while
# this context variable is set, so other compiles, in this thread or another, see no change.
_patterns_off: contextvars.ContextVar[bool] = contextvars.ContextVar("patterns_off", default=False)
_wrap_lock = threading.Lock()


@contextlib.contextmanager
def attention_patterns_off(device: torch.device) -> Generator[None]:
    """Within the block, Inductor's serialised attention patterns (`_sfdp_*`) do not match.

    A pass that does nothing, but has an id, joins the key of Inductor's caches, so that an artifact
    that was compiled with the patterns on is not taken for one that was not.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class PatternsOff(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            return None

        def uuid(self) -> str:
            return "fuser: attention patterns off"

    _wrap_attention_patterns(device)
    keyed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if config.joint_custom_pre_pass is None:
        keyed = config.patch(joint_custom_pre_pass=PatternsOff())
    token = _patterns_off.set(True)
    try:
        with keyed:
            yield
    finally:
        _patterns_off.reset(token)


def _wrap_attention_patterns(device: torch.device) -> None:
    from torch._inductor.fx_passes import fuse_attention, joint_graph

    with _wrap_lock:
        joint_graph.lazy_init(device)
        for entries in joint_graph.patterns.patterns.values():
            for entry in entries:
                check = getattr(entry, "extra_check", None)
                if check is None or hasattr(check, "fuser_wrapped"):
                    continue
                if _closes_over_module(check, fuse_attention.__name__):
                    entry.extra_check = _switchable(check)


def _switchable(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def checked(match: Any) -> bool:
        return False if _patterns_off.get() else check(match)

    checked.fuser_wrapped = True  # type: ignore[attr-defined]
    return checked


def _closes_over_module(function: Callable[..., Any], module: str) -> bool:
    cells = getattr(function, "__closure__", None) or ()
    contents = [function]
    for cell in cells:
        with contextlib.suppress(ValueError):
            contents.append(cell.cell_contents)
    return any(getattr(c, "__module__", None) == module for c in contents)


def random_as_in_eager() -> bool:
    """Whether Inductor is asked to draw the numbers that eager would (`fallback_random`)."""
    return bool(config.fallback_random)


def random_options(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Within the block, `random_as_in_eager` answers for a compile with these Inductor options."""
    wanted = {k: v for k, v in options.items() if k == "fallback_random"}
    return config.patch(wanted)


def autotunes(mode: str | None, options: Mapping[str, Any]) -> bool:
    """Whether Inductor, with this mode and these options, measures what it chooses among."""
    asked = bool(options.get("max_autotune", config.max_autotune))
    return asked or (mode or "").startswith("max-autotune")


def packaging() -> bool:
    """Whether Inductor is compiling for a package of AOTInductor's."""
    from torch._inductor.virtualized import V

    return bool(V.aot_compilation)


def flex_supported() -> bool:
    """Whether Inductor has its C++ template of FlexAttention for this CPU."""
    capable = torch.cpu._is_avx2_supported() and os.getenv("ATEN_CPU_CAPABILITY") != "default"
    return capable and sys.platform != "darwin" and not torch.xpu.is_available()


def inductor(mode: str | None, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Inductor exactly as `torch.compile(backend="inductor", mode=..., options=...)` runs it.

    The wrapper class checks option names and merges a mode's settings; there is no public way to
    have both from inside another backend.
    """
    wrapper = torch._TorchCompileInductorWrapper(mode, dict(options) or None, None)
    return lambda gm, inputs: wrapper(gm, inputs)


def keeps_channels_last() -> bool:
    """Whether Inductor keeps images with channels last, on a CPU, in a graph with convolutions,
    in whatever order they were captured."""
    return config.layout_optimization and torch.backends.mkldnn.is_available()


@lru_cache
def follows_channels_last(function: OpOverload, images: tuple[int, ...]) -> None:
    """Make Inductor give an operator its images in the order in which it keeps those of a graph.

    An operator gets what it reads as it was captured; where Inductor has put channels last in
    between, that is a copy before the operator and another one after it.

    Args:
        function: takes images in either order, and gives results in that of the first.
        images: positions of its arguments that are images.
    """
    from torch._inductor.ir import ExternKernel
    from torch._inductor.lowering import constrain_to_fx_strides, make_fallback
    from torch._inductor.virtualized import V

    def constraint(node: Node, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        given = list(args)
        if not V.graph.layout_opt or any(len(given[i].get_size()) != 4 for i in images):
            return constrain_to_fx_strides(node, *args, **kwargs)
        for i in images:
            given[i] = ExternKernel.require_channels_last(given[i])
        return tuple(given), kwargs

    make_fallback(function, layout_constraint=constraint, warn=False)
