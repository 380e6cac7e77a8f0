"""Compile a function under check, run it with gradients, and compare it with fp64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from .backend import listening
from .distinct import distinct
from .errors import FuserWarning, first_sentence
from .events import Record
from .precision import (
    DoublePrecision,
    Imprecise,
    Result,
    compare,
    detached,
    double,
    leaves,
    random_difference,
    run,
)
from .swallowed import swallow
from .torch_private import dynamo

Function = Callable[..., Any]
_STATIC = {"automatic_dynamic_shapes": False, "specialize_int": True, "specialize_float": True}
"""Nothing is symbolic but the sizes, where that is asked for."""


class Seen(list[Record]):
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
class Case:
    """A pattern's `find` and the inputs at which it is checked."""

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


def compile_case(
    case: Case, check: str, function: Function, inputs: Sequence[Any], dynamic: bool | None
) -> tuple[Function, Seen]:
    """Compile for these inputs alone; scalars are constants of the graph."""
    seen = Seen()
    scalars = {i: x for i, x in enumerate(inputs) if not isinstance(x, torch.Tensor)}

    def call(*given: torch.Tensor) -> Any:
        rest = iter(given)
        return function(*(scalars[i] if i in scalars else next(rest) for i in range(len(inputs))))

    options: dict[str, Any] = {
        "fuser.inner": "aot_eager",
        "fuser.policy": "always",
        "fuser.patterns": [case.pattern],
    }
    optimized = torch.compile(
        distinct(call, check), backend="fuser", options=options, dynamic=dynamic
    )

    def compiled(*given: Any) -> Any:
        with listening(seen.append), warnings.catch_warnings(), dynamo.config.patch(_STATIC):
            warnings.simplefilter("ignore", FuserWarning)
            return optimized(*(x for i, x in enumerate(given) if i not in scalars))

    attempt(case, check, compiled, inputs)
    return compiled, seen


def attempt(case: Case, check: str, compiled: Function, inputs: Sequence[Any]) -> Result:
    """Outputs and gradients of the compiled function; what it raises fails the check."""
    try:
        with warnings.catch_warnings():  # torch's anomaly mode prints where the forward was
            warnings.filterwarnings("ignore", "Error detected in|.*autograd kernel was not reg")
            return run(compiled, inputs)
    except Exception as error:
        plain = failure(compiled, inputs)
        if plain is not None:
            case.fail(check, f"the compiled `find` fails: {_reason(plain)}")
        case.fail(
            "gradients" if check in ("fires", "numbers") else check,
            f"the compiled `find` has no gradients: {_reason(error)}",
        )


def _reason(error: BaseException) -> str:
    return first_sentence(getattr(error, "inner_exception", error))


def trained(case: Case) -> tuple[Any, ...]:
    """Copies of the inputs that want gradients, where `find` has some."""
    inputs = leaves(case.inputs)
    try:
        run(case.find, inputs)
    except Exception as error:
        swallow(error)
        return detached(inputs)
    return inputs


def failure(function: Function, inputs: Sequence[Any]) -> Exception | None:
    """What a function raises where no gradients are wanted."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*detached(inputs))
        except Exception as error:
            return error
    return None


def is_random(case: Case) -> bool:
    """Whether `find` draws random numbers."""
    before = _random_states(case.inputs)
    case.find(*case.inputs)
    after = _random_states(case.inputs)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _random_states(inputs: Sequence[Any]) -> list[torch.Tensor]:
    devices = {x.device for x in inputs if isinstance(x, torch.Tensor) and x.is_cuda}
    return [torch.random.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def judge(
    case: Case,
    check: str,
    compiled: Function,
    inputs: Sequence[Any],
    *,
    gradients: bool = True,
) -> tuple[float, float | None]:
    """Errors of outputs and gradients against fp64, relative to what is allowed."""
    ours, theirs = attempt(case, check, compiled, inputs), run(case.find, inputs)
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


def judge_random(case: Case, check: str, compiled: Function, inputs: Sequence[Any]) -> None:
    """Compare means and variances over many draws."""
    attempt(case, check, compiled, inputs)
    difference = random_difference(compiled, case.find, inputs)
    if difference:
        case.fail(check, difference)
