"""Who is compared: each provider turns a plain function into the callable that is timed.

eager      the function itself
inductor   torch.compile(fn, backend="inductor")
fuser      torch.compile(fn, backend="fuser", options={"fuser....": ...})
sdpa       a plain scaled_dot_product_attention call of the same shape: the yardstick
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fuser.torch_private import distinct

Function = Callable[..., Any]

EAGER, INDUCTOR, FUSER, SDPA = "eager", "inductor", "fuser", "sdpa"


@dataclass(frozen=True)
class Provider:
    """One contestant.

    Attributes:
        name: the label in tables and in the CSV.
        backend: what `torch.compile` is given; None leaves the function as it is.
        options: `torch.compile`'s `options=`.
        yardstick: times the workload's yardstick call and not the workload itself.
    """

    name: str
    backend: str | Function | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    yardstick: bool = False

    def prepare(self, fn: Function) -> Function:
        """The callable to time; compiled (lazily, at its first call) where there is a backend."""
        if self.backend is None:
            return fn
        backend = fuser_backend() if self.backend == FUSER else self.backend
        own = distinct(fn, self.name)
        return torch.compile(own, backend=backend, options=dict(self.options) or None)


PROVIDERS: dict[str, Provider] = {
    EAGER: Provider(EAGER),
    INDUCTOR: Provider(INDUCTOR, backend="inductor"),
    FUSER: Provider(FUSER, backend=FUSER),
    SDPA: Provider(SDPA, yardstick=True),
}


def choose(
    names: list[str], fuser_options: Mapping[str, Any], stand_in: str | None = None
) -> list[Provider]:
    """The named providers, in the order given.

    Args:
        names: keys of `PROVIDERS`.
        fuser_options: `options=` of the fuser provider.
        stand_in: a backend to run under fuser's name, to develop benchmarks without fuser.

    Raises:
        KeyError: a name that is no provider.
    """
    chosen: list[Provider] = []
    for name in names:
        provider = PROVIDERS[name]
        if name == FUSER and stand_in is not None:
            provider = replace(provider, backend=stand_in)
        elif name == FUSER:
            provider = replace(provider, options=dict(fuser_options))
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
