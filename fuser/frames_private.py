"""What Dynamo holds of a function that it reads, and of those that called it, at one point: where a
part begins that eager runs only for experts with tokens.

A generator runs in a frame of its own, while names of the function that asks it go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.functions import LocalGeneratorObjectVariable
from torch._dynamo.variables.iter import IteratorVariable
from torch.fx import Node

from .bytecode import follow, is_read, returned
from .runs_private import Counts

MADE = (IteratorVariable, LocalGeneratorObjectVariable)
_MOVING = ("tp_iternext_impl", "next_variable", "unpack_var_sequence")


class Names:
    """All names, and what each of them was."""

    def __init__(self, tx: Any) -> None:
        self.frames = [(frame, dict[str, Any](frame.symbolic_locals)) for frame in _frames(tx)]

    def get(self, name: str) -> Any:
        """What a name of the innermost function was."""
        return self.frames[0][1].get(name)

    def changed(self, ended: bool = False) -> Iterator[tuple[str, Any, Any]]:
        """Names that are read later and are another thing now: what they were, and what they are.

        A function that called the innermost one is where it has called it; or, where a generator
        has `ended` as the loop that it is, behind the loop over it.
        """
        for depth, (frame, names) in enumerate(self.frames):
            at = frame.instruction_pointer - (depth > 0)
            inst = frame.instructions[at]
            ended = ended and (depth == 0 or inst.opname == "FOR_ITER")
            at = frame.indexof[inst.target] if ended and depth else at
            ended = ended and returned(frame, frame.instructions[follow(frame, at)]) is not None
            for name, now in frame.symbolic_locals.items():
                before = names.get(name)
                if now is not before and is_read(frame, name, at):
                    yield name, before, now


class Iterators:
    """Iterators and generators, by when they were made: who moves one on that is older leaves
    something behind.

    Attributes:
        born: each of them, with its time.
        now: the time.
    """

    def __init__(self) -> None:
        self.born: dict[int, tuple[Any, int]] = {}
        self.now = 0

    def later(self) -> int:
        """A time after all so far."""
        self.now += 1
        return self.now

    def made(self, usual: Callable[..., None], found: Any, *args: Any, **kwargs: Any) -> None:
        self.born[id(found)] = found, self.now
        usual(found, *args, **kwargs)

    def is_own(self, found: Any, since: int, names: Names) -> bool:
        """Whether one was made since a time, or is the generator that runs there."""
        tracer = getattr(found, "inline_tracer", None)
        runs = tracer is not None and any(frame is tracer for frame, _ in names.frames)
        return runs or self.born.get(id(found), (None, -1))[1] >= since


def iterating() -> Iterator[tuple[type, str]]:
    """Methods that move an iterator on."""
    pending: list[type] = [*MADE]
    for owner in pending:
        pending += owner.__subclasses__()
        yield from ((owner, name) for name in _MOVING if name in vars(owner))


def _frames(tx: Any) -> Iterator[Any]:
    while tx is not None:
        yield tx
        tx = getattr(tx, "parent", None)


@dataclass
class Supposed:
    """A part of a function that eager runs only for experts with tokens.

    Attributes:
        condition: what tells for which.
        mark: where it begins in the graph.
        names: those of the function and its callers, before it.
        since: when it began.
        end: the instruction that comes next where it is left out, if it is no loop.
    """

    condition: Any
    mark: Node
    names: Names
    since: tuple[int, int, int]
    end: Any = None


class Turns(VariableTracker):
    """What a loop over the experts that were hit iterates over, and nothing else may look at.

    Attributes:
        hit: the tensor.
        count: how many numbers it may hold.
        as_numbers: whether it was asked for as a list of numbers.
        counts: the numbers that it gives instead, of the experts up to the last one with tokens.
        done: how many turns have begun.
        loop: the loop, once it has begun.
        names: before the last turn.
    """

    def __init__(
        self, hit: Any, count: int, as_numbers: bool, counts: Counts | None = None
    ) -> None:
        super().__init__()
        self.hit, self.count, self.as_numbers, self.counts = hit, count, as_numbers, counts
        self.done = 0
        self.loop: Supposed | None = None
        self.names: Names | None = None
