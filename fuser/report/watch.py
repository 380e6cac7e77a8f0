"""Where Dynamo gave a frame up: a break inside a loop is told by its function alone.

Dynamo raises, notes the message in a counter, and skips the frame; the user's stack is on the
exception, which its converter keeps to itself. So the converter is watched, for one compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..capture import Whole, callback_of


@dataclass(frozen=True)
class Raised:
    """What made Dynamo give a frame up.

    Attributes:
        message: its reason.
        stack: the user's frames, the innermost last.
    """

    message: str
    stack: Sequence[Any]


class _Watched:
    """A converter, and a list of what it raises."""

    def __init__(self, convert: Any, raised: list[Raised]) -> None:
        self._convert, self._raised = convert, raised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._convert, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._convert(*args, **kwargs)
        except Exception as error:
            stack, message = getattr(error, "real_stack", None), getattr(error, "msg", None)
            if stack and isinstance(message, str):
                self._raised.append(Raised(message, tuple(stack)))
            raise


def watch(compiled: Any, raised: list[Raised]) -> None:
    """Add what a compiled module or function makes Dynamo raise to a list."""
    converter = getattr(callback_of(compiled), "_torchdynamo_orig_backend", None)
    if isinstance(converter, Whole):
        converter = converter.convert
    inner = getattr(converter, "_inner_convert", None)
    if inner is not None:
        converter._inner_convert = _Watched(inner, raised)  # type: ignore[union-attr]
