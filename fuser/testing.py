"""Checks that the author of a pattern wants: it fires, it declines, it is exact, it trains.

def test_mine():
    fuser.testing.check_pattern((find, replace, example_inputs))
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .errors import PatternError, first_sentence
from .graph.ops import is_tensor
from .graph.view import GraphView
from .pattern import Pattern
from .precision import DoublePrecision, all_finite, detached, double, leaves, run
from .registry import PatternHandle, get, register_pattern
from .report.scope import _counters, undisturbed
from .template.equal import is_number
from .template.form import is_alias
from .template.trace import record
from .torch_private import FakeTensor
from .trial import (
    Case,
    Function,
    Seen,
    compile_case,
    failure,
    is_random,
    judge,
    judge_random,
    trained,
)
from .variants import ZEROS, deeper, larger, other_scalars, other_values, square

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
        random: whether `find` draws random numbers; then only statistics were compared, and a
            difference that is small beside chance is not noticed.
        varied: the other values, scalars, ranks and sizes at which the pattern fires, and the
            numbers agree.
        grown: whether dynamic shapes were also run at other sizes.
    """

    pattern: str
    escapes: tuple[str, ...] = ()
    error: float | None = None
    gradient_error: float | None = None
    random: bool = False
    varied: tuple[str, ...] = ()
    grown: bool = False


def check_pattern(
    pattern: str | PatternHandle | Pattern | tuple[Function, Function, Sequence[Any]],
    *,
    find: Function | None = None,
    example_inputs: Sequence[Any] | None = None,
    where: Callable[..., str | None] | None = None,
    factor: float = 3.0,
    dynamic: bool = True,
) -> PatternReport:
    """Check a pattern on its own example inputs, with gradients.

    1. `escape`: it declines where an intermediate value of `find` is used elsewhere.
    2. `fires`: compiling `find` makes exactly one rewrite.
    3. `numbers`, `gradients`: the compiled result is as near to `find` in fp64 as `find` itself in
       the examples' precision, up to `factor`, or to some roundings of the largest value. Where
       `find` draws random numbers, means and variances over many draws are compared instead.
    4. `values`: the same for values of other signs, mixed masks and a zero (where the gradient is
       not compared), where `find` takes them and gives finite numbers.
    5. `scalars`, `ranks`, `sizes`: with other scalars, with a dimension more in front, and with
       equal sizes everywhere, where `find` takes them, it does not fire or the numbers agree.
    6. `dynamic`: `fires` and the numbers with `dynamic=True`, and at larger sizes where `find`
       and `where` take them. Numbers that `find` holds are constants there.

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
        PatternError: the pattern is not registered, or cannot be; `find` cannot be run.
    """
    with _registered(pattern, where) as known:
        case = _case(known, find, example_inputs, factor)
        with _isolated(case.find), _listening(known, case.declined):
            _require_runs(case)
            report = PatternReport(known.id, _check_escapes(case, known))
            report = _check_numbers(case, report)
            varied = (*report.varied, *_check_variations(case))
            report = replace(report, varied=varied)
            return _check_dynamic(case, report) if dynamic else report


@contextlib.contextmanager
def _registered(pattern: Any, where: Any) -> Generator[Any]:
    if isinstance(pattern, (tuple, list)) and len(pattern) == 3:
        find, replacement, inputs = pattern
        name = str(getattr(find, "__name__", type(find).__name__)).strip("<>")
        with register_pattern(find, replacement, inputs, id=f"check.{name}", where=where) as handle:
            yield handle.pattern
    elif where is not None:
        raise PatternError(
            "where= goes with a pattern given as functions; one that is registered has its own."
        )
    else:
        yield _known(pattern)


def _known(pattern: Any) -> Pattern:
    if isinstance(pattern, str):
        return get(pattern)
    wanted = pattern.pattern if isinstance(pattern, PatternHandle) else pattern
    is_class = isinstance(wanted, type) and issubclass(wanted, Pattern)
    if not is_class and not isinstance(wanted, Pattern):
        raise PatternError(
            "check_pattern takes an id, what register_pattern returned, or a tuple (find, replace, "
            f"example_inputs); it was given {_described(pattern)}."
        )
    with contextlib.suppress(PatternError):
        known = get(wanted.id)
        if known is wanted or type(known) is wanted:
            return known
    raise PatternError(
        f"the pattern {wanted.id!r} is not registered, or not any more: check it before "
        "unregister(), within the `with` block if it has one."
    )


