"""The interface of a lowering, and the list of them by spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.events import Candidate
from fuser.graph.axes import leaves, size_of
from fuser.graph.fold import Folder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.torch_private import hints


@dataclass(frozen=True)
class Context:
    """Where a replacement will run.

    Attributes:
        device: of the operands.
        training: whether a gradient will be taken through the region.
        native: the region calls library kernels that do the same already.
        excess: the region computes more than its result needs.
        inner: name of the inner backend.
        folder: values that are known while compiling.
        autotune: candidates are measured instead of trusting what they say of their `work`.
        origin: pattern and source line, for the header of generated text; the same for regions of
            a graph that have the same spec, as another header would be another kernel.
        atomics: sums of a gradient may be added up in any order, by atomic additions.
    """

    device: torch.device
    training: bool
    native: bool
    inner: str
    folder: Folder
    autotune: bool = False
    origin: str = ""
    atomics: bool = False
    excess: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a lowering cannot take a spec, in plain words; of a choice, what was considered."""

    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Emission:
    """A prepared replacement.

    Attributes:
        emit: inserts the nodes and returns the result in canonical arrangement; or all of them.
        name: what is put there, for people: `aten.flash, causal`.
        why: the rule that chose it.
        slower: why the inner backend is expected to be at least as fast; empty where it is not.
        facts: what was found out on the way (mask kind, scale, ...).
        work: expected time, in units of a plain library kernel that computes everything; of
            several lowerings the one with the least is taken.
        candidates: what was considered; known once it is chosen.
    """

    emit: Callable[[Builder], Node | Sequence[Node]]
    name: str
    why: str
    slower: str
    facts: dict[str, str]
    work: float = 1.0
    candidates: tuple[Candidate, ...] = ()


class Lowering(ABC):
    """One way to compute a spec.

    Attributes:
        name: for people.
        kind: `reference`, `aten` or `triton`: the value of `fuser.lowering` that allows it.
    """

    name: ClassVar[str]
    kind: ClassVar[str]

    @abstractmethod
    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        """Decide whether and how this call is computed; changes nothing."""


L = TypeVar("L", bound=Lowering)
_lowerings: dict[type, list[tuple[int, Lowering]]] = {}


def register_lowering(spec: type, *, order: int) -> Callable[[type[L]], type[L]]:
    """Class decorator: offer a lowering for a kind of spec; lower `order` is tried first."""

    def register(cls: type[L]) -> type[L]:
        _lowerings.setdefault(spec, []).append((order, cls()))
        _lowerings[spec].sort(key=lambda item: item[0])
        return cls

    return register


def candidates(spec: Any) -> list[Lowering]:
    """The lowerings for a spec, in the order of preference."""
    return [lowering for _, lowering in _lowerings.get(type(spec), [])]


def size(call: Call, name: str, dim: int) -> int | None:
    """A canonical size, as it is in the example where it is symbolic."""
    found: Any = size_of(leaves((call.operands[name].target[dim],)))
    if isinstance(found, int):
        return found
    examples = [value(operand.node) for operand in call.operands.values()]
    found = found.xreplace(hints([e for e in examples if isinstance(e, torch.Tensor)]))
    return int(found) if found.is_Integer else None
