"""Statistics of rows, and what is made of normalised rows.

Statistics never subtract squares of means: where a row is in registers, its mean is taken away
first; else each lane of a tile updates a mean and a sum of squared differences of its own (Welford
1962), and lanes, and parts of a row, are combined at the end (Chan, Golub and LeVeque 1983). Means
are taken twice, the second time of what is left without the first: a sum of large numbers
is rounded coarsely.
"""

from __future__ import annotations

import torch

from fuser.specs import NormSpec

from ...triton.emitter import Emitter, Value
from ...triton.kernel import pointer
from ...triton.values import literal
from .config import Config, Way
from .layout import Layout
from .text import FP32, Text


def whole_text(layout: Layout, config: Config, keep: bool) -> Text:
    """Rows that a tile has all of.

    Args:
        layout: what it is specialised on.
        config: how it is cut.
        keep: statistics are stored.
    """
    text = Text("whole", "Rows, read once.", layout, config, Way.WHOLE)
    _start(text, f"tl.program_id(0) * {config.block_m}")
    place_results(text)
    text.columns()
    with text.emitting() as emitter:
        values = text.operands(layout.read)
        x = before(text, emitter, values)
        if not layout.spec.bare:
            statistics(text)
        if keep and not layout.spec.bare:
            keep_statistics(text)
        _finish(text, emitter, values, x)
    return text


def long_text(layout: Layout, config: Config, keep: bool) -> Text:
    """Rows that are read twice by one program."""
    text = Text("long", "Rows, read twice.", layout, config, Way.LONG)
    _start(text, f"tl.program_id(0) * {config.block_m}")
    place_results(text)
    text.pieces()
    _gather(text, "0", "pieces")
    _combined(text)
    scale(text, "squares_row")
    if keep:
        keep_statistics(text)
    _normalise(text, "0", "pieces")
    return text


def part_text(layout: Layout, config: Config) -> Text:
    """Statistics of parts of rows: `sums[row, part]` is how many, their mean in two numbers and the
    sum of squared differences from it; or the sum of squares alone."""
    text = Text("part", "Statistics of parts of rows.", layout, config, Way.SPLIT)
    own_part(text)
    _start(text, "first_row")
    text.pieces()
    _gather(text, "first", "last")
    store_parts(text, _combined(text))
    return text


def apply_text(layout: Layout, config: Config, keep: bool, block_p: int) -> Text:
    """Parts of rows whose statistics are known by part.

    Args:
        layout: what it is specialised on.
        config: how it is cut.
        keep: statistics are stored.
        block_p: a power of two, no less than the number of parts.
    """
    text = Text("apply", "Parts of rows, from statistics of all parts.", layout, config, Way.SPLIT)
    own_part(text)
    _start(text, "first_row")
    place_results(text)
    text.pieces()
    names = ("counts", "lanes", "rests", "squares") if layout.spec.centred else ("squares",)
    load_parts(text, names, block_p)
    _combine_parts(text)
    if keep:
        with text.write.block("if part == 0:"):
            keep_statistics(text)
    _normalise(text, "first", "last")
    return text


# -- rows


def _start(text: Text, first: str) -> None:
    text.rows(first)
    text.place_operands(text.layout.read_before if text.stage == "part" else text.layout.read)


def place_results(text: Text) -> None:
    spec = text.layout.spec
    for member in spec.members:
        for i, dtype in enumerate(spec.dtypes):
            text.place(f"y_{i}{member}", pointer(dtype))
        if spec.kept is not None:
            text.place(f"x_out{member}", pointer(spec.kept))


def own_part(text: Text) -> None:
    """`part` of a program and `first_row` of its tile."""
    write = text.write
    write(f"part = tl.program_id(0) % {text.number('PARTS')}")
    write(f"first_row = tl.program_id(0) // PARTS * {text.config.block_m}")
    write(f"first = part * {text.number('EACH')}")


def pieces_of_part(text: Text) -> None:
    text.write("last = tl.minimum(first + EACH, pieces)")


# -- statistics


def before(text: Text, emitter: Emitter, values: dict[str, Value]) -> dict[str, Value]:
    """`x`, in fp32 and zero beyond the ends; its value in the dtype that it has, by member."""
    program, found = text.layout.spec.before, dict[str, Value]()
    for member in text.layout.spec.members:
        given = {name: values[text.layout.own(name, member)] for name in program.inputs}
        found[member] = text.run(emitter, program, given)
        wide = emitter.cast(found[member], torch.float32)
        text.write(f"x{member} = {text.full(wide.text)}")
    return found


