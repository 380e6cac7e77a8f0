"""`fuser.explain`: what would be rewritten, what nearly was, and why not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from ..backend import fuser, listening, require_inner
from ..capture import caller_of, capture_whole, failures_of, is_given_up
from ..errors import FuserError
from ..events import Record
from ..options import PREFIX, Options
from ..printed import reading
from .report import Report
from .scope import isolated, optimize, undisturbed
from .watch import watch

_one_at_a_time = threading.RLock()
"""What Dynamo keeps beside code objects is cleared at the end, for all threads."""


def explain(
    fn: Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Report:
    """Compile a module or function once with the fuser backend and report what happened.

        report = fuser.explain(model, ids, use_cache=False)
        print(report)
        report.expect(attention=32)

    The graphs run in eager after the rewrite (`fuser.inner="eager"`), so no code is generated and
    nothing is timed. `fn` is called once, under the caller's grad mode: a training graph is seen
    with gradients enabled, an inference graph within `torch.no_grad()`. It runs for real: what it
    changes in its arguments stays changed.

    Regions that verification took back in this process are told of, too (see `fuser.verify`).

    Compiled functions of the user stay compiled and do not recompile because of this call; random
    state and buffers are put back. What is isolated, and what is not, is in `fuser.report.scope`.

    Args:
        fn: a module, a function, a bound method, or one of these compiled already, whose own
            options are not looked at. What `fuser.compile` returned is compiled as that does.
        args: its arguments.
        options: `fuser.*` options of this compile, for example `{"fuser.policy": "always"}`; keys
            of other backends are ignored. The name is taken: a function that has a keyword
            `options` of its own has to be wrapped in a lambda.
        kwargs: its keyword arguments.

    Returns:
        the report; `str(report)` is the text.

    Raises:
        UnknownOptionError, InvalidOptionError: a bad option.
        FuserError: `fn` is a class, or nothing that can be called. What it raises passes through.
    """
    fixed = {"fuser.inner": "eager", "fuser.debug": False}
    return Report.of(compile_once("explain", fn, args, kwargs, options, fixed))


def compile_once(
    asked: str,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    fixed: Mapping[str, Any],
    backend: Callable[..., Callable[..., Any]] = fuser,
) -> Record:
    """Compile a module or function in isolation, call it once, and return what happened.

    Args:
        asked: the name of the function that was called, for errors.
        fn, args, kwargs: what is called.
        options: those of them that are ours are used.
        fixed: options that override them.
        backend: compiles a graph as `fuser.backend.fuser` does.
    """
    wanted = {k: v for k, v in (options or {}).items() if k.startswith(PREFIX)} | dict(fixed)
    require_inner(Options.parse(wanted)[0])
    record = Record()

    def compiler(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return backend(gm, example_inputs, options=wanted)

    if isinstance(fn, type) or not callable(fn):
        raise FuserError(f"{asked} takes a module or function, but was given {_named(fn)}.")
    target = getattr(fn, "_orig_mod", getattr(fn, "_torchdynamo_orig_callable", fn))
    traced = caller_of(target) if is_given_up(target) else target

    def collect(found: Record) -> None:
        record.extend(found.placed(lambda _: {"graph": record.graphs}))

    with _one_at_a_time, listening(collect, listings=True):
        with isolated(compiler) as breaks, undisturbed(target), reading() as kernels:
            compiled = optimize(traced, compiler)
            breaks.whole = failures_of(fn) is not None
            if breaks.whole:
                capture_whole(compiled, strict=False)
            watch(compiled, breaks.raised)
            compiled(*args, **kwargs)
    record.kernels = [*kernels]
    record.breaks += [*breaks.lines, *(failures_of(compiled) or ())]
    return record


def _named(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}; make an instance of it first"
    return f"{found!r}, which cannot be called"