def _described(given: Any) -> str:
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {len(given)}"
    return f"the function {given.__name__}" if inspect.isfunction(given) else repr(given)


def _case(known: Any, find: Any, inputs: Any, factor: float) -> Case:
    find = getattr(known, "find", None) if find is None else find
    inputs = getattr(known, "example_inputs", None) if inputs is None else inputs
    if find is None or inputs is None:
        raise PatternError(
            f"pattern {known.id!r} is a class: give check_pattern find= and example_inputs=."
        )
    if not isinstance(inputs, (tuple, list)):
        raise PatternError(f"pattern {known.id!r}: example_inputs must be a tuple of arguments.")
    if not is_number(factor) or not factor >= 1:
        raise PatternError(f"factor is {factor!r}; it must be a number, and 1 or more.")
    if any(isinstance(x, torch.Tensor) and not _holds_numbers(x) for x in inputs):
        raise PatternError(
            f"pattern {known.id!r}: check_pattern needs dense tensors that hold numbers."
        )
    return Case(known.id, find, tuple(inputs), factor)


def _holds_numbers(x: torch.Tensor) -> bool:
    return x.layout is torch.strided and not x.is_meta and not isinstance(x, FakeTensor)


@contextlib.contextmanager
def _isolated(find: Function) -> Generator[None]:
    """Gradients are on; counters, random state and buffers are afterwards as they were."""
    with _counters(), undisturbed(find), torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def _listening(pattern: Any, answers: list[str]) -> Generator[None]:
    """Keep the reasons with which the pattern's `where` declines."""
    where = getattr(pattern, "where", None)
    if where is None:
        yield
        return

    def asked(**arguments: Any) -> Any:
        answer = where(**arguments)
        answers.extend([answer] if isinstance(answer, str) else [])
        return answer

    pattern.where = asked
    try:
        yield
    finally:
        pattern.where = where


def _require_runs(case: Case) -> None:
    try:
        case.find(*leaves(case.inputs))
        with DoublePrecision():
            case.find(*double(leaves(case.inputs)))
    except Exception as error:
        raise PatternError(
            f"pattern {case.pattern!r}: `find` cannot be run on the example inputs, wanting "
            f"gradients, and in float64, as check_pattern has to: {first_sentence(error)}"
        ) from error


def _check_escapes(case: Case, pattern: Any) -> tuple[str, ...]:
    reasons: list[str] = []
    for module, name in _escaping(case, pattern):
        _, seen = compile_case(case, "escape", module, detached(case.inputs), None)
        if seen.rewrites:
            case.fail("escape", f"it fires although `{name}` is used elsewhere")
        reasons += seen.reasons()[-1:]  # the outermost anchor's
    return tuple(reasons)


def _escaping(case: Case, pattern: Any) -> Iterator[tuple[GraphModule, str]]:
    """`find`, with one of its intermediate values returned too."""
    try:
        template, _ = record(pattern.id, case.find, case.find, case.inputs)
    except PatternError:  # a structural pattern's example may hold what cannot be recorded
        return
    inner = [n for n in template.operations if n not in template.outputs and is_tensor(n)]
    inner = [n for n in inner if not _shares_memory(template.view, n)]
    for position in range(min(len(inner), _MAX_ESCAPES)):
        module = GraphModule(template.view.module, _copy(template.view, inner[position]))
        yield module, inner[position].name


def _shares_memory(view: GraphView, node: Node) -> bool:
    """Whether a value may be a view, which whoever uses it elsewhere can as well take there."""
    memory = {view.storages.get(n) for n in node.all_input_nodes}
    return is_alias(view, node) or view.storages.get(node) in memory


