"""The records, sizes and input builders that the attention data modules share.

Every case is plain PyTorch: a function (or module) and a builder of its seeded inputs. Tensors
that a user would train carry `requires_grad`; masks and indices do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Inputs = Callable[[torch.dtype], tuple[Tensor, ...]]
Program = Callable[..., Any]
ProgramT = TypeVar("ProgramT", bound=Program)

# No two sizes agree, so that a mix-up of axes changes a shape or a number.
B, H, KV, G = 2, 12, 3, 4
S, SK, D, DV = 20, 28, 8, 10
E = H * D


@dataclass(frozen=True)
class Spelling:
    """One way to write attention; `attentions` of them must be rewritten.

    `equals`, where given, is an independent function of the same inputs with the same result.
    """

    name: str
    fn: Program
    inputs: Inputs
    attentions: int = 1
    trains: bool = True
    notes: str = ""
    equals: Program | None = None

    def program(self, dtype: torch.dtype) -> Program:
        """The function itself, or a fresh copy of the module in `dtype`."""
        return program(self.fn, dtype)


NO_ANCHOR = "no anchor"
"""For a reason: nothing is rewritten, and nothing looked enough like attention to say why."""


@dataclass(frozen=True)
class LookAlike:
    """A program that resembles attention and must keep its numbers.

    `reason` is a word or two expected in the decline; it is empty where a rewrite that keeps
    values and gradients (NaN included) is as welcome as a decline. With `only_training`, that is so
    in inference, where what makes the difference is a gradient.
    """

    name: str
    fn: Program
    inputs: Inputs
    reason: str
    trains: bool = True
    random: bool = False
    captures: bool = True
    only_training: bool = False
    notes: str = ""

    def program(self, dtype: torch.dtype) -> Program:
        """The function itself, or a fresh copy of the module in `dtype`."""
        return program(self.fn, dtype)


def program(fn: Program, dtype: torch.dtype) -> Program:
    """A fresh copy of a module in `dtype`; any other callable as it is."""
    return copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else fn


@dataclass(frozen=True)
class Arg:
    """How one input is made; `dtype` overrides the case's."""

    make: Callable[[torch.Generator], Tensor]
    dtype: torch.dtype | None = None
    grad: bool = True


def normal(
    *shape: int, std: float = 1.0, dtype: torch.dtype | None = None, grad: bool = True
) -> Arg:
    """Gaussian numbers."""
    return Arg(lambda g: torch.randn(shape, generator=g) * std, dtype, grad)


def integers(*shape: int, high: int) -> Arg:
    """Integers in [0, high)."""
    return Arg(lambda g: torch.randint(high, shape, generator=g), torch.int64, grad=False)


def fixed(make: Callable[[], Tensor], dtype: torch.dtype | None = None) -> Arg:
    """A tensor that no gradient is wanted for; floats follow the case's dtype."""
    return Arg(lambda _: make(), dtype, grad=False)


def kept_keys(batch: int = B, keys: int = S) -> Tensor:
    """A (batch, keys) bool padding mask that keeps a different, non-empty prefix of each row."""
    lengths = torch.arange(keys, keys - 5 * batch, -5)
    return torch.arange(keys) < lengths[:, None]


def qkv(
    batch: int = B, heads: int = H, kv: int | None = None, sq: int = S, sk: int = S,
    d: int = D, dv: int = D,
) -> tuple[Arg, Arg, Arg]:  # fmt: skip
    """(batch, heads, sequence, depth) queries, keys and values with peaked scores."""
    kv = heads if kv is None else kv
    return (
        normal(batch, heads, sq, d, std=1.5),
        normal(batch, kv, sk, d, std=1.5),
        normal(batch, kv, sk, dv),
    )


def take(*args: Arg) -> Inputs:
    """An input builder that draws each argument in turn from one seeded generator."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(20240613)
        return tuple(_build(arg, generator, dtype) for arg in args)

    return build


def _build(arg: Arg, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    made = arg.make(generator)
    if arg.dtype is not None:
        made = made.to(arg.dtype)
    elif made.is_floating_point():
        made = made.to(dtype)
    wants_grad = arg.grad and (made.is_floating_point() or made.is_complex())
    return made.requires_grad_(wants_grad)


def spelling(
    into: list[Spelling], inputs: Inputs, *, attentions: int = 1, trains: bool = True,
    equals: Program | None = None,
) -> Callable[[ProgramT], ProgramT]:  # fmt: skip
    """Decorator: file a function (by name, docstring as notes) or an instance of a module."""

    def add(fn: ProgramT) -> ProgramT:
        made, name, notes = _describe(fn)
        into.append(Spelling(name, made, inputs, attentions, trains, notes, equals))
        return fn

    return add


def lookalike(
    into: list[LookAlike], inputs: Inputs, reason: str, *, trains: bool = True,
    random: bool = False, captures: bool = True, only_training: bool = False,
) -> Callable[[ProgramT], ProgramT]:  # fmt: skip
    """Decorator: file a function (by name, docstring as notes) or an instance of a module."""

    def add(fn: ProgramT) -> ProgramT:
        made, name, notes = _describe(fn)
        case = LookAlike(name, made, inputs, reason, trains, random, captures, only_training, notes)
        into.append(case)
        return fn

    return add


def _describe(fn: Program) -> tuple[Program, str, str]:
    name = getattr(fn, "__name__", type(fn).__name__)
    notes = (fn.__doc__ or "").strip()
    if not isinstance(fn, type):
        return fn, name, notes
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = fn()
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return module.eval(), snake, notes


def floats(outputs: Any) -> list[Tensor]:
    """The differentiable tensors among nested outputs, in order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() or outputs.is_complex() else []
    if isinstance(outputs, Sequence):
        return [tensor for item in outputs for tensor in floats(item)]
    return []


def evaluate(fn: Program, inputs: tuple[Tensor, ...], backward: bool) -> list[Tensor | None]:
    """Outputs, inputs as the call left them, then (if `backward`) all gradients."""
    if not backward:
        with torch.no_grad():
            detached = [tensor.detach() for tensor in inputs]
            return [*floats(fn(*detached)), *floats(detached)]
    outputs = floats(fn(*inputs))
    generator = torch.Generator().manual_seed(5)
    cotangents = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in outputs
    ]
    trained = [
        (out, seed) for out, seed in zip(outputs, cotangents, strict=True) if out.requires_grad
    ]
    torch.autograd.backward([out for out, _ in trained], [seed for _, seed in trained])
    leaves = [*inputs, *(fn.parameters() if isinstance(fn, nn.Module) else ())]
    return [*(out.detach() for out in outputs), *(leaf.grad for leaf in leaves)]
