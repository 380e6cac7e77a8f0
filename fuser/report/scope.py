"""Compile once without anyone noticing: what `fuser.explain` isolates in Dynamo and in the model.

Dynamo keeps its state beside the user's code objects, so compiling a model again, even with
another backend, can change what the user's own compiled copy does next. `torch._dynamo.explain`
resets everything, which throws the user's compiled functions away. Here instead:

- caches: a code object first seen here is reset to untouched. One that the user has compiled keeps
  its entries; ours are tied to a backend object that nobody else has, live in a region of their own
  (`isolate_recompiles`, where torch has it), and are emptied at the end. What remains of them only
  counts towards `accumulated_recompile_limit`; without that option towards `recompile_limit`, too.
- recompile limits are lifted, so that ours neither reach a limit nor mark a frame.
- automatic dynamic shapes: sizes seen here are forgotten, and those seen before are not used.
- counters and the list of graph breaks are put back.
- random state (torch's, Python's) is forked; buffers of the model that changed are put back.

Not undone: parameters that the function itself changes, `.grad`, other Python side effects, and
that a frame which Dynamo has given up on in the user's own compile stays given up here.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections import defaultdict
from collections.abc import Callable, Generator
from types import CodeType
from typing import Any

import torch
from torch import nn

from ..torch_private import (
    DeletedGuardManagerWrapper,
    convert_frame,
    counters,
    dynamo,
    eval_frame,
    graph_break_reasons,
    pgo,
)
from .breaks import GraphBreaks


@contextlib.contextmanager
def isolated(compiler: Callable[..., Any]) -> Generator[GraphBreaks]:
    """Compile within the block as in a fresh process; afterwards Dynamo is as it was.

    Args:
        compiler: the backend object that is used within the block, and nowhere else.

    Yields:
        the graph breaks; complete when the block has ended.
    """
    breaks = GraphBreaks()
    limits: dict[str, Any] = {
        "recompile_limit": 1 << 20,
        "accumulated_recompile_limit": 1 << 20,
        "automatic_dynamic_local_pgo": False,
        "automatic_dynamic_remote_pgo": False,
    }
    with dynamo.config.patch(limits), _counters(), _sizes(), _codes(compiler):
        before = {message: int(n) for message, n in counters["unimplemented"].items()}
        known = len(graph_break_reasons)
        try:
            yield breaks
        finally:
            unsupported = counters["unimplemented"].items()
            breaks.collect(
                graph_break_reasons[known:],
                [message for message, n in unsupported if n > before.get(message, 0)],
            )
            del graph_break_reasons[known:]


def optimize(fn: Callable[..., Any], compiler: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile(fn, backend=compiler)` with a cache region of its own where torch has them."""
    known = inspect.signature(torch.compile).parameters
    region = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    return dynamo.optimize(compiler, **region)(fn)


@contextlib.contextmanager
def _counters() -> Generator[None]:
    saved = {name: dict(counter) for name, counter in counters.items()}
    try:
        yield
    finally:
        for name in list(counters):
            counters[name].clear()
            counters[name].update(saved.get(name, {}))
            if name not in saved:
                del counters[name]


@contextlib.contextmanager
def _sizes() -> Generator[None]:
    """Automatic dynamic shapes remember sizes by file, line and name of the function."""
    saved = pgo._CODE_STATE
    pgo._CODE_STATE = defaultdict(pgo.CodeState)
    try:
        yield
    finally:
        pgo._CODE_STATE = saved


@contextlib.contextmanager
def _codes(compiler: Callable[..., Any]) -> Generator[None]:
    """Sees every code object that Dynamo tries, and cleans up behind it."""
    users = convert_frame.input_codes
    convert_frame.input_codes = convert_frame.Tracker()
    try:
        yield
    finally:
        tried, convert_frame.input_codes = convert_frame.input_codes, users
        for code in [c for c in (reference() for reference in tried.seen) if c is not None]:
            if code in users:
                _invalidate(code, compiler)
            else:
                eval_frame.reset_code(code)


def _invalidate(code: CodeType, compiler: Callable[..., Any]) -> None:
    for entry in eval_frame._debug_get_cache_entry_list(code):
        manager = entry.guard_manager
        extra = getattr(manager, "extra_state", None)
        if entry.backend is compiler and extra is not None:
            extra.invalidate(entry, DeletedGuardManagerWrapper("fuser.explain is over"))


@contextlib.contextmanager
def undisturbed(fn: Callable[..., Any]) -> Generator[None]:
    """Random state and the buffers of the modules behind `fn` are afterwards as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    modules = _modules(fn)
    python = random.getstate()
    with torch.random.fork_rng(devices), _buffers(modules), _uncompiled(modules):
        try:
            yield
        finally:
            random.setstate(python)


def _modules(fn: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a callable is, belongs to, or closes over."""
    found: list[Any] = [fn, getattr(fn, "__self__", None)]
    for cell in getattr(fn, "__closure__", None) or ():
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    roots = [m for m in found if isinstance(m, nn.Module)]
    return list(dict.fromkeys(m for root in roots for m in root.modules()))


@contextlib.contextmanager
def _buffers(modules: list[nn.Module]) -> Generator[None]:
    saved = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    try:
        yield
    finally:
        for module, name, buffer, copy in saved:
            module._buffers[name] = buffer
            # not by its version: batch_norm's kernels write running statistics without counting it
            if not torch.equal(buffer, copy):
                with torch.no_grad():
                    buffer.copy_(copy)


@contextlib.contextmanager
def _uncompiled(modules: list[nn.Module]) -> Generator[None]:
    """`module.compile()`, and a `forward` compiled in place, would run the user's own backend
    within ours."""
    calls = [(m, m._compiled_call_impl) for m in modules if m._compiled_call_impl is not None]
    forwards = [
        (m, m.__dict__["forward"])
        for m in modules
        if hasattr(m.__dict__.get("forward"), "_torchdynamo_orig_callable")
    ]
    for module, _ in calls:
        module._compiled_call_impl = None
    for module, forward in forwards:
        module.__dict__["forward"] = forward._torchdynamo_orig_callable
    try:
        yield
    finally:
        for module, call in calls:
            module._compiled_call_impl = call
        for module, forward in forwards:
            module.__dict__["forward"] = forward
