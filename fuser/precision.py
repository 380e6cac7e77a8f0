"""How near to float64 a result is, compared with another one of the same precision.

`run` and `compare` judge one call; `random_difference` compares results that draw random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .torch_private import pytree

Function = Callable[..., Any]
_COMPLEX_CASTS = [getattr(torch.Tensor, name) for name in ("cfloat", "chalf")]
_DRAWS = 400
_SAMPLED = 4096
_STANDARD_ERRORS = 6.0
_SQUARE = 8
ZEROS = "a zero"
_ROUNDINGS = {4: 24, 8: 24}
_ROUNDINGS_OF_HALVES = 5
"""What is always allowed, in roundings of the largest value. Of 1000 seeds each for twelve right
replacements on tiny inputs (attention, norms, GELU, ...), one in float32 and one in half precision
needed more; 12 instead of 24 fail five of them in float32, and 57 softmaxes in float64."""


class Imprecise(Exception):
    """A value is further from float64 than it may be; the message says which and how far."""


class DoublePrecision(TorchFunctionMode):
    """Casts to a floating or complex type within the block give float64 or complex128."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        if func in _COMPLEX_CASTS:
            return args[0].cdouble()
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(argument: Any) -> Any:
    if not isinstance(argument, torch.dtype):
        return argument
    if argument.is_complex:
        return torch.complex128
    return torch.float64 if argument.is_floating_point else argument


@dataclass(frozen=True)
class Result:
    """Outputs of a function, and the gradients of its inputs for fixed weights of the outputs."""

    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor]


def run(function: Function, inputs: Sequence[Any]) -> Result:
    """Call a function once; no gradients where none exist."""
    outputs = tensors(function(*inputs))
    ends = [o for o in outputs if o.requires_grad]
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    if not ends or not wanted:
        return Result(outputs, [])
    found: Any = torch.autograd.grad(ends, wanted, [_weights(o) for o in ends], allow_unused=True)
    gradients = [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)
    ]
    return Result([o.detach() for o in outputs], gradients)


def _weights(output: torch.Tensor) -> torch.Tensor:
    parts = 2 if output.is_complex() else 1
    weights = torch.linspace(-1, 1, parts * output.numel(), device=output.device)
    if output.is_complex():
        weights = torch.view_as_complex(weights.reshape(-1, 2))
    return weights.reshape(output.shape).to(output.dtype)


def compare(
    ours: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
    factor: float,
) -> float:
    """The largest error against `exact`, in units of what is allowed.

    Allowed is `factor` times the error of `theirs`, which may happen to be exact, or a number of
    roundings of the largest value in all of `exact`: a sum that cancels is no better than its
    terms.

    Raises:
        Imprecise: a value is further off, or not finite where it should be.
    """
    worst, largest = 0.0, max(map(_largest, exact), default=0.0)
    for index, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        if not _is_fractional(truth):
            if not torch.equal(mine, other):
                raise Imprecise(f"value {index} differs from that of `find`")
            continue
        if not torch.equal(_is_finite(mine), _is_finite(other)):
            raise Imprecise(f"value {index} is finite elsewhere than that of `find`")
        finite = _is_finite(truth) & _is_finite(other)
        error, own = (_largest(x[finite].to(truth.dtype) - truth[finite]) for x in (mine, other))
        allowed = max(factor * own, _rounding(mine.dtype) * largest)
        if error > allowed:
            raise Imprecise(
                f"value {index} is off by {error:.3g} against fp64; {allowed:.3g} is allowed"
            )
        worst = max(worst, error / allowed if allowed else 0.0)
    return worst


def _is_fractional(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor)


def _largest(tensor: torch.Tensor) -> float:
    """The largest finite absolute value."""
    finite = tensor.detach()[_is_finite(tensor)] if _is_fractional(tensor) else tensor[:0]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _rounding(dtype: torch.dtype) -> float:
    """What is allowed of the largest value."""
    size = dtype.itemsize // (2 if dtype.is_complex else 1)
    return _ROUNDINGS.get(size, _ROUNDINGS_OF_HALVES) * torch.finfo(dtype).eps