def statistics(text: Text) -> None:
    """The mean and the `scale` of rows that are in registers, and `d`, x less its mean."""
    write, spec, m = text.write, text.layout.spec, text.along("m")
    if spec.centred:
        write(f"rough = {text.total(_sum(spec, 'x{}'), 'm')} / {text.length}")
        for member in spec.members:
            write(f"away{member} = {text.full(f'x{member} - rough{m}')}")
        write(f"rest = {text.total(_sum(spec, 'away{}'), 'm')} / {text.length}")
    for member in spec.members:
        less = text.full(f"away{member} - rest{m}") if spec.centred else f"x{member}"
        write(f"d{member} = {less}")
    write(f"squares = {text.total(_sum(spec, 'd{} * d{}'), 'm')}")
    scale(text, "squares")


def _sum(spec: NormSpec, term: str) -> str:
    return " + ".join(term.replace("{}", member) for member in spec.members)


def less_mean(text: Text, member: str) -> str:
    """What is squared, before it is cut off at the ends. A mean is two numbers here, `rough` and
    the `rest` that it lacks, as their sum is rounded as coarsely as a number of x."""
    m, x = text.along("m"), f"x{member}"
    return f"({x} - rough{m}) - rest{m}" if text.layout.spec.centred else x


def scale(text: Text, squares: str) -> None:
    """`scale` of rows from sums of squares; where eps is a `floor`, also the `root` that it is the
    reciprocal of."""
    write, spec = text.write, text.layout.spec
    mean = squares if spec.summed else f"{squares} / {text.length}"
    eps = literal(float(spec.eps), torch.float32).text
    if spec.floor:
        text.functions.add("maximum")
        write(f"root = maximum(tl.sqrt({mean}), {eps})")
        write("scale = 1.0 / root")
    else:
        write(f"scale = tl.rsqrt({mean} + {eps})")


def keep_statistics(text: Text) -> None:
    """Stores the mean, and the scale or, where eps is a floor, the root."""
    spec = text.layout.spec
    names = {"means": "rough", "lows": "rest"} if spec.centred else {}
    for name, value in {**names, "scales": "root" if spec.floor else "scale"}.items():
        text.place(name, FP32)
        mask = ", mask=in_rows" if text.masks_rows else ""
        text.write(f"tl.store({at_row(text, name)}, {value}{mask})")


def at_row(text: Text, name: str) -> str:
    """Pointers to what a tensor has for each row of a tile; there may be no dimension of rows."""
    if "m" in text.layout.tile_axes(name):
        return f"{name}_row"
    return f"{name}_row + tl.zeros([{text.config.block_m}], tl.int32)"


def _gather(text: Text, first: str, last: str) -> None:
    """Statistics by lane of a tile, over pieces."""
    write, spec = text.write, text.layout.spec
    columns = text.axes.replace("m", "")
    if text.stage == "part":
        pieces_of_part(text)
    write(f"squares = tl.zeros({text.shape()}, tl.float32)")
    if spec.centred:
        write(f"lanes = tl.zeros({text.shape()}, tl.float32)")
        shape = [str(text.config.block(a)) if a in columns else "1" for a in text.axes]
        write(f"count = tl.zeros([{', '.join(shape)}], tl.float32)")
    with write.block(f"for piece in range({first}, {last}):"), text.emitting() as emitter:
        text.columns("piece")
        before(text, emitter, text.operands(text.layout.read_before))
        there = text.mask(columns)
        for x in [f"x{member}" for member in spec.members]:
            if not spec.centred:
                write(f"squares += {x} * {x}")
                continue
            write(f"count += ({there}).to(tl.float32)" if there else "count += 1.0")
            write(f"d = {text.full(f'{x} - lanes')}")
            write("lanes += d / tl.maximum(count, 1.0)" if there else "lanes += d / count")
            write(f"squares += d * {text.full(f'{x} - lanes')}")


