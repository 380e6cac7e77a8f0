"""The products of the forward, over tiles of the rows of one expert."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ...triton.emitter import Emitter, Value
from ...triton.kernel import pointer
from .config import Config
from .layout import Layout
from .text import Argument, Text, beyond, experts_tensors, sorted_rows, strides


def of_products(
    layout: Layout, products: Iterable[int], *, biases: bool
) -> tuple[list[Argument], list[str]]:
    """Arguments for matrices, and what is added: tensors, and numbers."""
    tensors: list[Argument] = []
    numbers: list[str] = []
    for p in products:
        tensors += experts_tensors(layout, f"m{p}", layout.matrices[p], "oi")
        numbers += strides(layout, f"m{p}", "oi")
        bias = layout.biases[p]
        if biases and bias is not None:
            tensors += experts_tensors(layout, f"b{p}", bias, "o")
            numbers += strides(layout, f"b{p}", "o")
    return tensors, numbers


def first_tensors(text: Text, *, matrices: bool = True) -> None:
    """Pointers to what the program's expert has for its first products."""
    for p in range(text.layout.last):
        if matrices:
            text.matrix(f"m{p}")
        if text.layout.biases[p] is not None:
            text.matrix(f"b{p}")


def weights_argument(layout: Layout) -> Argument:
    return Argument("weights", pointer(layout.weights), "tk")


def up_text(layout: Layout, config: Config, keep: bool, hidden: bool = True) -> Text:
    """`hidden` columns of each row; with `keep` also what the backward starts from.

    Args:
        layout: what it is specialised on.
        config: how it is cut.
        keep: `saved` gets the first products of each row, `(rows, columns, hidden)`.
        hidden: whether the activation is wanted.
    """
    spec = layout.spec
    arguments = [Argument("x", pointer(layout.tokens), "td"), *sorted_rows(layout)]
    if spec.weights_first:
        arguments.append(weights_argument(layout))
    own, numbers = of_products(layout, range(layout.last), biases=True)
    arguments += own
    if hidden:
        arguments.append(Argument("hidden", pointer(layout.dtype)))
    if keep:
        arguments.append(Argument("saved", pointer(layout.dtype)))
    text = Text(
        "up", "Tokens times the first matrices of their experts, and the activation.", layout,
        config, arguments, ("K", *numbers),
    )  # fmt: skip
    for p in range(layout.last):
        text.describe(p, config.block_n, config.block_k)
    with text.tiles_of_experts(layout.hidden):
        _up(text, keep, hidden)
    return text


def _up(text: Text, keep: bool, hidden: bool) -> None:
    """The tile of `up_text`."""
    write, layout, config, spec = text.write, text.layout, text.config, text.layout.spec
    first_tensors(text)
    in_columns = beyond("column", layout.hidden, config.block_n, "")
    write(f"inner = tl.arange(0, {config.block_k})")
    write("at_x = x + token[:, None] * x_t + inner[None, :] * x_d")
    for i, c in enumerate(layout.columns):
        if not text.is_described(c):
            rows = f"({c.start} + column{f' * {c.step}' if c.step > 1 else ''})"
            write(f"at_m{i} = m{c.product}_own + {rows}[None, :] * m{c.product}_o"
                  f" + inner[:, None] * m{c.product}_i")  # fmt: skip
        text.zeros(f"sum_{i}", config.block_m, config.block_n)
    with write.block(f"for first_d in range(0, {layout.features}, {config.block_k}):"):
        there = beyond("first_d + inner", layout.features, config.block_k, "")
        rows = f"{there}[None, :]" if there else None
        write(f"tile_x = {text.load('at_x + first_d * x_d', layout.tokens, [rows])}")
        for i, c in enumerate(layout.columns):
            masks = [f"{there}[:, None]" if there else None,
                     f"{in_columns}[None, :]" if in_columns else None]  # fmt: skip
            if text.is_described(c):
                first = f"{c.start} + first_column"
                tile = text.described_tile(c.product, first, "first_d", "io")
            else:
                at = f"at_m{i} + first_d * m{c.product}_i"
                tile = text.load(at, layout.matrices[c.product], masks)
            write(f"tile_m{i} = {tile}")
            text.dot("tile_x", f"tile_m{i}", f"sum_{i}")
    mask = "in_rows[:, None]" + (f" & {in_columns}[None, :]" if in_columns else "")
    if spec.weights_first:
        text.weight()
    emitter = text.emitter()
    columns = preactivations(text, emitter, from_sums=True)
    if keep:
        for i, (value, raw) in enumerate(columns):
            at = at_saved(layout, i)
            write(f"tl.store({at}, {(raw if spec.weights_first else value).text}, mask={mask})")
    if hidden:
        result = text.run(emitter, {f"h{i}": v for i, (v, _) in enumerate(columns)})
        at = f"hidden + row64[:, None] * {layout.hidden} + column[None, :]"
        write(f"tl.store({at}, {result.text}, mask={mask})")
    text.functions |= emitter.functions


def at_saved(layout: Layout, column: int, name: str = "saved") -> str:
    """Where the values of one of the activation's inputs are."""
    wide, start = len(layout.columns) * layout.hidden, column * layout.hidden
    plus = f" + {start}" if start else ""
    return f"{name} + row64[:, None] * {wide}{plus} + column[None, :]"


