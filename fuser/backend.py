"""The Dynamo backend: options, the transformation, and the inner backend."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.fx import GraphModule

from . import __version__, capture, inductor_private, measure, outlets, torch_private
from .errors import FuserError, FuserWarning, UnknownBackendError
from .events import Record
from .options import LOG, Options
from .printed import reading
from .registry import warn_of_unmatched
from .transform import looks_like_attention, transform

_graphs = itertools.count()
_listeners: ContextVar[tuple[Callable[[Record], None], ...]] = ContextVar("listeners", default=())
_listed: ContextVar[bool] = ContextVar("listed", default=False)


@contextlib.contextmanager
def listening(listener: Callable[[Record], None], *, listings: bool = False) -> Generator[None]:
    """Call `listener` with the record of every graph that is compiled within the block.

    Args:
        listener: called in the thread that compiles.
        listings: the records have all nodes before and after, which costs some 20 us a node.
    """
    token = _listeners.set((*_listeners.get(), listener))
    wanted = _listed.set(listings or _listed.get())
    try:
        yield
    finally:
        _listed.reset(wanted)
        _listeners.reset(token)


def fuser(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """Compile a captured graph; `torch.compile(model, backend="fuser")` calls this.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: inputs of that graph: those of the call that is compiled for, or fake ones.
        mode: passed to Inductor.
        options: keys beginning with `fuser.` are ours (see `fuser.options`), others Inductor's.

    Returns:
        a callable with the graph's signature.

    Raises:
        UnknownOptionError, InvalidOptionError, UnknownBackendError: a bad option.
    """
    parsed, rest = Options.parse(options)
    inner = _inner(parsed, mode, rest, kwargs)
    warn_of_unmatched(parsed)
    with measure.autotuning(inductor_private.autotunes(mode, rest), strict=parsed.strict):
        with inductor_private.random_options(rest), torch_private.without_saved_tensors_hooks():
            record = _transform(gm, example_inputs, parsed)
        capture.require_sure(gm, record)
        try:
            with reading() if _listed_by(parsed) else contextlib.nullcontext({}) as kernels:
                compiled = _compile(gm, example_inputs, parsed, inner)
            record.kernels += kernels
        except Exception as error:
            if not torch_private.is_control_flow(error) and not capture.is_attempt():
                _publish(record, parsed)
            raise  # where Dynamo restarts its analysis, this graph comes again
    _publish(record, parsed)
    return compiled


def _listed_by(options: Options) -> bool:
    """Whether somebody wants whole graphs, and kernels that are launched while compiling."""
    return _listed.get() or options.debug not in ("", LOG)


def _compile(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, inner: Callable[..., Any]
) -> Callable[..., Any]:
    with _keyed():
        if options.inner != "inductor" or not looks_like_attention(gm):
            return inner(gm, example_inputs)
        device = next((x.device for x in example_inputs if isinstance(x, torch.Tensor)), None)
        with inductor_private.attention_patterns_off(device or torch.device("cpu")):
            return inner(gm, example_inputs)


def _keyed() -> contextlib.AbstractContextManager[Any]:
    """Within the block PyTorch caches what it compiles for this version of ours alone: it knows a
    graph by its operators, and not by what ours mean."""
    config: Any = torch.compiler.config
    tag = f"{config.cache_key_tag} torch-fuser {__version__}".lstrip()
    return config.patch(cache_key_tag=tag)


def _publish(record: Record, options: Options) -> None:
    """Tell everyone who wants to know."""
    outlets.publish(record, told=options.debug == LOG)
    for listener in _listeners.get():
        listener(record)
    if options.debug:
        from .report.debug import write

        write(record, options.debug)


def _transform(gm: GraphModule, inputs: Sequence[Any], options: Options) -> Record:
    """The safety net: a failure of ours costs one warning, never the user's program."""
    try:
        return transform(gm, options, next(_graphs), inputs, listed=_listed_by(options))
    except Exception as error:
        if options.strict or isinstance(error, Warning) or torch_private.is_control_flow(error):
            raise  # a warning, if the user has made errors of them
        warnings.warn(
            f"fuser failed and left the graph to the inner backend: "
            f"{type(error).__name__}: {error} (set fuser.strict to raise instead)",
            FuserWarning,
            stacklevel=2,
        )
        return Record(graphs=1, nodes=len(gm.graph.nodes))


def require_inner(options: Options) -> None:
    """Check that the inner backend is there.

    Raises:
        UnknownBackendError: it is not.
        FuserError: it is this one.
    """
    if options.inner == "fuser":
        raise FuserError("option 'fuser.inner' is 'fuser': the inner backend must be another one.")
    if options.inner not in torch_private.list_backends(exclude_tags=()):
        raise UnknownBackendError(options.inner, torch_private.list_backends(exclude_tags=()))


def _inner(
    options: Options, mode: str | None, rest: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    if options.inner == "inductor":
        return inductor_private.inductor(mode, rest)
    require_inner(options)
    compile_inner = torch_private.lookup_backend(options.inner)
    extra: dict[str, Any] = dict(kwargs)
    if rest:
        extra["options"] = dict(rest)
    if mode is not None:
        extra["mode"] = mode
    return lambda gm, inputs: compile_inner(gm, inputs, **extra)
