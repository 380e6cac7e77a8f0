"""Rows of which some parts alone are turned, and the rest is put back as it was.

    cat([turned(x[..., :r]), x[..., r:]], -1)

Such a row has equal sections. Where its parts are as long as some number of them, a section is what
a part is, or a part of that:

    r divides the row                        a section is a part
    r does not, and pairs are neighbours     a section is some pairs of a part
    r does not, and pairs are halves         a section is a part of one half

In the last case no section has a pair: members of pairs are different sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from weakref import WeakKeyDictionary

from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, leaves, resolve, split_dim
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.specs.norm import MEMBERS

from ..captured import loses_nothing
from ..cuts import Cut, known_cut
from ..parts import part_of

MOST = len(MEMBERS)
"""Members of a row: kernels have a tensor for each."""
_LIMIT = 64


@dataclass(frozen=True)
class Row:
    """A row that was put together.

    Attributes:
        source: what its parts are made of.
        dim: of both.
        size: of the row.
        starts: where the parts begin that are others than they were.
        parts: what these are, all of one `length`.
        pieces: all that it is put together of, as it was.
    """

    source: Node
    dim: int
    size: int
    starts: tuple[int, ...]
    parts: tuple[Node, ...]
    length: int
    pieces: tuple[Cut, ...]

    def before(self, part: int) -> Cut:
        """What a part was."""
        return Cut(self.source, self.dim, self.starts[part], self.length)

    @property
    def cut(self) -> tuple[int, int, tuple[int, ...]]:
        """Where it has parts."""
        return self.size, self.length, self.starts

    @property
    def even(self) -> bool:
        """Whether parts are sections."""
        return not any(n % self.length for n in (self.size, *self.starts))

    def unit(self, whole: int) -> int:
        """The longest section, where what has so many elements has some."""
        return gcd(whole, self.size, *self.starts)

    @cached_property
    def has_few(self) -> bool:
        """Whether there are not too many sections, however pairs are cut."""
        near, halves = 2 * self.size // self.unit(self.length), self.length // 2
        return min(near, self.size // self.unit(halves or 1)) <= MOST


class Sections:
    """The axes of a row that was put together, and of the sections that it has.

    Attributes:
        axis: counts sections; None until it is known where members of pairs are.
        count: how many sections there are.
        apart: members of pairs are in different ones.
        along: axes of the row.
        part: axes of a part of it that was changed.
    """

    def __init__(self, row: Row, along: Dim) -> None:
        self.row, self.along, self.each = row, along, row.length
        self.axis: Axis | None = None
        self.count, self.apart = 1, False
        self.part: Dim = (Axis(row.length, "part"),)
        self._pair: Axis | None = None
        self._turn: Axis | None = None
        if row.even:
            self.count = row.size // row.length
            (self.axis,), self.part = resolve(split_dim(along, (self.count, row.length)))

    def settle(self, pair: Axis | None) -> None:
        """Finds sections that are no whole parts, once it is known which axis is the member's.

        Raises:
            Unproven: that is no half of a part, and no neighbour; there are too many sections.
        """
        if self.axis is not None:
            return
        part, along, row = leaves((self.part,)), leaves((self.along,)), self.row
        if len(part) != 2 or pair not in part or len(along) != 1:
            raise Unproven("parts of a row that are neither halves nor neighbours")
        self._pair, self.apart = pair, part[0] is pair
        half = part[1 if self.apart else 0]
        whole = self._half if self.apart else row.length
        self.each = row.unit(whole)
        self.count = row.size // self.each
        own = 1 if self.apart else 2
        if self.each % own or self.count * own > MOST:
            raise Unproven("a row has too many sections")
        self.axis = Axis(self.count, "section")
        turns, columns = whole // self.each, self.each // own
        column = (Axis(columns, "column"),) if columns > 1 else ()
        self._turn = Axis(turns, "turn") if turns > 1 else None
        half.parts = (*([self._turn] if self._turn else []), *column)
        along[0].parts = (self.axis, *column, *(() if self.apart else (pair,)))

    @property
    def _half(self) -> int:
        return self.row.length // 2

    @property
    def programs(self) -> list[tuple[int | None, int]]:
        """Members, each with its section: where members are apart, that of the section itself."""
        every = range(self.count)
        if not self.apart:
            return [(member, section) for section in every for member in (0, 1)]
        return [(self._member(section), section) for section in every]

    def _member(self, section: int) -> int | None:
        """Of which a section is some elements, where it is of a part."""
        own = self.part_of(section) is not None
        return self._offset(section) // self._half if own else None

    def part_of(self, section: int | None) -> int | None:
        """The number of the part that a section is of, the first one if that is not asked for; None
        for what is as it was."""
        if section is None:
            return 0
        first = section * self.each
        starts = enumerate(self.row.starts)
        return next((i for i, s in starts if s <= first < s + self.row.length), None)

    def _offset(self, section: int) -> int:
        """Where a section begins in its part."""
        return section * self.each - self.row.starts[self.part_of(section) or 0]

    def name(self, section: int, member: int | None) -> str:
        """What names end in of a member of the pairs that a section has a member of."""
        if not self.apart:
            return MEMBERS[2 * section + known(member)]
        if member is None:
            return MEMBERS[section]
        first = section * self.each - self._offset(section) // self._half * self._half
        return MEMBERS[(first + member * self._half) // self.each]

    def fixed(self, dims: Dims, section: int, member: int | None) -> tuple[tuple[Axis, int], ...]:
        """Where something is read that is as long as a part: of that, sections have no axis."""
        own, found = leaves(dims), list[tuple[Axis, int]]()
        if self._turn is not None and self._turn in own:
            within = self._half if self.apart else self.row.length
            found.append((self._turn, self._offset(section) % within // self.each))
        if self._pair is not None and self._pair in own:
            found.append((self._pair, known(member)))
        return tuple(found)


def known(member: int | None) -> int:
    """A member that is told.

    Raises:
        Unproven: it is not.
    """
    if member is None:
        raise Unproven("pairs whose members are told apart before they are normalised")
    return member


_ROWS: WeakKeyDictionary[GraphView, dict[Node, Row]] = WeakKeyDictionary()


def row_of(view: GraphView, node: Node) -> Row | None:
    """What a node puts together: parts that were changed, and the rest that was not."""
    return _rows(view).get(node)


def _rows(view: GraphView) -> dict[Node, Row]:
    found = _ROWS.get(view)
    if found is None:
        rows = ((n, _row(view, n)) for n in view.nodes if view.op(n).name == "cat")
        found = _ROWS[view] = {n: row for n, row in rows if row is not None}
    return found


def _row(view: GraphView, node: Node) -> Row | None:
    op = view.op(node)
    given, dim = op.args.get("tensors"), op.args.get("dim", 0)
    if not isinstance(dim, int) or not isinstance(given, (list, tuple)):
        return None
    if not is_tensor(node) or not 2 <= len(given) <= MOST or not all(map(is_tensor, given)):
        return None
    if any(value(part).ndim != value(node).ndim for part in given):
        return None  # an empty one of one dimension, which is passed over
    dim %= value(node).ndim
    sizes = [value(part).shape[dim] for part in given]
    if not all(isinstance(size, int) and size for size in sizes):
        return None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = [range_of(view, _copied(view, part)) for part in given]
    changed = [i for i, part in enumerate(found) if part is None]
    lengths = {sizes[i] for i in changed}
    sources = {part.source for part in found if part is not None}
    if len(lengths) != 1 or len(sources) > 1:
        return None
    (source,) = sources or {_divided(view, given[0], dim, sizes)}  # where no part was kept
    if source is None or value(source).ndim != value(node).ndim:
        return None
    pieces = [Cut(source, dim, first, size) for first, size in zip(starts, sizes, strict=True)]
    if value(source).shape[dim] != sum(sizes):
        return None
    if any(found[i] not in (None, piece) for i, piece in enumerate(pieces)):
        return None
    parts, (length,) = tuple(given[i] for i in changed), lengths
    first = tuple(starts[i] for i in changed)
    row = Row(source, dim, sum(sizes), first, parts, length, tuple(pieces))
    made = all(_is_made_of(view, part, row.before(i), not sources) for i, part in enumerate(parts))
    return row if made and row.has_few else None


def rows_around(view: GraphView, node: Node) -> dict[Node, Row]:
    """Rows of which a node has a piece as it was, by where they are put together."""
    own = range_of(view, node)
    return {} if own is None else {n: row for n, row in _rows(view).items() if own in row.pieces}


def range_of(view: GraphView, node: Node) -> Cut | None:
    """Which elements of a tensor a node has, if these follow each other."""
    cut = known_cut(view, node)
    return cut if cut is not None and cut.step == 1 else None


def _copied(view: GraphView, node: Node) -> Node:
    """What a node is a copy of."""
    op = view.op(node)
    while op.kind is Kind.POINTWISE and not op.inplace and loses_nothing(op, node):
        node = op.args["input"]
        op = view.op(node)
    return node


def _divided(view: GraphView, node: Node, dim: int, sizes: list[int]) -> Node | None:
    """Of what the first part of a row is made, where no part is as it was."""
    return next(
        (
            own.source
            for n in _above(view, node)
            if (own := range_of(view, n)) is not None
            and (own.dim, own.start, own.length) == (dim, 0, sizes[0])
            and value(own.source).shape[dim] == sum(sizes)
        ),
        None,
    )


def _above(view: GraphView, node: Node, first: int = 0, own: Cut | None = None) -> Iterator[Node]:
    """What a node is made of, from some position on; nothing above a range of elements."""
    pending, seen = [node], set[Node]()
    while pending and len(seen) <= _LIMIT:
        node = pending.pop()
        if node in seen or view.order[node] < first:
            continue
        seen.add(node)
        yield node
        if own is None or range_of(view, node) != own:
            pending += node.all_input_nodes


def _is_made_of(view: GraphView, node: Node, own: Cut, divided: bool) -> bool:
    """Whether of a tensor nothing but one range is in a node; if that is to be, in pairs."""
    above = [*_above(view, node, view.order[own.source], own)]
    if len(above) > _LIMIT or own.source in above:
        return False
    return any(_takes_pairs(view, n, own) if divided else range_of(view, n) == own for n in above)


def _takes_pairs(view: GraphView, node: Node, own: Cut) -> bool:
    """Whether a node takes members of pairs out of a part, which is no member itself."""
    part = part_of(view, node)
    member = part is not None and part.count == 2 and range_of(view, node) != own
    return member or view.op(node).name == "view_as_complex"
