"""What is measured: a workload, made concrete for a dtype, a device and a mode; its fp64 twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.limits import Work
from benchmarks.providers import Function

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Port:
    """A workload written for a library: another function of the same arguments.

    Attributes:
        fn: the function.
        same: it computes what the workload does, so that its error is measured too; otherwise it
            is a yardstick, and only its time counts.
    """

    fn: Function
    same: bool = True


@dataclass(frozen=True)
class Case:
    """A workload made concrete: one dtype, one device, one mode.

    Attributes:
        fn: a plain function of `args` returning one tensor, or a tuple of them.
        args: its arguments.
        cotangents: the gradient of each output; none time the forward alone, without autograd.
        leaves: what gradients are taken of; by default the arguments that require one.
        ports: what the providers with a port run instead, by name.
        double: builds the fp64 twin; by default the same function on fp64 arguments.
        part: what the fp64 twin computes of the results of a step; by default all.
        loops: it has a loop at which `torch.compile` breaks the graph.
    """

    fn: Function
    args: Tensors
    cotangents: Tensors = ()
    leaves: Tensors = ()
    ports: Mapping[str, Port] = field(default_factory=dict[str, Port])
    double: Callable[[], Case] | None = None
    part: Callable[[Tensors], Tensors] | None = None
    loops: bool = False

    def step(self, fn: Function) -> Tensors:
        """One step of `fn` in this case's mode: `(*outputs, *gradients)`."""
        if not self.cotangents:
            with torch.no_grad():
                return _several(fn(*self.args))
        outs = _several(fn(*self.args))
        leaves = self.leaves or tuple(a for a in self.args if a.requires_grad)
        grads = torch.autograd.grad(outs, leaves, self.cotangents, allow_unused=True)
        return (*outs, *(g for g in grads if g is not None))

    def in_double(self) -> Case:
        """The same case in fp64."""
        if self.double is not None:
            return self.double()
        args, cotangents = (tuple(map(as_double, xs)) for xs in (self.args, self.cotangents))
        return replace(self, args=args, cotangents=cotangents)

    def error(self, got: Tensors, expected: Tensors) -> float:
        """`relative_error` of the results of a step, or of the part that `expected` holds."""
        return relative_error(got if self.part is None else self.part(got), expected)


def _several(tensors: torch.Tensor | Tensors) -> Tensors:
    return tensors if isinstance(tensors, tuple) else (tensors,)


@dataclass(frozen=True)
class Workload:
    """A named workload that can be built for a dtype and a mode.

    Attributes:
        family: the benchmark it belongs to.
        name: unique within its family.
        build: `(dtype, device, mode) -> Case`; mode is "forward" or "full" (and backward).
        modes: the modes it is measured in.
        x: the size it is filed under in the CSV, as (name, value).
        config: anything else worth keeping, for the CSV's extra_config.
        work: what it takes at the least, `(dtype, mode) -> Work`; None where that is not known.
    """

    family: str
    name: str
    build: Callable[[torch.dtype, torch.device, str], Case]
    modes: tuple[str, ...] = ("forward",)
    x: tuple[str, int] = ("S", 1024)
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    work: Callable[[torch.dtype, str], Work] | None = None


def as_double(x: torch.Tensor) -> torch.Tensor:
    """fp64 copy of a floating tensor (a leaf like the original); other tensors as they are."""
    return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x


class InDouble(TorchFunctionMode):
    """Runs fp32 steps in fp64: `softmax(dtype=float32)`, `.to(float32)`, `.float()`.

    Models upcast explicitly; without this their fp64 twin would be an fp32 reference.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        widen = {torch.float32: torch.float64}
        args = [widen.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        named = (kwargs or {}).items()
        kwargs = {k: widen.get(a, a) if isinstance(a, torch.dtype) else a for k, a in named}
        return func(*args, **kwargs)


def reference(case: Case) -> Tensors:
    """Outputs and gradients of the case in fp64, or the part of them that `case.part` takes."""
    twin = case.in_double()
    with InDouble():
        return twin.step(twin.fn)


def relative_error(got: Tensors, want: Tensors) -> float:
    """Largest |got - want| / max|want| over outputs and gradients; inf where NaNs disagree."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        g, w = g.detach().double(), w.detach().double()
        if not torch.equal(g.isnan(), w.isnan()):
            return math.inf
        size = w.nan_to_num().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, ((g - w).nan_to_num().abs().max() / size).item())
    return worst
