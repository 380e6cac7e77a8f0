"""Who is compared: each provider turns a plain function into the callable that is timed.

eager          the function itself
inductor       torch.compile(fn, backend="inductor")
inductor-max   the same with max_autotune
fuser          torch.compile(fn, backend="fuser", options={"fuser....": ...}), or fuser.compile
               where loops break the graph
fuser-always   the same with every sound rewrite, whether it pays or not
fuser-max      the same with max_autotune: what its candidates take is measured
fuser-triton   the same with a generated kernel wherever that is sound
sdpa           the workload's port to scaled_dot_product_attention; on the CPU a yardstick: a plain
               call of the same shape, the least that any of them can cost
cudnn          the same port by cuDNN
flex           the workload's port to FlexAttention, compiled
flex-max       the same with max_autotune
loop           a mixture's port to a loop over the experts
grouped        the same to PyTorch's grouped product, compiled
liger          the same to Liger's fused mixture, where that can be imported

None of them uses CUDA graphs of its own, Inductor with max_autotune neither: where graphs are asked
for, the device captures the steps of all of them alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import fuser
from fuser.distinct import distinct

Function = Callable[..., Any]

EAGER, INDUCTOR, FUSER, SDPA = "eager", "inductor", "fuser", "sdpa"
INDUCTOR_MAX, FUSER_MAX, FUSER_TRITON = "inductor-max", "fuser-max", "fuser-triton"
CUDNN, FLEX, FLEX_MAX = "cudnn", "flex", "flex-max"
FUSER_ALWAYS, LOOP, GROUPED, LIGER = "fuser-always", "loop", "grouped", "liger"
OURS = (FUSER, FUSER_ALWAYS, FUSER_MAX, FUSER_TRITON)
TUNED = {"max_autotune": True, "coordinate_descent_tuning": True, "triton.cudagraphs": False}
"""mode="max-autotune-no-cudagraphs", spelled out."""


@dataclass(frozen=True)
class Provider:
    """One contestant.

    Attributes:
        name: the label in tables and in the CSV.
        backend: what `torch.compile` is given; None leaves the function as it is.
        options: `torch.compile`'s `options=`.
        port: which of the case's ports runs, and not the workload itself.
    """

    name: str
    backend: str | Function | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    port: str = ""

    def prepare(self, fn: Function, label: str = "", *, loops: bool = False) -> Function:
        """The callable to time; compiled (lazily, at its first call) where there is a backend.

        Args:
            fn: a plain function.
            label: of the copy that is compiled, by default the provider's name.
            loops: it has loops at which `torch.compile` breaks the graph.
        """
        if self.backend is None:
            return fn
        own, options = distinct(fn, label or self.name), dict(self.options) or None
        whole = getattr(fuser, "compile", None)
        if loops and whole is not None and self.backend == FUSER:
            return whole(own, options=options)
        backend = fuser_backend() if self.backend == FUSER else self.backend
        return torch.compile(own, backend=backend, options=options)


_ALL = (
    Provider(EAGER),
    Provider(INDUCTOR, backend="inductor"),
    Provider(INDUCTOR_MAX, backend="inductor", options=TUNED),
    Provider(FUSER, backend=FUSER),
    Provider(FUSER_ALWAYS, backend=FUSER, options={"fuser.policy": "always"}),
    Provider(FUSER_MAX, backend=FUSER, options=TUNED),
    Provider(
        FUSER_TRITON, backend=FUSER, options={"fuser.lowering": "triton", "fuser.policy": "always"}
    ),
    Provider(SDPA, port=SDPA),
    Provider(CUDNN, port=CUDNN),
    Provider(FLEX, backend="inductor", port=FLEX),
    Provider(FLEX_MAX, backend="inductor", options=TUNED, port=FLEX),
    Provider(LOOP, port=LOOP),
    Provider(GROUPED, backend="inductor", port=GROUPED),
    Provider(LIGER, port=LIGER),
)
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in _ALL}


def default_names(device_type: str, ports: Sequence[str]) -> list[str]:
    """Who runs where nobody says who.

    Args:
        device_type: on a GPU it is everybody but `FUSER_ALWAYS`.
        ports: that the family has there; those to other libraries are left out.
    """
    if device_type != "cuda":
        return [EAGER, INDUCTOR, FUSER, *ports]
    known = (p for p in PROVIDERS.values() if not p.port or p.port in ports)
    return [p.name for p in known if p.name != FUSER_ALWAYS]


def choose(
    names: list[str], fuser_options: Mapping[str, Any], stand_in: str | None = None
) -> list[Provider]:
    """The named providers, in the order given.

    Args:
        names: keys of `PROVIDERS`.
        fuser_options: `options=` of the fuser providers, on top of their own.
        stand_in: a backend to run under their names, to develop benchmarks without fuser.

    Raises:
        KeyError: a name that is no provider.
    """
    chosen: list[Provider] = []
    for name in names:
        provider = PROVIDERS[name]
        if name in OURS and stand_in is not None:
            provider = replace(provider, backend=stand_in, options={})
        elif name in OURS:
            provider = replace(provider, options={**provider.options, **fuser_options})
        chosen.append(provider)
    return chosen


def fuser_backend() -> str | Function:
    """`"fuser"` where the package is installed, its backend function in a bare checkout."""
    if FUSER in torch.compiler.list_backends(exclude_tags=()):
        return FUSER
    return fuser_callable()


def fuser_callable() -> Function:
    """The Dynamo backend function `fuser.backend.fuser(gm, example_inputs, options=...)`.

    Raises:
        SystemExit: fuser cannot be imported.
    """
    try:
        return importlib.import_module("fuser.backend").fuser
    except ImportError as error:
        message = "fuser cannot be imported; --providers or --stand-in can do without it"
        raise SystemExit(f"{message}: {error}") from error