def random_difference(ours: Function, theirs: Function, inputs: Sequence[Any]) -> str:
    """How two functions that draw random numbers differ in their statistics; empty where not.

    Compared are, over many draws, the means and the variances of elements, of their means along
    each dimension, and of the mean of all, for outputs and gradients. Both functions start every
    draw from the same seed; the random state is left changed.
    """
    first = run(theirs, inputs)
    known = [*first.outputs, *first.gradients]
    expected, found = _draw(theirs, inputs), _draw(ours, inputs)
    if len(expected) != len(found):
        return "it has no gradients"
    for index, (tensor, x, y) in enumerate(zip(known, expected, found, strict=True)):
        unit = float(x.abs().max()) or 1.0
        floor = _rounding(tensor.dtype) if _is_fractional(tensor) else 0.0
        x, y, centre = x / unit, y / unit, x.mean(0) / unit
        wrong = _beyond_chance("mean", x, y, floor) or _beyond_chance(
            "variance", (x - centre).square(), (y - centre).square(), floor
        )
        if wrong:
            return f"value {index}: {wrong}"
    return ""


def _draw(function: Function, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """For each output and gradient a row a draw: some elements, and means."""
    rows: list[list[torch.Tensor]] = []
    for seed in range(_DRAWS):
        torch.manual_seed(seed)
        result = run(function, inputs)
        rows.append([_sampled(x) for x in (*result.outputs, *result.gradients)])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    y = torch.nan_to_num(parts.detach().double().flatten(), nan=0.0, posinf=0.0, neginf=0.0)
    y = y.reshape(parts.shape)
    means = [y.sum(dim) / max(1, y.shape[dim]) for dim in range(y.ndim)]
    columns = [x.flatten()[:: max(1, x.numel() // _SAMPLED)] for x in (y, *means)]
    return torch.cat([*columns, y.sum().reshape(1) / max(1, y.numel())])


def _beyond_chance(what: str, x: torch.Tensor, y: torch.Tensor, floor: float) -> str:
    """Where two samples differ in their means by more than chance and rounding explain."""
    off = (x.mean(0) - y.mean(0)).abs()
    chance = _STANDARD_ERRORS * ((x.var(0) + y.var(0)) / _DRAWS).sqrt() + floor
    worst = int((off - chance).argmax())
    if bool(off[worst] <= chance[worst]):
        return ""
    return (
        f"over {_DRAWS} draws a {what} is off by {float(off[worst]):.3g}, where chance explains "
        f"{float(chance[worst]):.3g} (in units of the largest value)"
    )


def leaves(inputs: Sequence[Any]) -> tuple[Any, ...]:
    def leaf(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.detach().clone().requires_grad_(_is_fractional(x))

    return tuple(map(leaf, inputs))


def detached(inputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)


def double(inputs: Sequence[Any]) -> tuple[Any, ...]:
    def double(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not _is_fractional(x):
            return x
        wide = torch.complex128 if x.is_complex() else torch.float64
        return x.detach().to(wide).requires_grad_(x.requires_grad)

    return tuple(map(double, inputs))


def larger(inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Tensors one larger, and twice as large: equal sizes stay equal, 1 stays 1."""
    return [tuple(_changed(change, x) for x in inputs) for change in (_grown, _doubled)]


def _changed(change: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    """Change a tensor; one of eight-bit floats, for which torch has few operators, in float32."""
    if not isinstance(x, torch.Tensor):
        return x
    if _is_fractional(x) and x.dtype.itemsize == 1:
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
    return x * 0.875 if _is_fractional(x) else x


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
    counts = not _is_fractional(x) and x.dtype is not torch.bool and x.numel() > 0
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
    if _is_fractional(x):
        return torch.where(third & _is_finite(x), -x, x)
    # a negative index is an error that a GPU does not recover from
    return torch.where(third, -x, x) if integers and x.dtype.is_signed and not x.is_cuda else x


def _with_zero(x: torch.Tensor) -> torch.Tensor:
    if not _is_fractional(x) or not x.numel():
        return x
    first = torch.arange(x.numel(), device=x.device).reshape(x.shape) == 0
    return torch.where(first & _is_finite(x), 0, x)


def _is_equal(x: Any, y: Any) -> bool:
    return x is y or (isinstance(x, torch.Tensor) and torch.equal(x, y))


def all_finite(found: Sequence[torch.Tensor]) -> bool:
    return all(bool(_is_finite(x).all()) for x in found if _is_fractional(x))


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


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [o for o in pytree.tree_leaves(outputs) if isinstance(o, torch.Tensor)]
