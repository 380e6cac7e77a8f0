"""What is private in torch is touched here alone, each with its reason; Dynamo's reading of
bytecode in `dynamo_private` and `runs_private`.

Versions: written against torch 2.13, meant to work from 2.11.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Generator, Iterable
from functools import lru_cache
from typing import Any

import sympy
import torch
import torch._dynamo as dynamo
from torch._C._dynamo import eval_frame
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import convert_frame, pgo
from torch._dynamo import exc as dynamo_exc
from torch._dynamo.backends.registry import list_backends, lookup_backend
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch._dynamo.utils import counters, graph_break_reasons
from torch._functorch import config as functorch_config
from torch._guards import tracing
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._jit_internal import boolean_dispatched
from torch._library.custom_ops import _maybe_get_opdef
from torch._library.triton import set_wrap_triton_enabled
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd import forward_ad
from torch.fx import graph as fx_graph
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    _constrain_range_for_size,
    free_symbols,
    free_unbacked_symbols,
    statically_known_true,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils._sympy.functions import FloorDiv

__all__ = [
    "BUILTIN_FUNCTIONS", "GROUPED_PRODUCT", "DeletedGuardManagerWrapper", "FakeTensor",
    "FakeTensorMode", "FloorDiv", "GuardOnDataDependentSymNode", "HigherOrderOperator",
    "OpOverload", "OpOverloadPacket", "apart", "cache_dir",
    "convert_frame", "core_aten_decompositions", "counters", "differentiable", "dispatched",
    "dynamo", "eager_world", "eval_frame", "faked", "fresh_size", "get_decompositions",
    "graph_break_reasons", "has_gradient", "hint", "hints", "in_forward_mode",
    "is_control_flow", "is_data_dependent", "kernels_launched", "known_true", "list_backends",
    "lookup_backend", "make_fx", "memory", "multiplies_in_hardware", "outermost",
    "pgo", "pytree", "symbols", "to_expr", "unbacked",
    "written_names",
]  # fmt: skip

BUILTIN_FUNCTIONS: Any = torch._C._nn  # type: ignore[attr-defined]
"""Functions of `torch.nn.functional` that are written in C++, under their own names."""
GROUPED_PRODUCT: Any = torch._grouped_mm
"""Runs of rows times matrices of their own, in the dtypes that have kernels."""


def written_names() -> dict[str, str]:
    """Names that the code of any graph may use, and the statements that import them."""
    return {name: found.import_str for name, found in fx_graph._custom_builtins.items()}


def memory(x: torch.Tensor) -> int:
    """A key that is equal for tensors in the same memory; fake ones have a key, but no address."""
    return x.untyped_storage()._cdata


def to_expr(size: Any) -> int | sympy.Expr:
    """A dimension as an int, or as the sympy expression behind a symbol (no guard is added)."""
    if isinstance(size, int):
        return size
    expr: Any = sympy.sympify(size.node.expr if hasattr(size, "node") else size)
    if expr.has(FloorDiv):
        expr = expr.replace(FloorDiv, _divided)
    return int(expr) if expr.is_Integer else expr


def _divided(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """A quotient without its floor, where b divides a; torch leaves `s*s // s` as it is."""
    ratio = sympy.cancel(a / b) if b.is_positive else None
    exact = ratio is not None and ratio.is_polynomial() and ratio.is_integer
    return ratio if exact else FloorDiv(a, b)  # type: ignore[no-any-return]


def symbols(sizes: Iterable[int | torch.SymInt]) -> set[sympy.Symbol]:
    """The symbols that sizes are made of."""
    return set(free_symbols([size for size in sizes if not isinstance(size, int)]))


def is_wrapper(example: object) -> bool:
    """Whether a value is a tensor that wraps others, as DTensor does for parts on several ranks."""
    return is_traceable_wrapper_subclass(example)


def fresh_size(beside: torch.Tensor, most: Any, least: int = 0) -> Any:
    """A size between `least` and `most` that nobody knows while compiling, beside a fake tensor."""
    made = beside.fake_mode.shape_env.create_unbacked_symint()  # type: ignore[attr-defined]
    _constrain_range_for_size(made, min=least, max=most if type(most) is int else None)
    return made


def unbacked(sizes: Iterable[int | torch.SymInt]) -> set[sympy.Symbol]:
    """Those of which Dynamo knows that they are counted while running."""
    return set(free_unbacked_symbols([size for size in sizes if not isinstance(size, int)]))


def hints(tensors: Iterable[torch.Tensor]) -> dict[sympy.Expr, sympy.Expr]:
    """The sizes that symbols had in the example, for decisions that any size leaves correct."""
    sizes = [s for t in tensors for s in t.shape if isinstance(s, torch.SymInt)]
    return {s.node.expr: sympy.Integer(s.node.hint) for s in sizes if s.node.has_hint()}


def hint(size: int | torch.SymInt) -> int | None:
    """The same for one size (no guard is added); None where it is counted in the data."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else None


