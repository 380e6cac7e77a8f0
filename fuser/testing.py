"""Checks that the author of a pattern wants: it fires, it declines, it is exact, it trains.

def test_mine():
    fuser.testing.check_pattern((find, replace, example_inputs))
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule, Node

from .backend import listening
from .errors import FuserWarning, PatternError
from .events import Record
from .function_pattern import FunctionPattern
from .graph.ops import is_tensor
from .graph.view import GraphView
from .precision import (
    DoublePrecision,
    Imprecise,
    compare,
    double,
    gradients,
    grow,
    leaves,
    tensors,
)
from .registry import PatternHandle, get, register_pattern
from .template.form import is_alias
from .template.trace import record

Function = Callable[..., Any]
_MAX_ESCAPES = 8


@dataclass(frozen=True)
class PatternReport:
    """What `check_pattern` found.

    Attributes:
        pattern: its id.
        escapes: for each intermediate that was made to escape, the reason of the decline.
        error: largest error of the outputs against fp64, in units of what was allowed; None where
            `find` draws random numbers.
        gradient_error: the same for the gradients; None where there are none.
        grown: whether dynamic shapes were also run at other sizes.
    """

    pattern: str
    escapes: tuple[str, ...] = ()
    error: float | None = None
    gradient_error: float | None = None
    grown: bool = False


def check_pattern(
    pattern: str | PatternHandle | FunctionPattern | tuple[Function, Function, Sequence[Any]],
    *,
    find: Function | None = None,
    example_inputs: Sequence[Any] | None = None,
    where: Callable[..., str | None] | None = None,
    factor: float = 3.0,
    dynamic: bool = True,
) -> PatternReport:
    """Check a pattern on its own example inputs.

    1. `fires`: compiling `find` makes exactly one rewrite.
    2. `escape`: it declines where an intermediate value of `find` is used elsewhere.
    3. `numbers`, `gradients`: the compiled result is as near to `find` in fp64 as `find` itself in
       the examples' precision, up to `factor`.
    4. `dynamic`: all of that with `dynamic=True`, and the same numbers at larger sizes where `find`
       takes them.

    Args:
        pattern: an id, what register_pattern returned, or `(find, replace, example_inputs)`, which
            is registered for the time of the check.
        find: what to compile, for a structural pattern or instead of the pattern's own.
        example_inputs: other inputs than those registered.
        where: for a pattern given as functions.
        factor: how many times the error of `find` is allowed.
        dynamic: whether to check dynamic shapes.

    Raises:
        AssertionError: names the first check that failed.
        PatternError: the pattern is not registered, or cannot be.
    """
    with _registered(pattern, where) as known:
        find = find or getattr(known, "find", None)
        inputs = (
            getattr(known, "example_inputs", None) if example_inputs is None else example_inputs
        )
        if find is None or inputs is None:
            raise PatternError(
                f"pattern {known.id!r} is a class: give check_pattern find= and example_inputs=."
            )
        case = _Case(known.id, find, tuple(inputs), factor)
        report = PatternReport(known.id, _check_escapes(case, known))
        report = _check_numbers(case, report, None)
        return _check_dynamic(case, report) if dynamic else report


class _Seen(list[Record]):
    """Records of one function's compiles; Dynamo may try several times, and the last counts."""

    @property
    def rewrites(self) -> int:
        return len(self[-1].rewritten) if self else 0

    def reasons(self) -> list[str]:
        last = self[-1:]
        return [f.error for r in last for f in r.failures] + [
            m.reason for r in last for m in r.near_misses
        ]


@dataclass(frozen=True)
class _Case:
    pattern: str
    find: Function
    inputs: tuple[Any, ...]
    factor: float

    def fail(self, check: str, text: str) -> NoReturn:
        raise AssertionError(f"pattern {self.pattern!r} fails the check {check!r}: {text}")


@contextlib.contextmanager
def _registered(pattern: Any, where: Any) -> Generator[Any]:
    if isinstance(pattern, tuple):
        find, replacement, inputs = pattern
        name = f"check.{find.__name__.strip('<>')}"
        with register_pattern(find, replacement, inputs, id=name, where=where) as handle:
            yield handle.pattern
    elif isinstance(pattern, str):
        yield get(pattern)
    else:
        yield pattern.pattern if isinstance(pattern, PatternHandle) else get(pattern.id)


def _check_escapes(case: _Case, pattern: Any) -> tuple[str, ...]:
    reasons: list[str] = []
    for module, name in _escaping(case, pattern):
        _, seen = _compile(case, module, case.inputs, None)
        if seen.rewrites:
            case.fail("escape", f"it fires although `{name}` is used elsewhere")
        reasons += seen.reasons()[-1:]  # the outermost anchor's
    return tuple(reasons)


