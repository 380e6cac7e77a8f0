"""How near to float64 a result is, compared with another one of the same precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class Imprecise(Exception):
    """A value is further from float64 than it may be; the message says which and how far."""


class DoublePrecision(TorchFunctionMode):
    """Casts to a floating type within the block give float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(argument: Any) -> Any:
    narrow = isinstance(argument, torch.dtype) and argument.is_floating_point
    return torch.float64 if narrow else argument


def gradients(function: Callable[..., Any], inputs: Sequence[Any]) -> list[torch.Tensor]:
    """Gradients of all floating inputs, for fixed weights of the outputs; none where none exist."""
    outputs = [o for o in tensors(function(*inputs)) if o.requires_grad]
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    if not outputs or not wanted:
        return []
    seeds = [
        torch.linspace(-1, 1, o.numel(), device=o.device).reshape(o.shape).to(o.dtype)
        for o in outputs
    ]
    found: Any = torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


def compare(
    ours: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
    factor: float,
) -> float:
    """The largest error against `exact`, in units of what is allowed.

    Allowed is `factor` times the error of `theirs`, or a rounding of the largest value.

    Raises:
        Imprecise: a value is further off, or not finite where it should be.
    """
    worst = 0.0
    ours, theirs, exact = ([x.detach() for x in xs] for xs in (ours, theirs, exact))
    for index, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        if not torch.equal(torch.isfinite(mine), torch.isfinite(other)):
            raise Imprecise(f"value {index} is finite elsewhere than that of `find`")
        finite = torch.isfinite(truth) & torch.isfinite(other)
        if not bool(finite.any()):
            continue
        if not truth.dtype.is_floating_point:
            if not torch.equal(mine, other):
                raise Imprecise(f"value {index} differs from that of `find`")
            continue
        reference = truth[finite]
        error = float((mine[finite].double() - reference).abs().max())
        floor = torch.finfo(mine.dtype).eps * float(reference.abs().max())
        allowed = factor * max(float((other[finite].double() - reference).abs().max()), floor)
        if error > allowed:
            raise Imprecise(
                f"value {index} is off by {error:.3g} against fp64; {allowed:.3g} is allowed"
            )
        worst = max(worst, error / allowed if allowed else 0.0)
    return worst


def leaves(inputs: Sequence[Any]) -> tuple[Any, ...]:
    def leaf(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.detach().clone().requires_grad_(x.is_floating_point())

    return tuple(map(leaf, inputs))


def double(inputs: Sequence[Any]) -> tuple[Any, ...]:
    def double(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    return tuple(map(double, inputs))


def grow(x: Any) -> Any:
    """A larger tensor: equal sizes stay equal, 1 stays 1; content repeats."""
    if not isinstance(x, torch.Tensor):
        return x
    for dim, size in enumerate(x.shape):
        if size > 1:
            x = torch.cat([x, x.narrow(dim, 0, 1)], dim)
    return x


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [o for o in pytree.tree_leaves(outputs) if isinstance(o, torch.Tensor)]
