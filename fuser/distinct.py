"""A function twice, where Dynamo would take both for one."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def distinct(function: Callable[..., Any], label: str) -> FunctionType:
    """A copy of a plain function with a code object of its own, named with `label`.

    Dynamo keeps compiled code, and counts recompiles, by code object: copies see nothing of each
    other.

    Raises:
        TypeError: not a plain function.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"a plain function is expected, not {type(function).__name__}")
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{label}")
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
