"""The arguments of `find` and `replace`: bound by position, one example each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import PatternError

_SCALARS = (int, float, complex, str, slice, torch.dtype, torch.device, type(None))
_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments_of(
    pattern_id: str, find: Any, replace: Any, examples: Any
) -> tuple[list[str], list[str]]:
    """Names of the arguments of both functions that have examples; the others keep their defaults.

    Raises:
        PatternError: the functions and the examples do not fit together.
    """
    if not isinstance(examples, (tuple, list)):
        raise PatternError(f"pattern {pattern_id!r}: example_inputs must be a tuple of arguments.")
    wanted = _parameters(pattern_id, "find", find)
    names = _with_examples(wanted, len(examples))
    if names is None:
        listed = ", ".join(p.name for p in wanted)
        raise PatternError(
            f"pattern {pattern_id!r}: `find` takes {len(wanted)} arguments ({listed}), but "
            f"example_inputs has {len(examples)}; give one for each. Only what has a default may "
            "go without, and then stands for that default alone."
        )
    others = _with_examples(_parameters(pattern_id, "replace", replace), len(examples))
    if others is None:
        raise PatternError(
            f"pattern {pattern_id!r}: `find` and `replace` must take the same arguments: "
            f"{', '.join(names)}."
        )
    _require_same_order(pattern_id, names, others)
    _require_same_defaults(pattern_id, find, replace, names)
    _require_usable(pattern_id, names, examples)
    return names, others


def _parameters(pattern_id: str, role: str, function: Any) -> list[inspect.Parameter]:
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        raise PatternError(
            f"pattern {pattern_id!r}: `{role}` must be a Python function over tensors and scalars, "
            f"not {type(function).__name__}; wrap it in a def."
        )
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind not in _PLAIN:
            raise PatternError(
                f"pattern {pattern_id!r}: `{role}` takes {parameter}; "
                "only plain positional arguments are supported."
            )
    return parameters


def _with_examples(parameters: Sequence[inspect.Parameter], count: int) -> list[str] | None:
    """The names of the first parameters, where those after them can do without an example."""
    if len(parameters) < count:
        return None
    if any(p.default is inspect.Parameter.empty for p in parameters[count:]):
        return None
    return [p.name for p in parameters[:count]]


def _require_same_order(pattern_id: str, names: Sequence[str], others: Sequence[str]) -> None:
    for position, name in enumerate(others):
        if name in names and names.index(name) != position:
            raise PatternError(
                f"pattern {pattern_id!r}: `{name}` is argument {names.index(name) + 1} of `find` "
                f"but argument {position + 1} of `replace`; arguments are bound by position, so "
                "give them the same order, or other names."
            )


def _require_same_defaults(pattern_id: str, find: Any, replace: Any, names: Sequence[str]) -> None:
    """An argument without an example stands for its default, so both must have the same."""
    wanted, found = (
        {n: p.default for n, p in inspect.signature(f).parameters.items()} for f in (find, replace)
    )
    for name in wanted.keys() & found.keys() - set(names):
        one, other = wanted[name], found[name]
        if one is not other and (type(one) is not type(other) or one != other):
            raise PatternError(
                f"pattern {pattern_id!r}: `{name}` has the default {one!r} in `find` but {other!r} "
                "in `replace`; give both the same, or an example, so that it stands for any."
            )


def _require_usable(pattern_id: str, names: Sequence[str], examples: Sequence[Any]) -> None:
    for name, example in zip(names, examples, strict=True):
        if isinstance(example, torch.Tensor):
            continue
        parts = example if isinstance(example, (tuple, list)) else (example,)
        wrong = next((part for part in parts if not isinstance(part, _SCALARS)), None)
        if wrong is not None:
            raise PatternError(
                f"pattern {pattern_id!r}: the example of `{name}` is, or holds, a "
                f"{type(wrong).__name__}; an argument is a tensor, a number, a flag, a dtype or a "
                "tuple of numbers."
            )
