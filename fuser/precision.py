"""How near to float64 a result is, compared with another one of the same precision.

`run` and `compare` judge one call; `random_difference` compares results that draw random numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from .torch_private import GROUPED_PRODUCT, pytree

Function = Callable[..., Any]
_COMPLEX_CASTS = [getattr(torch.Tensor, name) for name in ("cfloat", "chalf")]
_DRAWS = 400
_SAMPLED = 4096
_STANDARD_ERRORS = 6.0
_ROUNDINGS = {4: 24, 8: 24}
_ROUNDINGS_OF_HALVES = 5
"""What is always allowed, in roundings of the largest value. Of 1000 seeds each for twelve right
replacements on tiny inputs (attention, norms, GELU, ...), one in float32 and one in half precision
needed more; 12 instead of 24 fail five of them in float32, and 57 softmaxes in float64."""


class Imprecise(Exception):
    """A value is further from float64 than it may be; the message says which and how far."""


class DoublePrecision(TorchFunctionMode):
    """Casts to a floating or complex type within the block give float64 or complex128; what has no
    kernel for float64 is spelled out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        if func in _COMPLEX_CASTS:
            return args[0].cdouble()
        if func is GROUPED_PRODUCT:
            return _grouped_product(*args, **(kwargs or {}))
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _grouped_product(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """`grouped_mm(a, b, offs)`, where runs end at `offs`: rows `(N, K)` in runs by `(E, K, M)`,
    `(E, N, K)` by columns `(K, M)` in runs, or `(N, K)` by `(K, M)` whose inner dimension has them.
    What is beyond the last end is zero."""
    if offs is None:
        return torch.bmm(a, b)
    runs = [slice(*ends) for ends in itertools.pairwise([0, *offs.tolist()])]
    if a.ndim == b.ndim == 2:
        return torch.stack([a[:, run] @ b[run] for run in runs])
    if a.ndim == 2:
        rows = torch.cat([a[run] @ matrix for run, matrix in zip(runs, b, strict=True)])
        return pad(rows, (0, 0, 0, len(a) - len(rows)))
    columns = torch.cat([m @ b[:, run] for run, m in zip(runs, a, strict=True)], -1)
    return pad(columns, (0, b.shape[-1] - columns.shape[-1]))


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


def _even(output: torch.Tensor) -> torch.Tensor:
    parts = 2 if output.is_complex() else 1
    weights = torch.linspace(-1, 1, parts * output.numel(), device=output.device)
    if output.is_complex():
        weights = torch.view_as_complex(weights.reshape(-1, 2))
    return weights.reshape(output.shape).to(output.dtype)


def run(
    function: Function, inputs: Sequence[Any], weigh: Callable[[torch.Tensor], torch.Tensor] = _even
) -> Result:
    """Call a function once; no gradients where none exist.

    Args:
        function: gives tensors, nested as they may be.
        inputs: its arguments; gradients are those of the tensors that want one.
        weigh: the weights of an output that has a gradient, in its shape and dtype.
    """
    outputs = tensors(function(*inputs))
    ends = [o for o in outputs if o.requires_grad]
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    if not ends or not wanted:
        return Result(outputs, [])
    found: Any = torch.autograd.grad(ends, wanted, [weigh(o) for o in ends], allow_unused=True)
    gradients = [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)
    ]
    return Result([o.detach() for o in outputs], gradients)


@dataclass(frozen=True)
class Difference:
    """How far one value is from float64, and where it is furthest.

    Attributes:
        error: the largest error of ours; of whole numbers, the largest difference from theirs.
        own: the largest error of theirs.
        allowed: the largest error that is allowed.
        worst: indices of the element that exceeds what is allowed by most.
        problem: what is wrong with ours; empty where it is near enough.
    """

    error: float
    own: float
    allowed: float
    worst: tuple[int, ...] = ()
    problem: str = ""


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
    worst, scale = 0.0, max(map(largest, exact), default=0.0)
    for index, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        found = difference(mine, other, truth, factor, scale)
        if found.problem:
            raise Imprecise(f"value {index} {found.problem.format('`find`')}")
        worst = max(worst, found.error / found.allowed if found.allowed else 0.0)
    return worst


def difference(
    mine: torch.Tensor,
    other: torch.Tensor,
    truth: torch.Tensor,
    factor: float,
    scale: float,
    *,
    moves: torch.Tensor | None = None,
    excused: torch.Tensor | None = None,
) -> Difference:
    """How far `mine` is from `truth`, where `other` is so far.

    Args:
        mine, other: one value, of the same precision.
        truth: the same in float64.
        factor: how many times the error of `other` is allowed.
        scale: of which some roundings are allowed.
        moves: by how much each element is allowed to be off anyway; whole numbers may differ where
            that is not zero.
        excused: where `mine` may be finite although `other` is not.
    """
    if (mine.shape, mine.dtype) != (other.shape, other.dtype):
        return Difference(math.inf, 0.0, 0.0, (), "has another shape or dtype than that of {}")
    still = torch.ones_like(mine, dtype=torch.bool) if moves is None else moves == 0
    if not is_fractional(truth):
        differs = (mine != other) & still
        error = float((mine.double() - other.double())[differs].abs().max()) if differs.any() else 0
        problem = "differs from that of {}" if error else ""
        return Difference(float(error), 0.0, 0.0, _first(differs), problem)
    stray = is_finite(mine) != is_finite(other)
    if excused is not None:
        stray &= ~(excused & is_finite(mine))
    if moves is not None:
        stray &= torch.isfinite(moves)
    finite = is_finite(truth) & is_finite(other) & is_finite(mine)
    if bool(stray.any()):
        problem = "is finite elsewhere than that of {}"
        return Difference(math.inf, 0.0, 0.0, _first(stray), problem)
    off, own = (torch.where(finite, (x.to(truth.dtype) - truth).abs(), 0.0) for x in (mine, other))
    allowed = max(factor * largest(own), _rounding(mine.dtype) * scale)
    over = off - allowed if moves is None else off - moves.clamp_min(allowed)
    error, worst = largest(off), _first(over == over.max()) if over.numel() else ()
    if not over.numel() or not float(over.max()) > 0:
        return Difference(error, largest(own), allowed, worst)
    error = float(off[worst])
    problem = f"is off by {error:.3g} against fp64; {allowed:.3g} is allowed"
    return Difference(error, largest(own), allowed, worst, problem)


def _first(where: torch.Tensor) -> tuple[int, ...]:
    """Indices of the first element that is true, if any is."""
    found = where.nonzero()
    return tuple(found[0].tolist()) if len(found) else ()


def is_fractional(tensor: torch.Tensor) -> bool:
    """Whether it holds floating-point or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor)


def largest(tensor: torch.Tensor) -> float:
    """The largest finite absolute value."""
    finite = tensor.detach()[is_finite(tensor)] if is_fractional(tensor) else tensor[:0]
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
        floor = _rounding(tensor.dtype) if is_fractional(tensor) else 0.0
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
        return x.detach().clone().requires_grad_(is_fractional(x))

    return tuple(map(leaf, inputs))


def detached(inputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)


def double(inputs: Sequence[Any]) -> tuple[Any, ...]:
    def double(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not is_fractional(x):
            return x
        wide = torch.complex128 if x.is_complex() else torch.float64
        return x.detach().to(wide).requires_grad_(x.requires_grad)

    return tuple(map(double, inputs))


def all_finite(found: Sequence[torch.Tensor]) -> bool:
    return all(bool(is_finite(x).all()) for x in found if is_fractional(x))


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [o for o in pytree.tree_leaves(outputs) if isinstance(o, torch.Tensor)]