def preactivations(text: Text, emitter: Emitter, *, from_sums: bool) -> list[tuple[Value, Value]]:
    """Inputs of the activation, each with what is saved of it, from sums or from what was saved.

    Where tokens are weighted first, the sum is saved without the weight, which it is then
    multiplied with; else the input itself.
    """
    layout = text.layout
    found: list[tuple[Value, Value]] = []
    for i, c in enumerate(layout.columns):
        given = Value(f"sum_{i}" if from_sums else f"saved_{i}", torch.float32)
        raw = emitter.cast(given, layout.dtype) if layout.spec.weights_first else given
        if from_sums or layout.spec.weights_first:
            total = f"{raw.text} * weight[:, None]" if layout.spec.weights_first else raw.text
            added = _added(text, i) if layout.biases[c.product] is not None else ""
            given = Value(f"({total}{added})", torch.float32)
        value = emitter.cast(emitter.let(given.text, torch.float32), layout.dtype)
        found.append((value, raw if layout.spec.weights_first else value))
    return found


def _added(text: Text, column: int) -> str:
    """What is added to a column, once for all rows."""
    layout, c = text.layout, text.layout.columns[column]
    name, step = f"b{c.product}", f" * {c.step}" if c.step > 1 else ""
    inside = beyond("column", layout.hidden, text.config.block_n, "")
    mask = f", mask={inside}, other=0.0" if inside else ""
    at = f"{name}_own + ({c.start} + column{step}) * {name}_o"
    text.write(f"added_{column} = tl.load({at}{mask}).to(tl.float32)")
    return f" + added_{column}[None, :]"


def down_text(layout: Layout, config: Config) -> Text:
    """`y[choice]`, of the result's features: the last product, weighted."""
    spec, p = layout.spec, layout.last
    arguments = [Argument("hidden", pointer(layout.dtype)), *sorted_rows(layout)]
    if not spec.weights_first:
        arguments.append(weights_argument(layout))
    own, numbers = of_products(layout, (p,), biases=True)
    arguments += own
    arguments.append(Argument("y", pointer(spec.dtype)))
    text = Text(
        "down", "Hidden columns times the last matrix of their expert, and the weight.", layout,
        config, arguments, ("K", *numbers),
    )  # fmt: skip
    text.describe(p, config.block_n, config.block_k)
    with text.tiles_of_experts(layout.width):
        _down(text)
    return text


def _down(text: Text) -> None:
    """The tile of `down_text`."""
    write, layout, config = text.write, text.layout, text.config
    spec, p = layout.spec, layout.last
    text.matrix(f"m{p}")
    rows_times_matrix(
        text,
        a=f"hidden + row64[:, None] * {layout.hidden} + inner[None, :]",
        a_step="first_i",
        a_dtype=layout.dtype,
        axes="io",
        guard_rows=True,
    )
    in_columns = beyond("column", layout.width, config.block_n, "")
    if layout.biases[p] is not None:
        text.matrix(f"b{p}")
        mask = f", mask={in_columns}, other=0.0" if in_columns else ""
        write(f"added = tl.load(b{p}_own + column * b{p}_o{mask}).to(tl.float32)")
        write("total = total + added[None, :]")
    value = "total"
    if not spec.weights_first:
        text.weight()
        value = "(total * weight[:, None])"
    mask = "in_rows[:, None]" + (f" & {in_columns}[None, :]" if in_columns else "")
    write(f"at_y = y + choice.to(tl.int64)[:, None] * {layout.width} + column[None, :]")
    write(f"tl.store(at_y, {text.stored(value, spec.dtype)}, mask={mask})")


def rows_times_matrix(
    text: Text, *, a: str, a_step: str, a_dtype: torch.dtype, axes: str, guard_rows: bool = False
) -> None:
    """`total` = a tile of rows times a tile of the last product's matrix, in fp32.

    Args:
        text: of the kernel.
        a: where the first tile of rows is, over `row` and `inner`.
        a_step: what is added to that for the tile from `first_i` on.
        a_dtype: of what is there.
        axes: of the tile of the matrix; the first one is added up.
        guard_rows: whether rows beyond the last one may be out of memory.
    """
    write, config, layout, p = text.write, text.config, text.layout, text.layout.last
    inner, columns = (layout.width if axis == "o" else layout.hidden for axis in axes)
    write(f"inner = tl.arange(0, {config.block_k})")
    write(f"at_a = {a}")
    if p not in text.described:
        own = f"inner[:, None] * m{p}_{axes[0]} + column[None, :] * m{p}_{axes[1]}"
        write(f"at_b = m{p}_own + {own}")
    text.zeros("total", config.block_m, config.block_n)
    in_columns = beyond("column", columns, config.block_n, "[None, :]")
    with write.block(f"for first_i in range(0, {inner}, {config.block_k}):"):
        there = beyond("first_i + inner", inner, config.block_k, "")
        of_a = [f"{there}[None, :]" if there else None, "in_rows[:, None]" if guard_rows else None]
        write(f"tile_a = {text.load(f'at_a + {a_step}', a_dtype, of_a)}")
        if p in text.described:
            first = {axes[0]: "first_i", axes[1]: "first_column"}
            tile = text.described_tile(p, first["o"], first["i"], axes)
        else:
            of_b = [f"{there}[:, None]" if there else None, in_columns]
            at = f"at_b + first_i * m{p}_{axes[0]}"
            tile = text.load(at, layout.matrices[p], of_b)
        write(f"tile_b = {tile}")
        text.dot("tile_a", "tile_b", "total")