def _copy(view: GraphView, escaping: Node) -> torch.fx.Graph:
    graph, copies = torch.fx.Graph(), dict[Node, Node]()
    result = graph.graph_copy(view.graph, copies)
    first = result if isinstance(result, (tuple, list)) else (result,)
    graph.output((*first, copies[escaping]))
    return graph


def _check_numbers(case: Case, report: PatternReport) -> PatternReport:
    inputs = trained(case)
    compiled, seen = compile_case(case, "fires", case.find, inputs, None)
    _require_rewrite(case, "fires", seen)
    if is_random(case):
        judge_random(case, "numbers", compiled, inputs)
        return replace(report, random=True)
    error, gradient_error = judge(case, "numbers", compiled, inputs)
    varied = tuple(_check_values(case, compiled))
    return replace(report, error=error, gradient_error=gradient_error, varied=varied)


def _check_values(case: Case, compiled: Function) -> Iterator[str]:
    """The other values at which `find` gives finite numbers."""
    for place, inputs in other_values(case.inputs):
        variant = replace(case, inputs=inputs, place=place)
        if failure(variant.find, variant.inputs):
            continue
        inputs, zero = trained(variant), place == ZEROS
        result = run(variant.find, inputs)
        if all_finite([*result.outputs, *(() if zero else result.gradients)]):
            judge(variant, "values", compiled, inputs, gradients=not zero)
            yield place


def _check_variations(case: Case) -> Iterator[str]:
    """The other scalars, ranks and sizes at which the pattern fires."""
    for check, variant in _variations(case):
        if failure(variant.find, variant.inputs):
            continue
        inputs = trained(variant)
        compiled, seen = compile_case(variant, check, variant.find, inputs, None)
        if seen.rewrites:
            compare = judge_random if is_random(variant) else judge
            compare(variant, check, compiled, inputs)
            yield variant.place


def _variations(case: Case) -> Iterator[tuple[str, Case]]:
    names = _names(case.find)
    for i, x in enumerate(case.inputs):
        for other in other_scalars(x):
            inputs = (*case.inputs[:i], other, *case.inputs[i + 1 :])
            name = names[i] if i < len(names) else f"argument {i + 1}"
            yield "scalars", replace(case, inputs=inputs, place=f"{name} = {other!r}")
    ranks = [("ranks", inputs) for inputs in deeper(case.inputs)]
    sizes = [] if is_random(case) else [("sizes", inputs) for inputs in square(case.inputs)]
    for check, inputs in (*ranks, *sizes):
        shapes = [str(tuple(x.shape)) for x in inputs if isinstance(x, torch.Tensor)]
        yield check, replace(case, inputs=inputs, place=f"shapes {', '.join(shapes)}")


def _names(find: Function) -> list[str]:
    try:
        return list(inspect.signature(find).parameters)
    except (TypeError, ValueError):  # a builtin
        return []


def _check_dynamic(case: Case, report: PatternReport) -> PatternReport:
    inputs = trained(case)
    compiled, seen = compile_case(case, "dynamic", case.find, inputs, True)
    _require_rewrite(case, "dynamic", seen)
    if report.random:
        return report
    judge(case, "dynamic", compiled, inputs)
    variants = [replace(case, inputs=xs, place="larger sizes") for xs in larger(case.inputs)]
    for grown in variants:
        if failure(grown.find, grown.inputs):  # sizes that do not fit together
            continue
        judge(grown, "dynamic", compiled, trained(grown))
        if not _is_declined(grown, seen):
            _require_rewrite(grown, "dynamic", seen)
            return replace(report, grown=True)
        compiled, seen = compile_case(case, "dynamic", case.find, inputs, True)
    return report


def _is_declined(case: Case, seen: Seen) -> bool:
    """Whether it is `where` that does not take these inputs."""
    return not seen.rewrites and any(reason in case.declined for reason in seen.reasons())


def _require_rewrite(case: Case, check: str, seen: Seen) -> None:
    if seen.rewrites != 1:
        why = "; ".join(seen.reasons())
        if not why and not seen.rewrites:
            why = "nothing in the graph that Dynamo captures of it looks like the pattern"
        because = f" ({why})" if why else ""
        case.fail(check, f"expected 1 rewrite of `find`, found {seen.rewrites}{because}")
