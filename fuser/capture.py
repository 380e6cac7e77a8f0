"""Loops over experts in one graph: what Dynamo needs for that, for one model, while it compiles.

A loop whose rows depend on data breaks the graph, and a break inside a loop leaves the whole
function to eager. Where sizes may be symbols the loop is captured, and most become one region. That
is tried for each frame of a model that `fuser.compile` compiled, while the frame is compiled and no
longer; the frame is compiled as always where the attempt fails, whatever it fails with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from contextvars import ContextVar
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from .distinct import distinct
from .errors import NotWhole, first_sentence
from .events import Record
from .graph.ops import is_tensor, value
from .report.source import where
from .torch_private import convert_frame, dynamo, eval_frame, unbacked
from .turns import OVER_ALL, UNPROVED, supposed

if TYPE_CHECKING:
    from .dynamo_private import Reader

_FLAG = {"capture_dynamic_output_shape_ops": True}
_PACKAGE = os.path.join(os.path.dirname(__file__), "")
_attempt: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


class Attempt:
    """One try to compile a frame with its loops in one graph.

    Attributes:
        strict: the graph is kept whatever is in it, since no other would be taken.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict


def is_attempt() -> bool:
    """Whether what is being compiled will be compiled again where that fails."""
    return _attempt.get() is not None


def require_sure(module: GraphModule, record: Record) -> None:
    """What the inner backend compiles when the backward runs for the first time has no second try:
    graphs whose sizes still depend on data are not trained.

    Raises:
        NotWhole: this one would be; or it holds what was supposed of a loop and is not proved.
    """
    left = supposed(module)
    if left:
        found = [m for m in record.near_misses if m.pattern.startswith("moe.")]
        why = f": {found[-1].reason}" if found else ""
        place = where(left[0])
        raise NotWhole(f"{UNPROVED}{why}", f"{place}: `{place.code}`", OVER_ALL)
    attempt = _attempt.get()
    if attempt is None or attempt.strict or not torch.is_grad_enabled():
        return
    tensors = [node for node in module.graph.nodes if is_tensor(node)]
    if not any(value(node).requires_grad for node in tensors):
        return
    if any(unbacked(value(node).shape) for node in tensors):
        why = "it is trained, and not all sizes that depend on data are gone"
        raise NotWhole(f"{why}{_left(record)}")


def _left(record: Record) -> str:
    """The first mixture that was found and left as it was, and why: its rewrite would have taken
    the sizes along."""
    found = (m for m in record.near_misses if m.pattern.startswith("moe.") and m.sound)
    miss = next(found, None)
    if miss is None:
        return ""
    return f"; {miss.pattern} was left: {miss.reason} (fuser.policy=always forces it)"


@contextlib.contextmanager
def _trying(attempt: Attempt, reader: Reader | None) -> Generator[None]:
    token = _attempt.set(attempt)
    reading = contextlib.nullcontext() if reader is None else reader.reading()
    try:
        with dynamo.config.patch(_FLAG), reading:
            yield
    finally:
        _attempt.reset(token)


class Whole:
    """Converts frames with loops in one graph, and as always where that fails.

    It stands in the place of Dynamo's own converter, within the lock that lets one thread compile.

    Attributes:
        convert: Dynamo's.
        failed: functions that were compiled as always, and why.
    """

    def __init__(self, convert: Any, strict: bool) -> None:
        self.convert, self._strict = convert, strict
        self.failed: list[str] = []
        self._torchdynamo_orig_backend: Any = convert._torchdynamo_orig_backend

    @property
    def _clone_with_backend(self) -> Callable[..., Whole]:
        """The same for parts of a graph that DistributedDataParallel has compiled."""
        clone: Any = self.convert._clone_with_backend
        return lambda backend: Whole(clone(backend), self._strict)

    def __call__(self, frame: Any, *args: Any, skip: int = 0) -> Any:
        reader = _reader()
        readers = (None,) if reader is None else (reader, None)
        if dynamo.config.capture_dynamic_output_shape_ops:
            readers = ()
        for chosen in readers:
            try:
                with _trying(Attempt(self._strict), chosen):
                    found = self.convert(frame, *args, skip=skip + 1)
                if found.guarded_code is not None:
                    return found
            except Exception as error:
                told = _told(frame.f_code, error)
                if told is not None and told not in self.failed:
                    self.failed.append(told)
            if reader is None or not reader.supposed:
                break
        return self.convert(frame, *args, skip=skip + 1)


def _reader() -> Reader | None:
    """What reads loops over the experts that were hit, where this version of Dynamo has all that it
    takes hold of."""
    try:
        from .dynamo_private import Reader
    except ImportError:
        return None
    return Reader()


def _told(code: CodeType, error: Exception) -> str | None:
    """Why an attempt failed; None where that is told again of the functions that a caller of ours
    calls."""
    cause = getattr(error, "inner_exception", error)
    if isinstance(error.__context__, NotWhole):  # which Dynamo takes for an error of its own
        cause = error.__context__
    if isinstance(cause, NotWhole) and cause.place:
        return f"{cause.place}: not captured whole: {cause.reason}. {cause.hint}"
    if code.co_filename.startswith(_PACKAGE):
        return None
    reason = f"{cause.reason}." if isinstance(cause, NotWhole) else first_sentence(cause)
    place = f"{code.co_filename}:{code.co_firstlineno}"
    return f"{place}: `{code.co_name}` is compiled as torch.compile does: {reason}"


def capture_whole(compiled: Any, strict: bool) -> bool:
    """Have a compiled module or function convert its frames with loops in one graph.

    Args:
        compiled: what torch.compile returned.
        strict: no graph may break, so that there is no other graph to take.

    Returns:
        whether there was anything to change: not where compilation is disabled.
    """
    holder: Any = callback_of(compiled)
    if type(holder) is not convert_frame.CatchErrorsWrapper:
        return False
    whole: Any = Whole(holder._torchdynamo_orig_backend, strict)
    holder._torchdynamo_orig_backend = whole
    return True


def failures_of(compiled: Any) -> list[str] | None:
    """Functions of what fuser.compile returned that were compiled as always, and why; None for
    what it has not returned."""
    found = getattr(callback_of(compiled), "_torchdynamo_orig_backend", None)
    return found.failed if isinstance(found, Whole) else None


def callback_of(compiled: Any) -> Any:
    """What Dynamo calls with every frame that it has not seen, and that holds the converter."""
    context = getattr(compiled, "dynamo_ctx", None)
    if context is not None:
        return context.callback
    names: tuple[str, ...] = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
    cells: tuple[Any, ...] = getattr(compiled, "__closure__", None) or ()
    closed: dict[str, Any] = dict(zip(names, cells, strict=True))
    return closed["callback"].cell_contents if "callback" in closed else None


def caller_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls a module or function, of which Dynamo knows nothing yet.

    What it notes down beside the code of a function that it has given up, all modules of a class
    share, however and whenever they were compiled.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    return distinct(call, "whole")


def is_given_up(target: Any) -> bool:
    """Whether Dynamo has seen a module's or function's code, and compiled nothing of it."""
    function = type(target).forward if isinstance(target, torch.nn.Module) else target
    code = getattr(function, "__code__", None)
    if code is None or code not in convert_frame.input_codes:
        return False
    return not eval_frame._debug_get_cache_entry_list(code)
