"""Gradients of the operands.

    dn, dc_j = Σ_i ∂after_i(n, c)ᵀ dy_i
    dx       = r (dn - mean(dn) - n mean(dn n)) + dx_out
    dc_j    += ∂before(c)ᵀ dx

without the first mean where x is not centred, with a sum in place of the second where squares are
summed, and without the second where eps is a floor that the root does not reach. Statistics were
saved; all else is computed again.

An operand that is broadcast gets a sum: over the columns of a tile at once, over rows one after the
other by the program that has them, and over programs at last (`problem`). Each sum has one owner
and one order, so that gradients are the same in every run.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch

from fuser.graph.program import Program

from ...triton.emitter import Emitter, Value
from ...triton.kernel import pointer
from ...triton.values import literal
from .config import Config, Way
from .derivative import derived, read_by_gradients, rows
from .forward import (
    at_row,
    before,
    less_mean,
    load_parts,
    normalised,
    own_part,
    pieces_of_part,
    store_parts,
)
from .layout import Layout
from .text import FP32, Text


class Sum(Enum):
    """What a kernel leaves of the gradient of an operand, `dc_j`."""

    EACH = "each"
    """Every element's: in the dtype of an operand that is not broadcast, else in fp32."""
    ROWS = "rows"
    """By row, `(parts, rows, columns that it varies along)` in fp32."""
    PROGRAMS = "programs"
    """By program, `(programs, columns that it varies along)` in fp32."""


def sum_of(layout: Layout, name: str, by: Way) -> Sum:
    """How the gradient of an operand is added up."""
    if not layout.whole_columns(name):
        return Sum.ROWS
    return Sum.EACH if layout.whole_rows(name) or by is Way.SPLIT else Sum.PROGRAMS


@dataclass(frozen=True)
class Needs:
    """Whose gradient is wanted, and from what.

    Attributes:
        operands: their names.
        results: numbers of the results y_i that have a gradient.
        x_out: x is a result too, and has a gradient.
    """

    operands: tuple[str, ...]
    results: tuple[int, ...] = (0,)
    x_out: bool = False


def whole_text(layout: Layout, config: Config, needs: Needs) -> Text:
    """Rows that a tile has all of."""
    text = Text("whole_backward", "Gradients of rows, read once.", layout, config, Way.WHOLE)
    write = text.write
    _own_rows(text)
    text.columns()
    summed = _summed(text, needs)
    for name in summed:
        write(f"{name}_sum = {_zeros(text, layout.tile_axes(name))}")
    with _rows_of_program(text), text.emitting() as emitter:
        _place(text, needs)
        found = _Gradients(text, emitter, needs)
        for total, terms in _sums(layout).items():
            write(f"{total} = {text.total(terms, 'm')}")
        for name, grad in found.of_operands().items():
            if name in summed:
                write(f"{name}_sum += {_reduced(text, name, grad, Sum.PROGRAMS)}")
            else:
                _store(text, emitter, name, grad)
    for name in summed:
        _store_sum(text, name, f"{name}_sum", Sum.PROGRAMS)
    return text


def long_text(layout: Layout, config: Config, needs: Needs) -> Text:
    """Rows that are read twice by one program."""
    text = Text("long_backward", "Gradients of rows, read twice.", layout, config, Way.LONG)
    _own_rows(text)
    text.pieces()
    with _rows_of_program(text):
        _place(text, needs)
        _gather(text, needs, "0", "pieces")
        _spread(text, needs, "0", "pieces")
    return text


def part_text(layout: Layout, config: Config, needs: Needs) -> Text:
    """Sums over parts of rows: `sums[row, part]` is Σ dn, where x is centred, and Σ dn n; without
    gradients of operands."""
    text = Text(
        "part_backward", "Sums over parts of rows, for their gradients.", layout, config, Way.SPLIT
    )
    own_part(text)
    text.rows("first_row")
    text.pieces()
    _place(text, needs)
    _gather(text, needs, "first", "last")
    store_parts(text, [*_sums(layout)])
    return text


def apply_text(layout: Layout, config: Config, needs: Needs, block_p: int) -> Text:
    """Parts of rows whose sums are known by part."""
    text = Text(
        "apply_backward", "Gradients of parts of rows, from sums of all parts.", layout, config,
        Way.SPLIT,
    )  # fmt: skip
    own_part(text)
    text.rows("first_row")
    text.pieces()
    _place(text, needs)
    load_parts(text, tuple(_sums(layout)), block_p)
    for name in _sums(layout):
        text.write(f"{name} = tl.sum({name}, 1)")
    _spread(text, needs, "first", "last")
    return text


# -- rows


def _own_rows(text: Text) -> None:
    """The position of a program in the leading dimensions, and which of its rows it has."""
    write, programs = text.write, text.number("PROGRAMS")
    write(f"lead = tl.program_id(0) // {programs}")
    text.position("lead", "p", range(text.layout.lead), "D")
    write(f"turn = tl.program_id(0) % {programs}")


