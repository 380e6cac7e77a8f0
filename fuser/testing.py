"""Checks that the author of a pattern wants: it fires, it declines, it is exact, it trains.

def test_mine():
    fuser.testing.check_pattern((find, replace, example_inputs))
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule, Node

from .backend import listening
from .errors import FuserWarning, PatternError, first_sentence
from .events import Record
from .graph.ops import is_tensor
from .graph.view import GraphView
from .pattern import Pattern
from .precision import (
    ZEROS,
    DoublePrecision,
    Imprecise,
    Result,
    all_finite,
    compare,
    deeper,
    detached,
    double,
    larger,
    leaves,
    other_scalars,
    other_values,
    random_difference,
    run,
    square,
)
from .registry import PatternHandle, get, register_pattern
from .report.scope import _counters, undisturbed
from .template.equal import is_number
from .template.form import is_alias
from .template.trace import record
from .torch_private import FakeTensor

Function = Callable[..., Any]
_MAX_ESCAPES = 8
_STATIC = {"automatic_dynamic_shapes": False, "specialize_int": True, "specialize_float": True}
"""Nothing is symbolic but the sizes, where that is asked for."""


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
    place: str = ""
    """In what the inputs differ from the examples."""
    declined: list[str] = field(default_factory=list)
    """What `where` has answered."""

    def fail(self, check: str, text: str) -> NoReturn:
        place = f"with {self.place}, " if self.place else ""
        raise AssertionError(f"pattern {self.pattern!r} fails the check {check!r}: {place}{text}")


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


def _case(known: Any, find: Any, inputs: Any, factor: float) -> _Case:
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
    return _Case(known.id, find, tuple(inputs), factor)


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


def _require_runs(case: _Case) -> None:
    try:
        case.find(*leaves(case.inputs))
        with DoublePrecision():
            case.find(*double(leaves(case.inputs)))
    except Exception as error:
        raise PatternError(
            f"pattern {case.pattern!r}: `find` cannot be run on the example inputs, wanting "
            f"gradients, and in float64, as check_pattern has to: {first_sentence(error)}"
        ) from error


def _check_escapes(case: _Case, pattern: Any) -> tuple[str, ...]:
    reasons: list[str] = []
    for module, name in _escaping(case, pattern):
        _, seen = _compile(case, "escape", module, detached(case.inputs), None)
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


def _check_numbers(case: _Case, report: PatternReport) -> PatternReport:
    inputs = _trained(case)
    compiled, seen = _compile(case, "fires", case.find, inputs, None)
    _require_rewrite(case, "fires", seen)
    if _is_random(case):
        _judge_random(case, "numbers", compiled, inputs)
        return replace(report, random=True)
    error, gradient_error = _judge(case, "numbers", compiled, inputs)
    varied = tuple(_check_values(case, compiled))
    return replace(report, error=error, gradient_error=gradient_error, varied=varied)


def _check_values(case: _Case, compiled: Function) -> Iterator[str]:
    """The other values at which `find` gives finite numbers."""
    for place, inputs in other_values(case.inputs):
        variant = replace(case, inputs=inputs, place=place)
        if _failure(variant.find, variant.inputs):
            continue
        trained, zero = _trained(variant), place == ZEROS
        result = run(variant.find, trained)
        if all_finite([*result.outputs, *(() if zero else result.gradients)]):
            _judge(variant, "values", compiled, trained, gradients=not zero)
            yield place


def _check_variations(case: _Case) -> Iterator[str]:
    """The other scalars, ranks and sizes at which the pattern fires."""
    for check, variant in _variations(case):
        if _failure(variant.find, variant.inputs):
            continue
        inputs = _trained(variant)
        compiled, seen = _compile(variant, check, variant.find, inputs, None)
        if seen.rewrites:
            judge = _judge_random if _is_random(variant) else _judge
            judge(variant, check, compiled, inputs)
            yield variant.place


def _variations(case: _Case) -> Iterator[tuple[str, _Case]]:
    names = _names(case.find)
    for i, x in enumerate(case.inputs):
        for other in other_scalars(x):
            inputs = (*case.inputs[:i], other, *case.inputs[i + 1 :])
            name = names[i] if i < len(names) else f"argument {i + 1}"
            yield "scalars", replace(case, inputs=inputs, place=f"{name} = {other!r}")
    ranks = [("ranks", inputs) for inputs in deeper(case.inputs)]
    sizes = [] if _is_random(case) else [("sizes", inputs) for inputs in square(case.inputs)]
    for check, inputs in (*ranks, *sizes):
        shapes = [str(tuple(x.shape)) for x in inputs if isinstance(x, torch.Tensor)]
        yield check, replace(case, inputs=inputs, place=f"shapes {', '.join(shapes)}")


def _names(find: Function) -> list[str]:
    try:
        return list(inspect.signature(find).parameters)
    except (TypeError, ValueError):  # a builtin
        return []


def _check_dynamic(case: _Case, report: PatternReport) -> PatternReport:
    inputs = _trained(case)
    compiled, seen = _compile(case, "dynamic", case.find, inputs, True)
    _require_rewrite(case, "dynamic", seen)
    if report.random:
        return report
    _judge(case, "dynamic", compiled, inputs)
    variants = [replace(case, inputs=xs, place="larger sizes") for xs in larger(case.inputs)]
    for grown in variants:
        if _failure(grown.find, grown.inputs):  # sizes that do not fit together
            continue
        _judge(grown, "dynamic", compiled, _trained(grown))
        if not _is_declined(grown, seen):
            _require_rewrite(grown, "dynamic", seen)
            return replace(report, grown=True)
        compiled, seen = _compile(case, "dynamic", case.find, inputs, True)
    return report


def _is_declined(case: _Case, seen: _Seen) -> bool:
    """Whether it is `where` that does not take these inputs."""
    return not seen.rewrites and any(reason in case.declined for reason in seen.reasons())


def _require_rewrite(case: _Case, check: str, seen: _Seen) -> None:
    if seen.rewrites != 1:
        why = "; ".join(seen.reasons())
        if not why and not seen.rewrites:
            why = "nothing in the graph that Dynamo captures of it looks like the pattern"
        because = f" ({why})" if why else ""
        case.fail(check, f"expected 1 rewrite of `find`, found {seen.rewrites}{because}")


def _compile(
    case: _Case, check: str, function: Function, inputs: Sequence[Any], dynamic: bool | None
) -> tuple[Function, _Seen]:
    """Compile for these inputs alone; scalars are constants of the graph."""
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
    optimized = torch.compile(_fresh(call), backend="fuser", options=options, dynamic=dynamic)

    def compiled(*given: Any) -> Any:
        with listening(seen.append), warnings.catch_warnings(), torch._dynamo.config.patch(_STATIC):
            warnings.simplefilter("ignore", FuserWarning)
            return optimized(*(x for i, x in enumerate(given) if i not in scalars))

    _attempt(case, check, compiled, inputs)
    return compiled, seen


def _fresh(function: Any) -> Any:
    """The same function with a code object, and so a Dynamo cache, of its own."""
    code: CodeType = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _attempt(case: _Case, check: str, compiled: Function, inputs: Sequence[Any]) -> Result:
    """Outputs and gradients of the compiled function; what it raises fails the check."""
    try:
        with warnings.catch_warnings():  # torch's anomaly mode prints where the forward was
            warnings.filterwarnings("ignore", "Error detected in|.*autograd kernel was not reg")
            return run(compiled, inputs)
    except Exception as error:
        plain = _failure(compiled, inputs)
        if plain is not None:
            case.fail(check, f"the compiled `find` fails: {_reason(plain)}")
        case.fail(
            "gradients" if check in ("fires", "numbers") else check,
            f"the compiled `find` has no gradients: {_reason(error)}",
        )


def _reason(error: BaseException) -> str:
    return first_sentence(getattr(error, "inner_exception", error))


def _trained(case: _Case) -> tuple[Any, ...]:
    """Copies of the inputs that want gradients, where `find` has some."""
    inputs = leaves(case.inputs)
    try:
        run(case.find, inputs)
    except Exception:
        return detached(inputs)
    return inputs


def _failure(function: Function, inputs: Sequence[Any]) -> Exception | None:
    """What a function raises where no gradients are wanted."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*detached(inputs))
        except Exception as error:
            return error
    return None