def _escaping(case: _Case, pattern: Any) -> Iterator[tuple[GraphModule, str]]:
    """`find`, with one of its intermediate values returned too."""
    try:
        template, _ = record(pattern.id, case.find, case.find, case.inputs)
    except PatternError:  # a structural pattern's example may hold what cannot be recorded
        return
    inner = [n for n in template.operations if n not in template.outputs and is_tensor(n)]
    inner = [n for n in inner if not is_alias(template.view, n)]
    for position in range(min(len(inner), _MAX_ESCAPES)):
        module = GraphModule(template.view.module, _copy(template.view, inner[position]))
        yield module, inner[position].name


def _copy(view: GraphView, escaping: Node) -> torch.fx.Graph:
    graph, copies = torch.fx.Graph(), dict[Node, Node]()
    result = graph.graph_copy(view.graph, copies)
    first = result if isinstance(result, (tuple, list)) else (result,)
    graph.output((*first, copies[escaping]))
    return graph


def _check_numbers(case: _Case, report: PatternReport, dynamic: bool | None) -> PatternReport:
    inputs = leaves(case.inputs)
    compiled, seen = _compile(case, case.find, inputs, dynamic)
    check = "dynamic" if dynamic else "fires"
    _require_rewrite(case, check, seen)
    if _is_random(case, inputs):
        return report
    check = "dynamic" if dynamic else "numbers"
    error, gradient = _judge(case, check, compiled(*inputs), compiled, inputs)
    return replace(report, error=error, gradient_error=gradient)


def _require_rewrite(case: _Case, check: str, seen: _Seen) -> None:
    if seen.rewrites != 1:
        why = "; ".join(seen.reasons())
        because = f" ({why})" if why else ""
        case.fail(check, f"expected 1 rewrite of `find`, found {seen.rewrites}{because}")


def _check_dynamic(case: _Case, report: PatternReport) -> PatternReport:
    before = report
    report = _check_numbers(case, report, True)
    grown = tuple(grow(x) for x in case.inputs)
    try:
        case.find(*grown)
    except Exception:  # sizes that do not fit together
        return before
    if report.error is None:
        return before
    compiled, seen = _compile(case, case.find, case.inputs, True)
    ours = compiled(*leaves(grown))
    _require_rewrite(case, "dynamic", seen)
    _judge(case, "dynamic", ours, None, leaves(grown))
    return replace(before, grown=True)


def _compile(
    case: _Case, function: Function, inputs: Sequence[Any], dynamic: bool | None
) -> tuple[Function, _Seen]:
    """Compile for these inputs; scalars are constants of the graph."""
    seen = _Seen()
    scalars = {i: x for i, x in enumerate(inputs) if not isinstance(x, torch.Tensor)}

    def call(*given: torch.Tensor) -> Any:
        rest = iter(given)
        return function(*(scalars[i] if i in scalars else next(rest) for i in range(len(inputs))))

    options: dict[str, Any] = {
        "fuser.inner": "aot_eager",
        "fuser.policy": "always",
        "fuser.patterns": [case.pattern],
    }
    run = torch.compile(_fresh(call), backend="fuser", options=options, dynamic=dynamic)

    def compiled(*given: Any) -> Any:
        with listening(seen.append), warnings.catch_warnings():
            warnings.simplefilter("ignore", FuserWarning)
            return run(*(x for i, x in enumerate(given) if i not in scalars))

    compiled(*inputs)
    return compiled, seen


def _fresh(function: Any) -> Any:
    """The same function with a code object, and so a Dynamo cache, of its own."""
    code: CodeType = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _is_random(case: _Case, inputs: Sequence[Any]) -> bool:
    before = torch.random.get_rng_state()
    case.find(*inputs)
    drew = not torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(before)
    return drew


def _judge(
    case: _Case, check: str, ours: Any, compiled: Function | None, inputs: Sequence[Any]
) -> tuple[float, float | None]:
    """Errors of outputs and gradients against fp64, relative to what is allowed."""
    with DoublePrecision():
        exact = tensors(case.find(*double(inputs)))
    try:
        error = compare(tensors(ours), tensors(case.find(*inputs)), exact, case.factor)
    except Imprecise as problem:
        case.fail(check, str(problem))
    theirs = gradients(case.find, inputs)
    if compiled is None or not theirs:
        return error, None
    with DoublePrecision():
        exact = gradients(case.find, double(inputs))
    try:
        return error, compare(gradients(compiled, inputs), theirs, exact, case.factor)
    except Imprecise as problem:
        case.fail(check if check == "dynamic" else "gradients", str(problem))
