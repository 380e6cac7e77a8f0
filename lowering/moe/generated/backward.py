"""Gradients: of the first products and the weights, of tokens, of matrices and what is added."""

from __future__ import annotations

import torch

from ...triton.emitter import Value
from ...triton.kernel import pointer
from .config import Config
from .forward import (
    at_saved,
    first_tensors,
    of_products,
    preactivations,
    rows_times_matrix,
    weights_argument,
)
from .layout import Layout
from .text import FP32, Argument, Text, beyond, experts_tensors, sorted_rows, strides


def hidden_text(layout: Layout, config: Config) -> Text:
    """From the gradient of the result to those of the first products.

    `dh` has the columns of `saved`; `again` the hidden columns, with their weight where it comes
    after the expert; `partial` what a program's columns add to the gradient of each weight.
    """
    spec, p = layout.spec, layout.last
    own, numbers = of_products(layout, (p,), biases=False)
    arguments = [
        Argument("grad", pointer(spec.dtype), "td"), *sorted_rows(layout),
        weights_argument(layout), *own,
    ]  # fmt: skip
    numbers = ["K", *numbers]
    if spec.weights_first:  # else the bias is in what was saved
        for q in range(p):
            bias = layout.biases[q]
            if bias is not None:
                arguments += experts_tensors(layout, f"b{q}", bias, "o")
                numbers += strides(layout, f"b{q}", "o")
    arguments += [Argument(name, pointer(layout.dtype)) for name in ("saved", "dh", "again")] + [
        Argument("partial", FP32)
    ]
    text = Text(
        "hidden", "Gradients of the first products of each row, and of its weight.", layout, config,
        arguments, numbers,
    )  # fmt: skip
    text.describe(p, config.block_k, config.block_n)
    with text.tiles_of_experts(layout.hidden):
        _hidden(text)
    return text


