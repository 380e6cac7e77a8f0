"""The region around a normalisation: what it has, and the operator that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, fresh, leaves, resolve
from fuser.graph.ops import Kind, value
from fuser.graph.program import Program
from fuser.graph.pull import push_view
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.specs import NormSpec

from ..captured import Captured
from ..declined import Declined
from ..neighbours import DTYPES, rearranges, same_shape
from . import growth, pairs, peaks
from .core import Core, Space, resolved
from .growth import After
from .pairs import Pair
from .peaks import Peak
from .program import Reader

_SIDES = tuple((before, after) for after in After for before in (True, False))
"""Whether a region has what is pointwise before, and what it has after; where that is not sound,
the next."""


def grown(
    view: GraphView, core: Core, pattern: str, sides: Sequence[tuple[bool, After]] = _SIDES
) -> Match:
    """The region around a normalisation.

    Raises:
        Declined, Unproven: it cannot be computed by one operator.
    """
    _require_dtypes(core)
    lesser = partial(grown, view, core, pattern, sides[1:]) if sides[1:] else None
    try:
        return replace(_Region.of(view, core, *sides[0]).match(pattern), lesser=lesser)
    except Unproven as error:
        if lesser is None:
            raise
        found = lesser()
        told = {"stops": str(error)} if isinstance(error, _Stops) else {}
        return replace(found, facts={**found.facts, **told})


class _Stops(Unproven):
    """Why a region is not as large as its author may expect."""


@dataclass
class _Region:
    """Nodes around a normalisation.

    Attributes:
        after: what was normalised and what comes after, in order.
        before: what comes before.
        results: nodes that others read, the last one first.
        kept: x, where others read it.
    """

    view: GraphView
    core: Core
    after: list[Node]
    before: set[Node]
    results: list[Node]
    kept: Node | None

    @staticmethod
    def of(view: GraphView, core: Core, before: bool, allowed: After) -> _Region:
        after = growth.after(view, core, allowed)
        kept = growth.kept(view, core, after) if before else None
        above: set[Node] = growth.before(view, core, after, kept) if before else set()
        results = growth.results(view, core, after)[::-1] or after[core.bare :][-1:]
        rows = peaks.rows(view, after)
        if allowed is After.PEAK and not rows:
            raise Unproven("nothing pointwise is made of a row and its largest value")
        results.sort(key=rows.__contains__)
        if not results or results[0] in rows:
            raise Unproven("nothing is computed of each element")
        if rows and any(value(node).requires_grad for node in results):
            raise _Stops("no gradient goes through what is rounded, and one is wanted")
        return _Region(view, core, after, above, results, kept if kept in above else None)

    def match(self, pattern: str) -> Match:
        core, view, pair, captured = self.core, self.view, Pair(), Captured()
        rows = peaks.rows(view, self.after)
        dims = self._axes(pair)
        found: dict[Node, Dims] = {}
        programs = self._programs(dims, pair, captured, found)
        peak = self._peak(found, dims, captured, pair)
        start = Reader(view, self.before, captured, pair)
        first = start.program(core.x, dims[core.node], None)
        space = self._space(dims, peak)
        members = pair.axes
        if not {*members} <= {*space.inner} or (core.bare and not peak and pair.axis is None):
            raise Unproven("members of pairs are in different rows")
        cuts = [dims for _, dims in captured.operands] + ([peak.dims] if peak else [])
        arrangement, inner = space.arranged(cuts, members)
        single = inner if peak is None else inner - _counting(arrangement[-inner:], peak)
        spec = NormSpec(
            len(captured.operands), inner, first, programs, core.centred, core.summed, core.floor,
            core.eps, core.dtype, tuple(value(node).dtype for node in self.results),
            value(self.kept).dtype if self.kept else None, pair.is_whole, core.bare,
            peak.program if peak else None,
            tuple(i for i, node in enumerate(self.results) if node in rows), inner - single,
            pair.count,
        )  # fmt: skip
        nodes = {*core.interior, *self.after[core.bare :], *self.before}
        short = (*arrangement[: len(arrangement) - single], *(() for _ in range(single)))
        differ = [i for i, (node, _) in enumerate(captured.operands) if value(node).requires_grad]
        saved = spec.read_by_gradient(differ)
        operands = {
            f"c{i}": Operand(
                node, resolve(axes), arrangement,
                read_at=self._read_at(node, nodes), fixed=captured.fixed[i], saved=i in saved,
            )
            for i, (node, axes) in enumerate(captured.operands)
        }  # fmt: skip
        parts = [
            (short if node in rows else arrangement, resolve(dims[node])) for node in self.results
        ]
        parts += [(arrangement, start.dims(self.kept))] if self.kept else []
        return Match(
            pattern,
            self.results[0] if core.bare else core.node,
            frozenset(nodes),
            (*self.results, *([self.kept] if self.kept else [])),
            (Call(spec, operands),),
            facts=_facts(spec),
            keeps_result=False,  # no lowering of ours differentiates by what it gave
            native=core.native,
            parts=tuple(parts),
            followed=frozenset(node for node in nodes if pairs.is_write(view, node)),
        )

    def _axes(self, pair: Pair) -> dict[Node, Dims]:
        """Axes of the results and of what was normalised; and which of them is that of pairs.

        Raises:
            Unproven: a result has some members of pairs and lacks others.
        """
        last = self.results[0]
        dims = {last: fresh(value(last).shape, "o")}
        reader = self._reader(Captured(), pair, 0)
        reader.program(last, dims[last], self.core)
        if reader.core_dims is None:
            raise Unproven("a result that does not depend on all that was normalised")
        dims[self.core.node] = reader.core_dims
        if pair.sections is not None:
            pair.sections.settle(pair.axis)
            if pair.axis is None:
                raise Unproven("sections of a row that have no pairs")
        if not all(map(pair.has_all, (resolve(d) for d in dims.values()))):
            raise Unproven("one member of each pair alone is computed")
        if len(self.results) > 1 or peaks.rows(self.view, self.after):
            dims = {**self._pushed(reader.core_dims), **dims}
        return dims

    def _pushed(self, dims: Dims) -> dict[Node, Dims]:
        """Axes of what comes after, given those of what was normalised: of all that no member of
        pairs is taken from."""
        found = {self.core.node: dims}
        for node in self.after[1:]:
            op = self.view.op(node)
            if peaks.is_peak(self.view, node):
                read = op.args["input"]
                if read in found:
                    same = op.name == "getitem"
                    found[node] = found[read] if same else peaks.reduced(op, found[read])
            elif op.kind is Kind.VIEW and op.args["input"] in found and rearranges(self.view, node):
                found[node] = push_view(op, node, found[op.args["input"]])
            elif op.kind in (Kind.POINTWISE, Kind.DROPOUT):
                like = [n for n in node.all_input_nodes if n in found and same_shape(n, node)]
                if like:
                    found[node] = found[like[0]]
        return found

    def _peak(
        self, read: dict[Node, Dims], dims: dict[Node, Dims], captured: Captured, pair: Pair
    ) -> Peak | None:
        """The largest value that is read, with these axes.

        Raises:
            Unproven: it is broadcast along other axes than its own, or there are several.
        """
        if not read:
            return None
        ((node, axes),) = read.items() if len(read) == 1 else ((None, ()),)
        if node is None or pair.axis is not None:
            raise Unproven("rows have several largest values, or pairs")
        _require_own(resolve(dims[node]), resolve(axes))
        source = peaks.source_of(self.view, node)
        reader = self._reader(captured, pair, None)
        program = reader.program(source, dims[source], self.core)
        self._require_same(reader, dims)
        return Peak(program, resolve(dims[node]), resolve(dims[source]))

    def _space(self, dims: dict[Node, Dims], peak: Peak | None) -> Space:
        """Axes of rows, and along them; where nothing is normalised, of what has a largest value.

        Raises:
            Unproven: that is of something else.
        """
        own = resolve(dims[self.core.node])
        if peak is None or not self.core.bare:
            space = resolved(self.core.split(own))
            if peak is not None:
                peak.end(space.inner)
            return space
        every = leaves(own)
        at = len(every) - peak.end(every)
        return Space([*every[:at]], [*every[at:]])

    def _programs(
        self, dims: dict[Node, Dims], pair: Pair, captured: Captured, read: dict[Node, Dims]
    ) -> tuple[Program, ...]:
        """One for each result, or for each member of its pairs."""
        programs, axes_before = list[Program](), pair.axes
        for node in self.results:
            if node not in dims:
                raise Unproven("a result that is made of members of pairs, beside another")
            for member, section in pair.programs:
                reader = self._reader(captured, pair, member, section)
                programs.append(reader.program(node, dims[node], self.core))
                for peak, axes in reader.peaks.items():
                    _require_own(resolve(read.setdefault(peak, axes)), resolve(axes))
                if reader.core_dims is None and reader.peaks:
                    continue
                self._require_same(reader, dims)
        if pair.axes != axes_before:
            raise Unproven("a result of pairs, beside one that is none")
        return tuple(programs)

    def _require_same(self, reader: Reader, dims: dict[Node, Dims]) -> None:
        """That a program reads what was normalised where others do."""
        if resolve(reader.core_dims or ()) != resolve(dims[self.core.node]):
            raise Unproven("results are made of rearranged copies of what was normalised")

    def _reader(
        self, captured: Captured, pair: Pair, member: int | None, section: int | None = None
    ) -> Reader:
        inside = set(self.after) - {self.core.node}
        return Reader(self.view, inside, captured, pair, member, section)

    def _read_at(self, node: Node, nodes: set[Node]) -> int:
        order = self.view.order
        return min((order[u] for u in node.users if u in nodes), default=order[node])


def _require_own(axes: Dims, read: Dims) -> None:
    """That a largest value is read along the axes that it has."""
    if read != axes:
        raise Unproven("the largest value of a row is broadcast along another axis than its own")


def _counting(inner: Dims, peak: Peak) -> int:
    """How many dimensions of rows count groups of them."""
    return sum(bool(dim) and {*dim} <= {*leaves(peak.dims)} for dim in inner)


def _require_dtypes(core: Core) -> None:
    for node in (core.x, core.node):
        dtype = value(node).dtype
        if dtype not in DTYPES:
            name = str(dtype).removeprefix("torch.")
            raise Declined(f"it is computed in {name}", core.node)


def _facts(spec: NormSpec) -> dict[str, str]:
    squares = "sum of squares" if spec.summed else "mean square"
    kind = "mean and variance" if spec.centred else squares
    eps = f"at least {spec.eps:g}" if spec.floor else f"+ {spec.eps:g}"
    return {
        "statistics": "none" if spec.bare else f"{kind}, {eps}",
        "before": spec.before.formula(),
        **({} if spec.peak is None else {"largest": spec.peak.formula()}),
        **({"of": "each group"} if spec.groups else {}),
        "after": "; ".join(program.formula() for program in spec.after),
    }