@contextmanager
def _rows_of_program(text: Text) -> Generator[None]:
    """The loop over the rows of a program."""
    m, rows = text.config.block_m, text.number("ROWS")
    with text.write.block(f"for first_row in range(turn * {m}, {rows}, PROGRAMS * {m}):"):
        text.rows("first_row")
        yield


def _place(text: Text, needs: Needs) -> None:
    """Where rows begin, and their statistics."""
    layout, spec, write = text.layout, text.layout.spec, text.write
    text.place_operands(read_by_gradients(text, needs.results, needs.operands))
    for i in needs.results:
        for member in spec.members:
            text.place(f"grad{i}{member}", pointer(spec.dtypes[i]))
    mask = ", mask=in_rows, other=0.0" if text.masks_rows else ""
    own = {"means": "rough", "lows": "rest"} if spec.centred else {}
    own |= {} if spec.bare else {"scales": "root" if spec.floor else "scale"}
    for name, value in own.items():
        text.place(name, FP32)
        write(f"{value} = tl.load({at_row(text, name)}{mask})")
    if spec.floor:
        write("scale = 1.0 / root")
    if text.stage == "part_backward":
        return
    if needs.x_out:
        assert spec.kept is not None
        for member in spec.members:
            text.place(f"grad_x{member}", pointer(spec.kept))
    for name in needs.operands:
        if sum_of(layout, name, text.by) is Sum.EACH:
            dtype = layout.dtype(name) if layout.whole(name) else torch.float32
            text.place(f"d{name}", pointer(dtype))


def _sums(layout: Layout) -> dict[str, str]:
    """Sums over rows, and what is added up."""
    if layout.spec.bare:
        return {}
    of_n = " + ".join(f"dn{m}" for m in layout.spec.members)
    of_nn = " + ".join(f"dn{m} * n{m}" for m in layout.spec.members)
    return {**({"sum_n": of_n} if layout.spec.centred else {}), "sum_nn": of_nn}


def _gather(text: Text, needs: Needs, first: str, last: str) -> None:
    """Sums over a row, or a part of it."""
    write = text.write
    if text.stage == "part_backward":
        pieces_of_part(text)
    for name in _sums(text.layout):
        write(f"{name} = tl.zeros({text.shape()}, tl.float32)")
    with write.block(f"for piece in range({first}, {last}):"), text.emitting() as emitter:
        text.columns("piece")
        _Gradients(text, emitter, Needs((), needs.results))
        for name, terms in _sums(text.layout).items():
            write(f"{name} += {terms}")
    for name in _sums(text.layout):
        write(f"{name} = {text.total(name, 'm')}")


def _spread(text: Text, needs: Needs, first: str, last: str) -> None:
    """Gradients, piece by piece, once sums are known."""
    if text.stage == "apply_backward":
        pieces_of_part(text)
    with text.write.block(f"for piece in range({first}, {last}):"), text.emitting() as emitter:
        text.columns("piece")
        for name, grad in _Gradients(text, emitter, needs).of_operands().items():
            _store(text, emitter, name, grad)


# -- a tile