def multiplies_in_hardware(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of a half dtype on this CPU without converting them."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def known_true(condition: Any) -> bool:
    """Whether a (symbolic) boolean holds for certain, without adding a guard."""
    return bool(statically_known_true(condition))


def is_control_flow(error: BaseException) -> bool:
    """Dynamo restarts its analysis by raising; such exceptions are not failures and pass through.

    `RestartAnalysis` and its kin derive from TorchDynamoException, and so do the errors that
    Dynamo wants to see itself (Unsupported, BackendCompilerFailed with a cause of that kind).
    """
    return isinstance(error, dynamo_exc.TorchDynamoException)


def is_data_dependent(error: BaseException) -> bool:
    """Whether something asked a fake tensor for its values."""
    kinds = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
    return isinstance(error, kinds)


@contextlib.contextmanager
def without_saved_tensors_hooks() -> Generator[None]:
    """Within the block, what autograd saves is not shown to the user's hooks.

    Activation checkpointing counts what they see, and what runs in a compile is not the program.
    """
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


@contextlib.contextmanager
def faked(mode: FakeTensorMode | None) -> Generator[None]:
    """Run operators on fake tensors as Dynamo does, which lets them broadcast symbolic sizes.

    Sizes that are counted in the data stay within the block. What fails raises; torch would log its
    stack trace too, whoever catches it.
    """
    thread, logger = threading.get_ident(), logging.getLogger("torch._subclasses.fake_tensor")
    shape_env = None if mode is None else mode.shape_env

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        with contextlib.ExitStack() as stack:
            if mode is not None:
                stack.enter_context(mode)
                stack.enter_context(enable_python_dispatcher())
            if shape_env is not None:
                stack.enter_context(shape_env.ignore_fresh_unbacked_symbols())
            yield
    finally:
        logger.removeFilter(others)


def has_gradient(target: Any) -> bool:
    """Whether an operator has an autograd formula; what is no operator of the dispatcher has."""
    if isinstance(target, OpOverloadPacket):
        return all(has_gradient(getattr(target, name)) for name in target.overloads())
    if not isinstance(target, OpOverload) or target.namespace == "aten":
        return True
    custom = _maybe_get_opdef(target)
    if custom is not None:  # its kernel for autograd raises where it has no formula
        return custom._backward_fn is not None
    keys = ("CompositeImplicitAutograd", "Autograd", "AutogradCPU", "AutogradCUDA")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key) for key in keys)


def dispatched(function: Any) -> Any:
    """The function with the signature behind one of `F.max_pool1d`'s kind, which has none."""
    try:
        found = boolean_dispatched.get(function)
    except TypeError:
        return function
    return function if found is None else found["if_false"]


@lru_cache(maxsize=1)
def _initial_dispatch() -> tuple[Any, Any]:
    """The dispatch keys that a new thread includes and excludes."""
    found: list[Any] = []

    def look() -> None:
        found.append(torch._C._dispatch_tls_local_include_set())
        found.append(torch._C._dispatch_tls_local_exclude_set())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0], found[1]


@contextlib.contextmanager
def outermost() -> Generator[None]:
    """Inside an operator's kernel, which runs below autograd, vmap and more: dispatch as a program
    does that calls an operator, without gradients."""
    with torch._C._ForceDispatchKeyGuard(*_initial_dispatch()), torch.no_grad():
        yield


@contextlib.contextmanager
def differentiable() -> Generator[None]:
    """The same, recording gradients."""
    with outermost(), torch.enable_grad():
        yield


@contextlib.contextmanager
def eager_world() -> Generator[None]:
    """Run real tensor code in the middle of a compile: no fake mode, no functorch, no autocast."""
    with (
        unset_fake_temporarily(),
        _disable_current_modes(),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        yield


@contextlib.contextmanager
def apart() -> Generator[None]:
    """In the middle of a compile: compile and run something else, on real tensors, with gradients.

    Its backward is compiled together with its forward, as it would count as this compile's later;
    and runs in this thread, since another would wait for the lock that this compile holds, should
    anything be compiled there. Autocast is off, but may be switched on.
    """
    with (
        unset_fake_temporarily(),
        _disable_current_modes(),
        torch._C.DisableTorchFunctionSubclass(),
        differentiable(),
        tracing(None),
        torch.autograd.set_multithreading_enabled(False),
        functorch_config.patch(force_non_lazy_backward_lowering=True),
    ):
        yield


def kernels_launched() -> contextlib.AbstractContextManager[None]:
    """Within the block, kernels behind `wrap_triton` are launched, not dispatched as operators."""
    return set_wrap_triton_enabled(False)


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken (`torch.autograd.forward_ad.dual_level`)."""
    return forward_ad._current_level >= 0