def _combined(text: Text) -> list[str]:
    """From lanes to rows: names of how many there are, their mean, and the sum of squared
    differences from it; of the sum of squares alone where there is no mean."""
    write = text.write
    if not text.layout.spec.centred:
        write(f"squares_row = {text.total('squares', 'm')}")
        return ["squares_row"]
    write(f"counts_all = tl.broadcast_to(count, {text.shape()})")
    write(f"count_row = {text.total('counts_all', 'm')}")
    write(f"rough = {text.total('counts_all * lanes', 'm')} / tl.maximum(count_row, 1.0)")
    write(f"away = lanes - rough{text.along('m')}")
    write(f"rest = {text.total('counts_all * away', 'm')} / tl.maximum(count_row, 1.0)")
    write(f"away = away - rest{text.along('m')}")
    write(f"squares_row = {text.total('squares + counts_all * away * away', 'm')}")
    return ["count_row", "rough", "rest", "squares_row"]


def store_parts(text: Text, names: list[str]) -> None:
    """`sums[row, part]`."""
    text.tensor("sums", FP32)
    write = text.write
    write(f"at_sums = sums + (row.to(tl.int64) * PARTS + part) * {len(names)}")
    mask = ", mask=in_rows" if text.masks_rows else ""
    for i, name in enumerate(names):
        write(f"tl.store(at_sums + {i}, {name}{mask})")


def load_parts(text: Text, names: tuple[str, ...], block_p: int) -> None:
    """Those of all parts, `[rows, parts]`."""
    text.tensor("sums", FP32)
    write = text.write
    write(f"parts = tl.arange(0, {block_p})")
    write(f"at_sums = sums + (row.to(tl.int64)[:, None] * PARTS + parts[None, :]) * {len(names)}")
    mask = "(parts < PARTS)[None, :]" + (" & in_rows[:, None]" if text.masks_rows else "")
    for i, name in enumerate(names):
        write(f"{name} = tl.load(at_sums + {i}, mask={mask}, other=0.0)")


def _combine_parts(text: Text) -> None:
    write = text.write
    if text.layout.spec.centred:
        write("count_row = tl.sum(counts, 1)")
        write("rough = tl.sum(counts * lanes, 1) / count_row")
        write("away = (lanes - rough[:, None]) + rests")
        write("rest = tl.sum(counts * away, 1) / count_row")
        write("away = away - rest[:, None]")
        write("squares = squares + counts * away * away")
    write("squares_row = tl.sum(squares, 1)")
    scale(text, "squares_row")


# -- results


def _normalise(text: Text, first: str, last: str) -> None:
    """The results, piece by piece."""
    write = text.write
    if text.stage == "apply":
        pieces_of_part(text)
    with write.block(f"for piece in range({first}, {last}):"), text.emitting() as emitter:
        text.columns("piece")
        values = text.operands(text.layout.read)
        x = before(text, emitter, values)
        for member in text.layout.spec.members:
            write(f"d{member} = {less_mean(text, member)}")
        _finish(text, emitter, values, x)


def normalised(text: Text, emitter: Emitter) -> dict[str, Value]:
    """`n` of `d` and `scale`, rounded as the spec says, by name."""
    spec, found = text.layout.spec, dict[str, Value]()
    for member in spec.members:
        name = f"n{member}"
        less = f"x{member}" if spec.bare else f"d{member} * scale{text.along('m')}"
        text.write(f"{name} = {less}")
        found[name] = emitter.cast(Value(name, torch.float32), spec.norm_dtype)
    return found


def _finish(text: Text, emitter: Emitter, values: dict[str, Value], x: dict[str, Value]) -> None:
    spec = text.layout.spec
    given = {**values, **normalised(text, emitter)}
    if spec.peak is not None:
        wide = emitter.cast(text.run(emitter, spec.peak, given), torch.float32)
        text.write(f"peak = {text.largest(wide.text)}")
        given["p"] = Value(f"peak{text.along(text.groups)}", text.layout.dtype("p"))
    for i, dtype in enumerate(spec.dtypes):
        for member, program in zip(spec.members, spec.programs(i), strict=True):
            y = text.run(emitter, program, given)
            axes = text.groups if i in spec.by_row else None
            text.store(f"y_{i}{member}", emitter.cast(y, dtype), axes)
    if spec.kept is not None:
        for member in spec.members:
            text.store(f"x_out{member}", emitter.cast(x[member], spec.kept))
