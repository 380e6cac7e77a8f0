"""Other inputs of a function: sizes, ranks, values and scalars, from one example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .precision import is_finite, is_fractional

ZEROS = "a zero"
_SQUARE = 8


def larger(inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Tensors one larger, and twice as large: equal sizes stay equal, 1 stays 1."""
    return [tuple(_changed(change, x) for x in inputs) for change in (_grown, _doubled)]


def _changed(change: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    """Change a tensor; one of eight-bit floats, for which torch has few operators, in float32."""
    if not isinstance(x, torch.Tensor):
        return x
    if is_fractional(x) and x.dtype.itemsize == 1:
        return change(x.float()).to(x.dtype)
    return change(x)


def _grown(x: torch.Tensor) -> torch.Tensor:
    for dim, size in enumerate(x.shape):
        if size > 1:
            x = torch.cat([x, _alike(x.narrow(dim, 0, 1))], dim)
    return x


def _doubled(x: torch.Tensor) -> torch.Tensor:
    for dim, size in enumerate(x.shape):
        if size > 1:
            x = torch.cat([x, _alike(x)], dim)
    return x


def _alike(x: torch.Tensor) -> torch.Tensor:
    """Numbers like those of a tensor; not the same, lest a maximum be there twice."""
    return x * 0.875 if is_fractional(x) else x


def deeper(inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A dimension more in front: of every tensor, and of those that have most dimensions."""
    ranks = {x.ndim for x in inputs if isinstance(x, torch.Tensor)}
    bounds = dict.fromkeys([min(ranks, default=0), max(ranks, default=0)])
    return [tuple(_changed(partial(_stacked, least), x) for x in inputs) for least in bounds]


def square(inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All sizes equal, where an axis that is taken for another one fits as well; the same with a
    dimension more in front, and with each tensor of fewer dimensions than others as a column."""
    found = [x for x in inputs if isinstance(x, torch.Tensor)]
    size = max(2, min(_SQUARE, max((n for x in found for n in x.shape), default=2)))
    rank = max((x.ndim for x in found), default=0)
    equal = tuple(_changed(partial(_sized, size), x) for x in inputs)
    column = tuple(_changed(partial(_column, rank), x) for x in equal)
    variants = [equal, *deeper(equal), column]
    by_shape = {tuple(_shape(x) for x in variant): variant for variant in variants}
    by_shape.pop(tuple(map(_shape, inputs)), None)
    return list(by_shape.values())


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else ()


def _sized(size: int, x: torch.Tensor) -> torch.Tensor:
    """Sizes other than 1 made equal; numbers that may be indices stay below them."""
    for dim, given in enumerate(x.shape):
        if given > 1:
            parts = [x] * -(-size // given)
            for i in range(1, len(parts)):
                parts[i] = _alike(parts[i - 1])
            x = torch.cat(parts, dim).narrow(dim, 0, size)
    counts = not is_fractional(x) and x.dtype is not torch.bool and x.numel() > 0
    return x % size if counts and int(x.min()) >= 0 else x


def _column(rank: int, x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(-1) if 0 < x.ndim < rank else x


def other_values(inputs: Sequence[Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """Values of the other sign among floats and masks, then among integers too; a zero."""

    def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
        return tuple(_changed(change, x) for x in inputs)

    variants = [
        ("other signs", changed(partial(_signed, integers=False))),
        ("negative integers", changed(partial(_signed, integers=True))),
        (ZEROS, changed(_with_zero)),
    ]
    tried, found = [inputs], list[tuple[str, tuple[Any, ...]]]()
    for place, variant in variants:
        if not any(all(map(_is_equal, variant, known)) for known in tried):
            tried.append(variant)
            found.append((place, variant))
    return found


def _signed(x: torch.Tensor, *, integers: bool) -> torch.Tensor:
    """Every third number with the other sign; infinities, as masks have them, stay."""
    third = torch.arange(x.numel(), device=x.device).reshape(x.shape) % 3 == 0
    if x.dtype is torch.bool:
        return x ^ third
    if is_fractional(x):
        return torch.where(third & is_finite(x), -x, x)
    # a negative index is an error that a GPU does not recover from
    return torch.where(third, -x, x) if integers and x.dtype.is_signed and not x.is_cuda else x


def _with_zero(x: torch.Tensor) -> torch.Tensor:
    if not is_fractional(x) or not x.numel():
        return x
    first = torch.arange(x.numel(), device=x.device).reshape(x.shape) == 0
    return torch.where(first & is_finite(x), 0, x)


def _is_equal(x: Any, y: Any) -> bool:
    return x is y or (isinstance(x, torch.Tensor) and torch.equal(x, y))


def _stacked(least: int, x: torch.Tensor) -> torch.Tensor:
    if x.ndim < least:
        return x
    return torch.stack([x, _alike(x.flip(list(range(x.ndim))))])


def other_scalars(x: Any) -> list[Any]:
    """Other values of a number or flag, of the other sign too; an int stays one, and a float."""
    if isinstance(x, bool):
        return [not x]
    found: list[Any] = []
    if isinstance(x, int):
        found = [x + 1, 2 * x, x - 1, -x]
    elif isinstance(x, float):
        found = [0.75 * x, x + 0.25, -x or -0.25]
    return [y for y in dict.fromkeys(found) if y != x and not math.isnan(y)]