def _hidden(text: Text) -> None:
    """The tile of `hidden_text`."""
    write, layout, config = text.write, text.layout, text.config
    spec = layout.spec
    text.matrix(f"m{layout.last}")
    if spec.weights_first:
        first_tensors(text, matrices=False)
    rows_times_matrix(
        text,
        a="grad + token[:, None] * grad_t + inner[None, :] * grad_d",
        a_step="first_i * grad_d",
        a_dtype=spec.dtype,
        axes="oi",
    )
    across, part = -(-layout.hidden // config.block_n), config.block_n // config.parts
    if config.parts > 1:
        write(f"total = tl.reshape(total, [{config.block_m}, {config.parts}, {part}])")
        write("total_0, total_1 = tl.split(tl.permute(total, [0, 2, 1]))")
    text.weight()
    write(f"shares = tl.zeros([{config.block_m}], tl.float32)")
    for n in range(config.parts):
        if config.parts > 1:
            write(f"total = total_{n}")
            write(f"column = first_column + {n * part} + tl.arange(0, {part})")
        _epilogue(text)
    write(f"at_partial = partial + choice.to(tl.int64) * {across} + share")
    write("tl.store(at_partial, shares, mask=in_rows)")


def _epilogue(text: Text) -> None:
    """What `hidden_text` makes of `total`, or of a part of its columns."""
    write, layout, spec = text.write, text.layout, text.layout.spec
    in_columns = beyond("column", layout.hidden, text.config.block_n, "")
    mask = "in_rows[:, None]" + (f" & {in_columns}[None, :]" if in_columns else "")
    for i in range(len(layout.columns)):
        at = at_saved(layout, i)
        write(f"saved_{i} = tl.load({at}, mask={mask}, other=0.0).to(tl.float32)")
    emitter = text.emitter()
    found = preactivations(text, emitter, from_sums=False)
    inputs = {f"h{i}": value for i, (value, _) in enumerate(found)}
    result = text.run(emitter, inputs)
    weighted = "total" if spec.weights_first else "(total * weight[:, None])"
    cotangent = Value(weighted, torch.float32)
    for i, value in enumerate(text.gradient(emitter, inputs, cotangent)):
        value = emitter.cast(value, layout.dtype)
        write(f"dh_{i} = tl.where({mask}, {value.text}, 0.0)")
        write(f"tl.store({at_saved(layout, i, 'dh')}, dh_{i}, mask={mask})")
    if spec.weights_first:
        terms = [f"dh_{i} * {raw.text}" for i, (_, raw) in enumerate(found)]
        share, again = " + ".join(terms), result.text
    else:
        share = f"tl.where({mask}, total * {result.text}, 0.0)"
        weighted = emitter.let(f"{result.text} * weight[:, None]", torch.float32)
        again = emitter.cast(weighted, layout.dtype).text
    write(f"shares += tl.sum({share}, 1)")
    at = f"again + row64[:, None] * {layout.hidden} + column[None, :]"
    write(f"tl.store({at}, {again}, mask={mask})")
    text.functions |= emitter.functions


def tokens_text(layout: Layout, config: Config) -> Text:
    """`dx[choice]`: what each choice adds to the gradient of its token."""
    spec = layout.spec
    own, numbers = of_products(layout, range(layout.last), biases=False)
    arguments = [Argument("dh", pointer(layout.dtype)), *sorted_rows(layout), *own]
    if spec.weights_first:
        arguments.append(weights_argument(layout))
    arguments.append(Argument("dx", pointer(layout.tokens)))
    text = Text(
        "tokens", "Gradients of the first products of each row times their matrices.", layout,
        config, arguments, ("K", *numbers),
    )  # fmt: skip
    for p in range(layout.last):
        text.describe(p, config.block_k, config.block_n)
    with text.tiles_of_experts(layout.features):
        _tokens(text)
    return text


def _tokens(text: Text) -> None:
    """The tile of `tokens_text`."""
    write, layout, config, spec = text.write, text.layout, text.config, text.layout.spec
    for p in range(layout.last):
        text.matrix(f"m{p}")
    write(f"inner = tl.arange(0, {config.block_k})")
    text.zeros("total", config.block_m, config.block_n)
    wide = len(layout.columns) * layout.hidden
    in_columns = beyond("column", layout.features, config.block_n, "")
    for i, c in enumerate(layout.columns):
        step = f" * {c.step}" if c.step > 1 else ""
        start = f" + {i * layout.hidden}" if i else ""
        # beyond a column's last row is the next one's first, which may be no number
        described = text.is_described(c) and layout.hidden % config.block_k == 0
        write(f"at_dh = dh + row64[:, None] * {wide}{start} + inner[None, :]")
        if not described:
            write(f"at_m = m{c.product}_own + ({c.start} + inner{step})[:, None] * m{c.product}_o"
                  f" + column[None, :] * m{c.product}_i")  # fmt: skip
        with write.block(f"for first_i in range(0, {layout.hidden}, {config.block_k}):"):
            there = beyond("first_i + inner", layout.hidden, config.block_k, "")
            of_a = ["in_rows[:, None]", f"{there}[None, :]" if there else None]
            write(f"tile_dh = {text.load('at_dh + first_i', layout.dtype, of_a)}")
            if described:
                first = f"{c.start} + first_i"
                tile = text.described_tile(c.product, first, "first_column", "oi")
            else:
                of_b = [f"{there}[:, None]" if there else None,
                        f"{in_columns}[None, :]" if in_columns else None]  # fmt: skip
                at = f"at_m + first_i{step} * m{c.product}_o"
                tile = text.load(at, layout.matrices[c.product], of_b)
            write(f"tile_m = {tile}")
            text.dot("tile_dh", "tile_m", "total")
    value = "total"
    if spec.weights_first:
        text.weight()
        value = "(total * weight[:, None])"
    mask = "in_rows[:, None]" + (f" & {in_columns}[None, :]" if in_columns else "")
    write(f"at_dx = dx + choice.to(tl.int64)[:, None] * {layout.features} + column[None, :]")
    write(f"tl.store(at_dx, {text.stored(value, layout.tokens)}, mask={mask})")


def matrix_text(layout: Layout, config: Config, column: int | None) -> Text:
    """The gradient of a matrix of each expert, a tile of it for each program.

    Args:
        layout: what it is specialised on.
        config: how it is cut.
        column: whose rows of a first matrix; None for the last matrix.
    """
    spec = layout.spec
    weighted = column is not None and spec.weights_first
    if column is None:
        p, rows, columns = layout.last, layout.width, layout.hidden
        arguments = [Argument("grad", pointer(spec.dtype), "td"),
                     Argument("again", pointer(layout.dtype))]  # fmt: skip
    else:
        p, rows, columns = layout.columns[column].product, layout.hidden, layout.features
        arguments = [Argument("dh", pointer(layout.dtype)),
                     Argument("x", pointer(layout.tokens), "td")]  # fmt: skip
    arguments += [*sorted_rows(layout), *([weights_argument(layout)] if weighted else [])]
    arguments += experts_tensors(layout, f"dm{p}", layout.matrices[p], "oi")
    text = Text(
        "matrix", "The gradient of a matrix, expert by expert.", layout, config, arguments,
        ("K", *strides(layout, f"dm{p}", "oi")),
    )  # fmt: skip
    write = text.write
    down, across = -(-rows // config.block_m), -(-columns // config.block_n)
    write(f"expert = tl.program_id(0) // {down * across}")
    write(f"within = tl.program_id(0) % {down * across}")
    write(f"line = within % {down} * {config.block_m} + tl.arange(0, {config.block_m})")
    write(f"column = within // {down} * {config.block_n} + tl.arange(0, {config.block_n})")
    text.matrix(f"dm{p}")
    write("start = tl.load(starts + expert)")
    write("end = tl.load(starts + expert + 1)")
    text.zeros("total", config.block_m, config.block_n)
    in_lines = beyond("line", rows, config.block_m, "[None, :]")
    in_columns = beyond("column", columns, config.block_n, "[None, :]")
    wide = len(layout.columns) * layout.hidden
    with write.block(f"for first in range(start, end, {config.block_k}):"):
        write(f"row = first + tl.arange(0, {config.block_k})")
        write("in_rows = row < end")
        text.choices()
        if column is None:
            a = "grad + token[:, None] * grad_t + line[None, :] * grad_d"
            b = f"again + row64[:, None] * {layout.hidden} + column[None, :]"
            dtypes = (spec.dtype, layout.dtype)
        else:
            start = f" + {column * layout.hidden}" if column else ""
            a = f"dh + row64[:, None] * {wide}{start} + line[None, :]"
            b = "x + token[:, None] * x_t + column[None, :] * x_d"
            dtypes = (layout.dtype, layout.tokens)
        write(f"tile_a = {text.load(a, dtypes[0], ['in_rows[:, None]', in_lines])}")
        write(f"tile_b = {text.load(b, dtypes[1], ['in_rows[:, None]', in_columns])}")
        if weighted:
            text.weight()
            product = "tile_a.to(tl.float32) * weight[:, None]"
            write(f"tile_a = {text.operand(f'({product})', torch.float32)}")
        text.dot("tl.trans(tile_a)", "tile_b", "total")
    at = "line"
    if column is not None:
        c = layout.columns[column]
        at = f"({c.start} + line{f' * {c.step}' if c.step > 1 else ''})"
    write(f"at = dm{p}_own + {at}[:, None] * dm{p}_o + column[None, :] * dm{p}_i")
    masks = [beyond("line", rows, config.block_m, "[:, None]"), in_columns]
    mask = " & ".join(m for m in masks if m)
    value = text.stored("total", layout.matrices[p])
    write(f"tl.store(at, {value}{', mask=' + mask if mask else ''})")
    return text


def bias_text(layout: Layout, config: Config, column: int | None) -> Text:
    """The gradient of what an expert adds to a product: sums over its rows."""
    spec = layout.spec
    p = layout.last if column is None else layout.columns[column].product
    bias = layout.biases[p]
    assert bias is not None
    size = layout.width if column is None else layout.hidden
    weighted = column is None and not spec.weights_first
    first = (
        Argument("grad", pointer(spec.dtype), "td") if column is None
        else Argument("dh", pointer(layout.dtype))
    )  # fmt: skip
    arguments = [first, *sorted_rows(layout), *([weights_argument(layout)] if weighted else [])]
    arguments += experts_tensors(layout, f"db{p}", bias, "o")
    text = Text(
        "bias", "The gradient of what is added to a product, expert by expert.", layout, config,
        arguments, ("K", *strides(layout, f"db{p}", "o")),
    )  # fmt: skip
    write = text.write
    across = -(-size // config.block_n)
    write(f"expert = tl.program_id(0) // {across}")
    write(f"column = tl.program_id(0) % {across} * {config.block_n} + "
          f"tl.arange(0, {config.block_n})")  # fmt: skip
    text.matrix(f"db{p}")
    write("start = tl.load(starts + expert)")
    write("end = tl.load(starts + expert + 1)")
    write(f"total = tl.zeros([{config.block_n}], tl.float32)")
    in_columns = beyond("column", size, config.block_n, "")
    wide = len(layout.columns) * layout.hidden
    with write.block(f"for first in range(start, end, {config.block_k}):"):
        write(f"row = first + tl.arange(0, {config.block_k})")
        write("in_rows = row < end")
        text.choices()
        mask = "in_rows[:, None]" + (f" & {in_columns}[None, :]" if in_columns else "")
        if column is None:
            at = "grad + token[:, None] * grad_t + column[None, :] * grad_d"
        else:
            start = f" + {column * layout.hidden}" if column else ""
            at = f"dh + row64[:, None] * {wide}{start} + column[None, :]"
        write(f"tile = tl.load({at}, mask={mask}, other=0.0).to(tl.float32)")
        if weighted:
            text.weight()
            write("tile = tile * weight[:, None]")
        write("total += tl.sum(tile, 0)")
    at = "column"
    if column is not None:
        c = layout.columns[column]
        at = f"({c.start} + column{f' * {c.step}' if c.step > 1 else ''})"
    mask = f", mask={in_columns}" if in_columns else ""
    write(f"tl.store(db{p}_own + {at} * db{p}_o, {text.stored('total', bias)}{mask})")
    return text