class _Gradients:
    """What a tile gives: `n` and its gradient `dn`, both in fp32 and zero beyond the ends; then the
    operands' gradients, as text."""

    def __init__(self, text: Text, emitter: Emitter, needs: Needs) -> None:
        self._text, self._emitter, self._needs = text, emitter, needs
        spec, write = text.layout.spec, text.write
        read = read_by_gradients(text, needs.results, needs.operands)
        self._values, n = text.operands(read), dict[str, Value]()
        if set(text.layout.read_before) <= {*read}:
            before(text, emitter, self._values)
            for member in spec.members if not spec.bare else ():
                write(f"d{member} = {text.full(less_mean(text, member))}")
            n = normalised(text, emitter)
        self._terms = {name: list[str]() for name in (*rows(text.layout), *needs.operands)}
        for i in needs.results:
            for member, program in zip(spec.members, spec.programs(i), strict=True):
                grad = text.load(f"grad{i}{member}", spec.dtypes[i], f"grad{i}{member}_tile")
                self._derive(program, {**self._values, **n}, grad)
        for name in rows(text.layout):
            terms = " + ".join(self._terms.pop(name))
            zero = f"tl.zeros({text.shape()}, tl.float32)"
            write(f"d{name} = {text.full(terms) if terms else zero}")

    def _derive(self, program: Program, given: dict[str, Value], grad: Value) -> None:
        """Adds what a program's result gives to the gradients of what it reads."""
        text, emitter = self._text, self._emitter
        wanted = [name for name in self._terms if name in program.inputs]
        if not wanted:
            return
        cotangent = emitter.cast(grad, text.result_dtype(program))
        found = emitter.run(derived(text, program, wanted), {**given, "grad": cotangent})
        for name, value in zip(wanted, found, strict=True):
            self._terms[name].append(self._wide(value))

    def _wide(self, value: Value) -> str:
        return self._emitter.cast(self._emitter.tensor(value), torch.float32).text

    def of_operands(self) -> dict[str, list[str]]:
        """Terms of each gradient, in fp32."""
        text, emitter, layout = self._text, self._emitter, self._text.layout
        program = layout.spec.before
        if not set(layout.read_before) & set(self._needs.operands):
            return self._terms
        if not layout.spec.bare:
            self._of_statistics()
        for member in layout.spec.members:
            own = {name: layout.own(name, member) for name in program.inputs}
            wanted = [name for name, tensor in own.items() if tensor in self._needs.operands]
            text.write(f"dx{member} = {self._of_x(member)}")
            dx = emitter.cast(Value(f"dx{member}", torch.float32), text.result_dtype(program))
            given = {n: self._values[tensor] for n, tensor in own.items() if tensor in self._values}
            found = emitter.run(derived(text, program, wanted), {**given, "grad": dx})
            for name, value in zip(wanted, found, strict=True):
                self._terms[own[name]].append(self._wide(value))
        return self._terms

    def _of_statistics(self) -> None:
        """What the gradients of a row's statistics are multiplied with."""
        text, spec = self._text, self._text.layout.spec
        second = "sum_nn" if spec.summed else f"sum_nn / {text.length}"
        if spec.floor:
            eps = literal(float(spec.eps), torch.float32).text
            second = f"tl.where(root > {eps}, {second}, 0.0)"
        text.write(f"of_n = {second}")
        if spec.centred:
            text.write(f"of_mean = sum_n / {text.length}")

    def _of_x(self, member: str) -> str:
        text, spec = self._text, self._text.layout.spec
        m = text.along("m")
        mean = f" - of_mean{m}" if spec.centred else ""
        total = f"(dn{member}{mean} - n{member} * of_n{m}) * scale{m}"
        total = f"dn{member}" if spec.bare else total
        if self._needs.x_out:
            assert spec.kept is not None
            name = f"grad_x{member}"
            total += f" + {text.load(name, spec.kept, f'{name}_tile').text}"
        return total


# -- what is stored


def _summed(text: Text, needs: Needs) -> list[str]:
    layout = text.layout
    return [c for c in needs.operands if sum_of(layout, c, text.by) is Sum.PROGRAMS]


def _store(text: Text, emitter: Emitter, name: str, terms: Sequence[str]) -> None:
    """The gradient of an operand at a tile: itself, or what is left of it."""
    kind = sum_of(text.layout, name, text.by)
    if kind is not Sum.EACH:
        _store_sum(text, name, _reduced(text, name, terms, kind), kind)
        return
    total = Value(" + ".join(terms), torch.float32)
    if text.layout.whole(name):
        total = emitter.cast(total, text.layout.dtype(name))
    text.store(f"d{name}", total)


def _kept(text: Text, name: str, kind: Sum) -> str:
    """Axes that are left of a tile."""
    own = text.layout.tile_axes(name)
    return "".join(a for a in text.axes if (kind is Sum.ROWS if a == "m" else a in own))


def _reduced(text: Text, name: str, terms: Sequence[str], kind: Sum) -> str:
    return text.total(text.full(" + ".join(terms)), _kept(text, name, kind))


def _zeros(text: Text, axes: str) -> str:
    axes = axes.replace("m", "")
    return f"tl.zeros({text.shape(axes)}, tl.float32)" if axes else "tl.full([], 0.0, tl.float32)"


def _store_sum(text: Text, name: str, value: str, kind: Sum) -> None:
    """Stores a sum, or adds it to what the program has stored before."""
    write, axes = text.write, _kept(text, name, kind)
    columns = [a for a in axes if a != "m"]
    size = " * ".join(text.many(a) for a in columns)
    text.tensor(f"d{name}", FP32)
    if kind is Sum.ROWS:
        part = f"part * {text.number('ROWS')} + " if text.by is Way.SPLIT else ""
        lead = "lead * ROWS + " if text.layout.lead and text.by is not Way.SPLIT else ""
        line = f"({part}{lead}row).to(tl.int64)"
    else:
        line = "tl.program_id(0).to(tl.int64)"
    along = text.along("m", axes) if kind is Sum.ROWS else ""
    terms = [f"d{name}", f"({line}{f' * {size}' if size else ''}){along}"]
    for axis in columns:
        step = f" * {text.many('f')}" if axis == "u" and "f" in columns else ""
        terms.append(f"({axis}{step}){text.along(axis, axes)}")
    write(f"at_sum = {' + '.join(terms)}")
    mask = text.mask(axes, axes)
    masked = f", mask={mask}" if mask else ""
    if text.by is not Way.WHOLE:
        zero = ", other=0.0" if mask else ""
        value = f"tl.load(at_sum{masked}{zero}) + {value}"
    write(f"tl.store(at_sum, {value}{masked})")
    if text.by is not Way.WHOLE:
        write("tl.debug_barrier()")
