"""Compile with this backend and compare with an fp64 run: the checks that all families share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from fuser.backend import listening
from fuser.events import Record

from . import every

# Added to "times eager's own error": a few roundings of a result of size one.
TOLERANCES: dict[torch.dtype, float] = {
    torch.float32: 4e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
    torch.float64: 1e-12,
}
FACTOR = 3.0


@dataclass
class Run:
    """Outputs and gradients of one run."""

    outputs: list[Tensor]
    grads: list[Tensor | None] = field(default_factory=list)
    record: Record = field(default_factory=Record)

    def rewrites(self, family: str = "attention") -> int:
        return sum(r.count for r in self.record.rewritten if r.pattern.startswith(family + "."))

    def reasons(self) -> str:
        return "; ".join(n.reason for n in self.record.near_misses)


def compiled(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    grad: bool = False,
    inner: str | None = None,
    policy: str = "always",
    dynamic: bool | None = None,
    **options: Any,
) -> Run:
    """Run `fn` compiled with this backend, by default over what `tests.every` says; failures of
    ours raise."""
    torch._dynamo.reset()
    record = Record()
    settings = {
        "fuser.inner": inner or every.inner(),
        "fuser.policy": policy,
        "fuser.strict": True,
        **options,
    }
    target = torch.compile(fn, backend="fuser", options=settings, dynamic=dynamic)
    with listening(record.extend):
        found = run(target, args, kwargs, grad=grad)
    found.record = record
    return found


def run(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    grad: bool = False,
) -> Run:
    """Outputs of `fn`, and the gradients of every floating input and parameter that wants one."""
    leaves = _leaves(fn, args, kwargs)
    torch.manual_seed(7)
    with torch.enable_grad() if grad else torch.no_grad():
        result = fn(*args, **(kwargs or {}))
    outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
    if not grad:
        return Run([t.detach() for t in outputs])
    total = sum((_weighted(t) for t in outputs if t.requires_grad), torch.zeros(()))
    grads = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()  # type: ignore[arg-type]
    return Run([t.detach() for t in outputs], list(grads))


def _weighted(t: Tensor) -> Tensor:
    """A loss with another derivative at every element."""
    weights = torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64, device=t.device)
    return (t.to(torch.float64) * weights.reshape(t.shape)).sum()


def _leaves(fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Tensor]:
    tensors = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
    module = getattr(fn, "_orig_mod", fn)
    if isinstance(module, nn.Module):
        tensors += list(module.parameters())
    return [t for t in dict.fromkeys(tensors) if t.requires_grad]


def wide(value: Any) -> Any:
    """The same program or inputs in float64."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()

    def widen(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_floating_point():
            return t
        return t.detach().double().requires_grad_(t.requires_grad)

    return tree_map(widen, value)


def assert_near(
    ours: Run,
    eager: Run,
    exact: Run,
    *,
    factor: float = FACTOR,
    added: Mapping[int, float] | None = None,
) -> None:
    """Every output and gradient as near to fp64 as eager's own, times a factor.

    Non-finite elements must stand in the same places as in eager. `added` has sums of magnitudes
    of what some gradients, by their numbers, add up in fp32: one rounding of these is no error,
    whatever eager's own luck was where they cancel.
    """
    for name in ("outputs", "grads"):
        columns = zip(getattr(ours, name), getattr(eager, name), getattr(exact, name), strict=True)
        largest = max((_largest(t) for t in getattr(exact, name) if t is not None), default=0.0)
        for index, (a, b, c) in enumerate(columns):
            assert (a is None) == (b is None), f"{name}[{index}] is missing on one side"
            if a is not None:
                sizes = (added or {}).get(index, 0.0) if name == "grads" else 0.0
                rounding = sizes * torch.finfo(torch.float32).eps / 2
                _assert_tensor(a, b, c, f"{name}[{index}]", factor, largest, rounding)


def _largest(t: Tensor) -> float:
    finite = t[t.isfinite()] if t.is_floating_point() else t.new_empty(0)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _assert_tensor(
    a: Tensor, b: Tensor, c: Tensor, name: str, factor: float, largest: float, rounding: float
) -> None:
    """`largest` of all tensors in the group: a sum that cancels is no better than its terms."""
    assert a.shape == b.shape, f"{name}: shape {tuple(a.shape)}, eager's is {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{name}: dtype {a.dtype}, eager's is {b.dtype}"
    if not a.dtype.is_floating_point:
        assert torch.equal(a, b), f"{name} differs"
        return
    assert torch.equal(a.isnan(), b.isnan()), f"{name}: NaN in other places than eager"
    assert torch.equal(a.isinf(), b.isinf()), f"{name}: infinities in other places than eager"
    finite = b.isfinite() & c.isfinite()
    if not bool(finite.any()):
        return
    x, y, z = (t[finite].double() for t in (a, b, c))
    scale = max(float(z.abs().max()), 0.1 * largest, 1e-3)
    error, own = float((x - z).abs().max()), float((y - z).abs().max())
    allowed = factor * own + TOLERANCES.get(a.dtype, 1e-6) * scale + rounding
    assert error <= allowed, f"{name}: error {error:.3g} against fp64, eager has {own:.3g}"
