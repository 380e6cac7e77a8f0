"""What a pattern is, and what it returns: `Pattern`, `Match`, `Decline`.

A pattern looks at one anchor node through a `GraphView` and returns a `Match` with everything it
proved, a `Decline` with the reason, or None where the node is nothing to it. It never mutates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch.fx import Node

from .graph.axes import Axis, Dims
from .graph.view import GraphView

if TYPE_CHECKING:
    from .builder import Builder


@dataclass(frozen=True)
class Operand:
    """A tensor of the graph and the arrangement in which a lowering wants it.

    `dims` are the axes of the tensor as it is, `target` those wanted. An axis of `target` that the
    tensor lacks is broadcast: a dimension of size one where all its axes are missing. `dtype`,
    where given, is a cast that the original region made (autocast). Where there is an `index`, the
    tensor is `node[index]`. Where it is not `saved`, no backward of the operator reads it.
    """

    node: Node
    dims: Dims
    target: Dims
    dtype: Any = None
    read_at: int = -1
    """Position of the first original reader; -1: unknown, the anchor's."""
    fixed: tuple[tuple[Axis, int], ...] = ()
    """Axes of the tensor at which only one index is read."""
    index: tuple[slice, ...] = ()
    saved: bool = True


@dataclass(frozen=True)
class Call:
    """One operator to put there: its spec and its operands by name."""

    spec: Any
    operands: Mapping[str, Operand]


@dataclass(frozen=True)
class Match:
    """A region that was found and proved.

    Attributes:
        pattern: id of the pattern.
        anchor: the node at which it was found.
        nodes: the interior, to be removed; contains the outputs.
        outputs: nodes whose values are used outside.
        calls: what to put there; their results, in canonical arrangement `result`, are added up and
            arranged as `outputs[0]`, whose axes are `dims`.
        facts: what was proved, for people.
        replacement: instead of `calls`, inserts the replacement itself and returns one node for
            each output.
        random: whether the region draws random numbers.
        native: the region calls library kernels that do the same already.
        opens: the replacement spells one node out for other patterns to match, which count it.
        drops_nonfinite: the region computes more than its result needs, and a NaN or infinity among
            that would be in the result, times zero; the replacement does not have it.
        followed: operators of the interior that write in place, to what the interior made, and of
            which the pattern has followed what each reader between them reads.
        onto: what the results of `calls` are added to, arranged as `outputs[0]`; where the region
            wrote to it in place, nobody reads it any more.
        keeps_result: the replacement may keep its results for the backward.
        parts: where calls give several tensors: the canonical arrangement of each and the axes of
            its output, instead of `result` and `dims`.
        lesser: a smaller region for the same, where this one is not sound or another rewrite has a
            part of it; None where there is none after all.
        any_size: sizes of what it reads and gives may be counted while running: of those that must
            be equal that is proved, and the replacement takes any, zero too.
    """

    pattern: str
    anchor: Node
    nodes: frozenset[Node]
    outputs: tuple[Node, ...]
    calls: tuple[Call, ...] = ()
    result: Dims = ()
    dims: Dims = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    replacement: Callable[[Builder], Sequence[Node]] | None = None
    random: bool = False
    native: bool = False
    opens: bool = False
    drops_nonfinite: bool = False
    followed: frozenset[Node] = frozenset()
    onto: tuple[Node, ...] = ()
    keeps_result: bool = True
    parts: tuple[tuple[Dims, Dims], ...] = ()
    lesser: Callable[[], Match | None] | None = None
    any_size: bool = False
    unordered: bool = False


@dataclass(frozen=True)
class Decline:
    """A near miss.

    Attributes:
        reason: why, in plain words.
        node: where it failed.
        depth: how many nodes had been proved before; the deepest decline is reported.
        hint: what to change, where that is known.
    """

    reason: str
    node: Node
    depth: int = 0
    hint: str = ""


class Pattern(ABC):
    """Base class of structural matchers.

    Attributes:
        id: dotted, beginning with the family: `attention.softmax`.
        priority: where regions overlap the higher one wins.
        modest: an anchor that another rewrite has is no near miss of it.
    """

    id: ClassVar[str] = ""
    priority: ClassVar[int] = 0
    modest: ClassVar[bool] = False

    @abstractmethod
    def anchors(self, view: GraphView) -> Iterable[Node]:
        """Nodes at which `match` is worth trying."""

    @abstractmethod
    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        """Prove the region around an anchor, or say why not."""
