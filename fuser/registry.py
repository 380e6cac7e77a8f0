"""The registry: which patterns exist, in which order they are tried, where they came from."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from .errors import (
    DuplicatePatternError,
    FuserWarning,
    InvalidOptionError,
    PatternError,
    first_sentence,
    warn_of_pattern,
)
from .options import Options, matches
from .pattern import Pattern

ENTRY_POINT_GROUP = "fuser.patterns"
P = TypeVar("P", bound=type[Pattern])


OWN_FAMILIES = (
    "attention.", "moe.", "router.", "norm.", "rope.", "quantise.", "activation.", "loss.",
)  # fmt: skip
_ID = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True)
class Registered:
    """A pattern and where it was defined."""

    pattern: Pattern
    where: str


@dataclass(frozen=True)
class PatternHandle:
    """A registered pattern; leaving it as a context manager unregisters it."""

    pattern: Pattern

    @property
    def id(self) -> str:
        return self.pattern.id

    def unregister(self) -> None:
        """Forget the pattern, if it is still registered."""
        with _lock:
            known = _patterns.get(self.id)
            if known is not None and known.pattern is self.pattern:
                del _patterns[self.id]

    def __enter__(self) -> PatternHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.unregister()


_lock = threading.RLock()
_patterns: dict[str, Registered] = {}
_discovered = False
_enabled: ContextVar[tuple[Options, ...]] = ContextVar("enabled", default=())


def add(pattern: Pattern, where: str) -> None:
    """Register a pattern object.

    Raises:
        PatternError: it has no id, or one that is no name; its priority is no number.
        DuplicatePatternError: the id is taken.
    """
    priority: Any = pattern.priority
    if not isinstance(priority, (int, float)) or isinstance(priority, bool):
        raise PatternError(
            f"pattern {pattern.id!r}: its priority is {priority!r}; it must be a number."
        )
    with _lock:
        require_free(pattern.id, type(pattern).__name__)
        _patterns[pattern.id] = Registered(pattern, where)


def require_free(pattern_id: Any, owner: str = "the pattern") -> None:
    """Check that an id is usable and not taken.

    Raises:
        PatternError, DuplicatePatternError: it is not.
    """
    if not isinstance(pattern_id, str) or not pattern_id:
        raise PatternError(f"{owner} has no id; give it one like 'mine.name'.")
    if not _ID.fullmatch(pattern_id):
        raise PatternError(
            f"the pattern id {pattern_id!r} is not usable: give it letters, digits and "
            "underscores, in parts with dots between, like 'mine.name' or 'mine'."
        )
    known = _patterns.get(pattern_id)
    if known is not None:
        raise DuplicatePatternError(pattern_id, known.where)


def remove(pattern_id: str) -> None:
    """Unregister a pattern.

    Raises:
        PatternError: there is none with this id.
    """
    with _lock:
        if pattern_id not in _patterns:
            raise _unknown(pattern_id)
        del _patterns[pattern_id]


def patterns() -> list[Registered]:
    """All patterns, highest priority first, then in the order of registration."""
    _discover()
    with _lock:
        found = sorted(_patterns.values(), key=lambda r: -r.pattern.priority)
    return [r for r in found if all(o.allows(r.pattern.id) for o in _enabled.get())]


def get(pattern_id: str) -> Pattern:
    """A pattern by its id.

    Raises:
        PatternError: there is none.
    """
    _discover()
    with _lock:
        if pattern_id not in _patterns:
            raise _unknown(pattern_id)
        return _patterns[pattern_id].pattern


def _unknown(pattern_id: str) -> PatternError:
    return PatternError(
        f"no pattern {pattern_id!r} is registered; registered: {', '.join(sorted(_patterns))}."
    )


@overload
def register_pattern(cls: P, /) -> P: ...
@overload
def register_pattern(cls: None = None, /) -> Callable[[P], P]: ...
@overload
def register_pattern(
    find: Callable[..., Any],
    replace: Callable[..., Any],
    example_inputs: Sequence[Any],
    *,
    id: str | None = None,
    where: Callable[..., str | None] | None = None,
    priority: int = 0,
) -> PatternHandle: ...
def register_pattern(
    find: Any = None,
    replace: Any = None,
    example_inputs: Any = None,
    *,
    id: str | None = None,
    where: Any = None,
    priority: int = 0,
) -> Any:
    """Register a pattern: two plain PyTorch functions, or a structural `Pattern` class.

        fuser.register_pattern(find, replace, example_inputs, id="mine.name")

        @fuser.register_pattern
        class Mine(fuser.Pattern): ...

    `find` and `replace` take the same arguments, bound by position; where both use a name, it must
    have one position. Tensors stand for any tensor of the graph, Python scalars for any number in
    their position; a literal in `find`, or an argument left to its default, stands for itself. The
    examples' shapes and dtypes bind nothing. Both must be straight-line PyTorch that changes
    neither its inputs nor anything outside. A `torch.library` operator or a
    `torch.autograd.Function` in `replace` keeps its own backward; everything else is
    differentiated as usual.

    Read as one are: methods, functions, operators, modules and in-place forms; operands that
    commute; `x - y` and `x + (-y)`; `x / c` and `x * (1 / c)`, only for powers of two where an
    operator follows that is not known to be continuous; a number and one for each dimension;
    `x * x`, `x ** 2` and `square`; `masked_fill` and `where`; a value shared or computed again;
    ways to permute or reshape with one result; an einsum that is a matmul, and a linear without
    bias where `find` has the matmul; casts to the dtype that is there, `contiguous`, `clone` and
    dropout that drops nothing.

    Not read as one are, among others: `mean(-1)[:, None]` and `mean(-1, keepdim=True)`; `F.linear`
    with a bias, `addmm` and `x @ w + b`; `chunk`, `split` and slices; `x[:, 0]` and `select`;
    `rsqrt`, `1 / sqrt` and `** -0.5`; a composite such as `F.silu` and its formula. Register a
    pattern for each that matters.

    What is registered holds for compilations that start later. The handle that the function form
    returns ends it, by `unregister()` or as a context manager.

    Args:
        find: what to look for; or, as a decorator, the class.
        replace: what to put there.
        example_inputs: one example for each argument, to record the functions with.
        id: name for options, counters and reports, with dots to make families: 'mine.name', or
            'mine'; made from module and name by default.
        where: called with those bound arguments of `find` that it names (fake tensors and
            numbers), by name; returns None to accept, or the reason to decline.
        priority: where regions overlap the higher one wins. The built-in patterns for attention
            have 4 to 10, so a pattern that overlaps them needs more.

    Raises:
        PatternError: the functions cannot be traced, do not run on the examples, or return
            different things; the id is not usable.
        DuplicatePatternError: the id is taken.
    """
    if replace is not None or example_inputs is not None:
        return _register_functions(find, replace, example_inputs, id, where, priority)
    if (id, where, priority) != (None, None, 0):
        raise PatternError(
            "register_pattern takes id, where and priority with two functions and example inputs; "
            "a Pattern class has them as attributes."
        )
    return _register_class if find is None else _register_class(find)


def unregister_pattern(pattern_id: str) -> None:
    """Forget a pattern; what is compiled already stays as it is.

    Raises:
        PatternError: there is none with this id.
    """
    remove(pattern_id)


@contextlib.contextmanager
def patterns_enabled(*globs: str) -> Generator[None]:
    """Within the block, in this thread or task, compile with these patterns only.

    Args:
        globs: ids or globs as in the option `fuser.patterns`; `-` in front excludes.

    Raises:
        InvalidOptionError: not a string.
    """
    for glob in globs:
        if not isinstance(glob, str):
            raise InvalidOptionError("fuser.patterns_enabled", glob, "pattern ids or globs")
    warn_of_unmatched(Options(patterns=globs))
    token = _enabled.set((*_enabled.get(), Options(patterns=globs)))
    try:
        yield
    finally:
        _enabled.reset(token)


def warn_of_unmatched(options: Options) -> None:
    """Warn of every entry of `fuser.patterns` that no registered pattern matches."""
    if not options.patterns:
        return
    _discover()
    known = list(_patterns)
    for entry in options.patterns:
        glob = entry.removeprefix("-")
        if not any(matches(pattern_id, glob) for pattern_id in known):
            warn_of_pattern(entry, known)


def is_family(name: str) -> bool:
    """Whether a name means patterns, as `Report.expect` takes it."""
    _discover()
    return f"{name}." in OWN_FAMILIES or any(matches(pattern_id, name) for pattern_id in _patterns)


def _register_class(cls: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Pattern)):
        raise PatternError(
            f"{cls!r} is not a subclass of fuser.Pattern; to register functions, give "
            "register_pattern(find, replace, example_inputs)."
        )
    add(_made(cls), f"{cls.__module__}.{cls.__qualname__}")
    return cls


def _made(cls: type[Pattern]) -> Pattern:
    try:
        return cls()
    except Exception as error:
        raise PatternError(
            f"{cls.__qualname__} cannot be registered, because it cannot be made without "
            f"arguments: {first_sentence(error)}"
        ) from error


def _register_functions(
    find: Any, replace: Any, examples: Any, pattern_id: str | None, where: Any, priority: int
) -> PatternHandle:
    from .function_pattern import make

    if not callable(find) or not callable(replace) or examples is None:
        raise PatternError("register_pattern takes two functions and their example inputs.")
    pattern_id = _default_id(find) if pattern_id is None else pattern_id
    require_free(pattern_id)
    pattern = make(find, replace, examples, id=pattern_id, where=where, priority=priority)
    add(pattern, _place(find))
    return PatternHandle(pattern)


def _default_id(find: Any) -> str:
    name = str(getattr(find, "__qualname__", type(find).__name__)).replace("<locals>.", "")
    pattern_id = f"{getattr(find, '__module__', '') or 'user'}.{name}"
    if "<" in name or pattern_id.startswith(OWN_FAMILIES):
        raise PatternError(
            f"the pattern {pattern_id!r} needs a name of its own: give register_pattern an id "
            "like id='mine.name'."
        )
    return pattern_id


def _place(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _discover() -> None:
    """Import our own families and third-party packages, once."""
    global _discovered
    with _lock:
        if _discovered:
            return
        _discovered = True
        importlib.import_module("fuser.patterns")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            _take(entry.load(), entry.name)
        except (Exception, SystemExit) as error:  # a plug-in must not break the user's program
            warnings.warn(
                f"the pattern entry point {entry.name!r} ({entry.value}) failed and is ignored: "
                f"{type(error).__name__}: {error}",
                FuserWarning,
                stacklevel=2,
            )


def _take(loaded: Any, name: str) -> None:
    """Register what an entry point gave: a pattern, its class, or a function that does it.

    Raises:
        PatternError: it is none of these, or cannot be registered.
    """
    if callable(loaded) and not isinstance(loaded, (type, Pattern)):
        loaded = loaded()
        if loaded is None or isinstance(loaded, PatternHandle):
            return
    if isinstance(loaded, type) and issubclass(loaded, Pattern):
        known = _patterns.get(loaded.id)
        if known is not None and type(known.pattern) is loaded:
            return  # its module has registered it
        loaded = _made(loaded)
    if not isinstance(loaded, Pattern):
        raise PatternError(
            f"it gives {loaded!r}; a fuser.Pattern, or a function that registers patterns, is "
            "expected."
        )
    add(loaded, f"entry point {name}")
