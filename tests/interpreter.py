"""Triton's interpreter without work that takes half of its time, and that tests do not need.

- Whether sums and products of integers overflow is not computed: the interpreter asserts it only
  in debugging, and throws it away otherwise. They wrap, and wrong numbers are what tests look for.
- What dtype NumPy has for one of Triton's is looked up in a dict that is made once, not each time.
- Triton's library stays replaced while one interpreted function calls another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter

_REPLACED = "_replaced_while_interpreting"


def hasten() -> None:
    """For the rest of the process."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = functools.partial(_dtype, interpreter._get_np_dtype, {})
    interpreter._patch_builtin = functools.partial(_once, interpreter._patch_builtin)


def _dtype(usual: Callable[..., Any], known: dict[str, Any], kind: Any) -> Any:
    """NumPy's dtype of a tensor's elements; pointers, of which each is one of its own, are asked
    for directly."""
    element = kind.scalar
    if element.is_ptr():
        return usual(element)
    if element.name not in known:
        known[element.name] = usual(element)
    return known[element.name]


def _once(usual: Callable[..., None], owner: Any, builder: Any, scope: Any) -> None:
    if _REPLACED not in vars(owner):
        usual(owner, builder, scope)
        scope.set_attr(owner, _REPLACED, True)