def _is_random(case: _Case) -> bool:
    before = _random_states(case.inputs)
    case.find(*case.inputs)
    after = _random_states(case.inputs)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _random_states(inputs: Sequence[Any]) -> list[torch.Tensor]:
    devices = {x.device for x in inputs if isinstance(x, torch.Tensor) and x.is_cuda}
    return [torch.random.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _judge(
    case: _Case,
    check: str,
    compiled: Function,
    inputs: Sequence[Any],
    *,
    gradients: bool = True,
) -> tuple[float, float | None]:
    """Errors of outputs and gradients against fp64, relative to what is allowed."""
    ours, theirs = _attempt(case, check, compiled, inputs), run(case.find, inputs)
    with DoublePrecision():
        exact = run(case.find, double(inputs))
    try:
        error = compare(ours.outputs, theirs.outputs, exact.outputs, case.factor)
        if not theirs.gradients or not gradients:
            return error, None
        check = "gradients" if check == "numbers" else check
        if not ours.gradients:
            raise Imprecise("the compiled `find` has none")
        for index, (mine, other) in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
            if other.any() and not mine.any():
                raise Imprecise(
                    f"none reaches tensor {index}: the replacement detaches it, or has an operator "
                    "without an autograd formula"
                )
        return error, compare(ours.gradients, theirs.gradients, exact.gradients, case.factor)
    except Imprecise as problem:
        case.fail(check, str(problem))


def _judge_random(case: _Case, check: str, compiled: Function, inputs: Sequence[Any]) -> None:
    _attempt(case, check, compiled, inputs)
    difference = random_difference(compiled, case.find, inputs)
    if difference:
        case.fail(check, difference)
