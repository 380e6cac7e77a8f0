"""The backward kernels: everything of a tile is recomputed from q, k, v and the row statistics.

    p  = exp(score - m) / l              w  = probs(p)             dv = wᵀ do
    dw = do vᵀ                           dp = ∂probs(p)ᵀ dw        ds = p (dp - delta)
    (dq kᵀ-wise, dk, captured) = ∂score(s, captured)ᵀ ds           delta = Σ_keys p dp

`rows_kernel` owns tiles of queries: dq, and what captured tensors get that do not vary along keys.
`keys_kernel` owns tiles of keys: dk, dv, and captured tensors that vary along keys alone.
`tiles_kernel` owns tiles of scores: captured tensors that vary along both. Sums have one owner and
one order each, so that gradients are the same in every run. Where `probs` is linear, delta is
do·out; otherwise `delta_kernel` adds it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...triton.emitter import Value
from ...triton.kernel import pointer
from .bounds import Loop, keys_of_rows, rows_of_keys
from .kernel_text import KernelText, row_statistics
from .layout import Layout, Operand
from .tile import TileWriter, chunks

_FP32 = pointer(torch.float32)


@dataclass(frozen=True)
class Needs:
    """Whose gradient is wanted."""

    q: bool
    k: bool
    v: bool
    captured: tuple[int, ...]
    """Numbers of captured tensors that the programs read; a sink alone is no such."""
    sink: bool = False

    def over_tiles(self, layout: Layout) -> tuple[int, ...]:
        return tuple(c for c in self.captured if {"q", "k"} <= set(layout.captured[c].axes))

    def over_keys(self, layout: Layout) -> tuple[int, ...]:
        axes = [layout.captured[c].axes for c in self.captured]
        return tuple(
            c for c, a in zip(self.captured, axes, strict=True) if "k" in a and "q" not in a
        )

    def by_head(self, layout: Layout) -> bool:
        """Whether sums over queries are wanted for each query head."""
        return any("h" in layout.captured[c].axes for c in self.over_keys(layout))

    def over_rows(self, layout: Layout) -> tuple[int, ...]:
        return tuple(c for c in self.captured if "k" not in layout.captured[c].axes)


def _tensors(layout: Layout, *results: tuple[str, str, str]) -> tuple[tuple[str, str, str], ...]:
    do = ("do", pointer(layout.spec.dtype), "bhmd")
    return (do, *row_statistics(), ("delta", _FP32, "bhm"), *results)


def delta_text(layout: Layout) -> KernelText:
    """`delta = Σ_keys p dp`, where that is not do·out."""
    text = KernelText(
        "delta_kernel", layout, "What the softmax subtracts from the gradient of each p.",
        _tensors(layout),
    )  # fmt: skip
    body = _Body(text)
    body.own_rows()
    text.body("total = tl.zeros([BLOCK_M], tl.float32)")

    def add(loop: Loop) -> None:
        body.keys_of_tile(loop)
        body.probabilities(loop)
        body.through_probs(())
        text.body(f"total += {text.tile.sum_over_keys('p * dp')}")

    text.loops_over_keys(keys_of_rows(text.body, layout), add)
    text.store_rows("delta", "total")
    return text


def rows_text(layout: Layout, needs: Needs) -> KernelText:
    """dq, and sums over keys for captured tensors, (B, H, SQ) in fp32."""
    sums = needs.over_rows(layout)
    results = [(f"dq{i}", pointer(layout.q[i].dtype), "bhmd") for i in layout.products if needs.q]
    results += [(f"dc{c}", _FP32, "bhm") for c in sums]
    text = KernelText(
        "rows_kernel", layout, "Gradients that a tile of queries owns.", _tensors(layout, *results)
    )
    body, write, tile = _Body(text), text.body, text.tile
    body.own_rows(with_delta=True)
    wanted = layout.products if needs.q else range(0)
    for i in wanted:
        body.zeros(f"dq{i}", layout.q[i], "BLOCK_M")
    for c in sums:
        write(f"dc{c}_sum = tl.zeros([BLOCK_M], tl.float32)")

    def add(loop: Loop) -> None:
        body.keys_of_tile(loop)
        body.probabilities(loop)
        grads = body.gradients(sums, loop)
        for i in wanted:
            ds = tile.operand(grads[f"s{i}"], layout.k[i].dtype)
            for j in range(len(chunks(layout.q[i].features))):
                into = f"dq{i}_sum_{j}"
                write(f"{into} = {tile.dot(ds, f'k{i}_{j}', layout.k[i].dtype, into)}")
        for c in sums:
            write(f"dc{c}_sum += {tile.sum_over_keys(grads[f'c{c}'])}")

    text.loops_over_keys(keys_of_rows(write, layout), add)
    for i in wanted:
        body.store(f"dq{i}", layout.q[i], tile.queries(f"dq{i}"), "in_rows")
    for c in sums:
        text.store_rows(f"dc{c}", f"dc{c}_sum")
    return text


def keys_text(layout: Layout, needs: Needs) -> KernelText:
    """dk and dv, and sums over queries for captured tensors, in fp32: (B, H, SK) if one of them
    varies along heads, and otherwise (B, HKV, SK)."""
    sums, by_head = needs.over_keys(layout), needs.by_head(layout)
    results: list[tuple[str, str, str]] = []
    if needs.k:
        results += [(f"dk{i}", pointer(layout.k[i].dtype), "bhnd") for i in layout.products]
    if needs.v:
        results.append(("dv", pointer(layout.v.dtype), "bhnd"))
    results += [(f"dc{c}", _FP32, "bhn") for c in sums]
    text = KernelText(
        "keys_kernel", layout, "Gradients that a tile of keys owns.", _tensors(layout, *results),
        keys_first=True,
    )  # fmt: skip
    body, write, tile = _Body(text), text.body, text.tile
    body.own_keys()
    wanted = layout.products if needs.k else range(0)
    for i in wanted:
        body.zeros(f"dk{i}", layout.k[i], "BLOCK_N")
    if needs.v:
        body.zeros("dv", layout.v, "BLOCK_N")

    def add(loop: Loop) -> None:
        body.rows_of_tile(loop)
        body.probabilities(loop)
        if needs.v:
            weights = tile.operand(body.weights(loop), layout.spec.dtype)
            for j in range(len(chunks(layout.v.features))):
                into = f"dv_sum_{j}"
                write(f"{into} = {tile.dot(weights, f'do_{j}', layout.spec.dtype, into)}")
        if not needs.k and not sums:
            return
        grads = body.gradients(sums, loop)
        for i in wanted:
            ds = tile.operand(grads[f"s{i}"], layout.q[i].dtype)
            for j in range(len(chunks(layout.k[i].features))):
                into = f"dk{i}_sum_{j}"
                write(f"{into} = {tile.dot(ds, f'q{i}_{j}', layout.q[i].dtype, into)}")
        for c in sums:
            write(f"dc{c}_sum += {tile.sum_over_rows(grads[f'c{c}'])}")

    def zero_sums() -> None:
        for c in sums:
            write(f"dc{c}_sum = tl.zeros([BLOCK_N], tl.float32)")

    def store_sums(head: str) -> None:
        for c in sums:
            pointers = tile.keys_of(f"dc{c}", head).pointers(f"dc{c}")
            write(f"tl.store({pointers}, dc{c}_sum, mask=in_keys)")

    loops = rows_of_keys(write, layout)
    if by_head:
        with write.block("for g in range(GROUP):"), tile.tile():
            write("h = hk * GROUP + g")
            zero_sums()
            text.loops_over_rows(loops, add)
            store_sums("h")
    else:
        zero_sums()
        text.loops_over_heads(loops, add)
        store_sums("hk")
    for name, operand in [*((f"dk{i}", layout.k[i]) for i in wanted), ("dv", layout.v)]:
        if name != "dv" or needs.v:
            body.store(name, operand, tile.keys_of(name), "in_keys")
    return text


def tiles_text(layout: Layout, c: int) -> KernelText:
    """The gradient of one captured tensor that varies along queries and keys, in its own dtype.

    A program owns a tile of it and adds up the batch and heads along which it does not vary.
    """
    captured = layout.captured[c]
    axes = "".join(a for a in captured.axes if a in "bh") + "mn"
    result = (f"dc{c}", pointer(captured.dtype), axes)
    text = KernelText(
        "tiles_kernel", layout, f"The gradient of a tile of c{c}.", _tensors(layout, result),
        ("REPEATS",),
    )  # fmt: skip
    body, write, tile = _Body(text), text.body, text.tile
    write("across = tl.cdiv(SK, BLOCK_N)")
    write("down = tl.cdiv(SQ, BLOCK_M)")
    write("rows = tl.arange(0, BLOCK_M)")
    write("keys = tl.arange(0, BLOCK_N)")
    write("first_row = tl.cast(tl.program_id(0) // across % down * BLOCK_M, tl.int64)")
    write("first_key = tl.cast(tl.program_id(0) % across * BLOCK_N, tl.int64)")
    write("iq = first_row.to(tl.int32) + rows")
    write("ik = first_key.to(tl.int32) + keys")
    write("in_rows = iq < SQ")
    write("in_keys = ik < SK")
    tile.features(*layout.q, *layout.k, layout.v)
    if layout.spec.dropout:
        write("seed_value = tl.load(seed)")
    write("own64 = (tl.program_id(0) // (across * down)).to(tl.int64)")
    write("total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)")
    with write.block("for other in range(REPEATS):"), tile.tile():
        body.one_of(captured.axes)
        body.load_keys("in_keys")
        body.load_rows("in_rows", with_delta=True)
        tile.captured("bhqk", "in_rows", "in_keys")
        everywhere = Loop("", "", False, layout.spec.mask is not None, "")
        body.probabilities(everywhere)
        grads = body.gradients((c,), everywhere)
        write(f"total += {grads[f'c{c}']}")
    own = {"bh": ("own64 // H", "own64 % H"), "b": ("own64",), "h": ("own64",), "": ()}
    terms = [f"{o} * dc{c}_{a}" for a, o in zip(axes, own[axes[:-2]], strict=False)]
    terms += [f"first_row * dc{c}_m", f"first_key * dc{c}_n"]
    terms += [f"(rows * dc{c}_m)[:, None]", f"(keys * dc{c}_n)[None, :]"]
    mask = "in_rows[:, None] & in_keys[None, :]"
    write(f"tl.store({' + '.join([f'dc{c}', *terms])}, total, mask={mask})")
    return text


class _Body:
    """The parts that the backward kernels are made of."""

    def __init__(self, text: KernelText) -> None:
        self.text, self.layout, self.write = text, text.layout, text.body
        self.tile: TileWriter = text.tile
        spec = self.layout.spec
        self.do = Operand(spec.dtype, self.layout.v.features)

    # -- loads

    def own_rows(self, *, with_delta: bool = False) -> None:
        """A program for a tile of queries of one head."""
        self.text.heads_of_rows()
        self.tile.features(*self.layout.q, *self.layout.k, self.layout.v)
        if self.layout.spec.dropout:
            self.write("seed_value = tl.load(seed)")
        self.tile.captured("bhq", "in_rows", None)
        self.load_rows("in_rows", with_delta=with_delta)

    def own_keys(self) -> None:
        """A program for a tile of keys of one key head."""
        write = self.write
        write("blocks = tl.cdiv(SK, BLOCK_N)")
        write("b = (tl.program_id(0) // blocks // HKV).to(tl.int64)")
        write("hk = (tl.program_id(0) // blocks % HKV).to(tl.int64)")
        write("keys = tl.arange(0, BLOCK_N)")
        write("rows = tl.arange(0, BLOCK_M)")
        write("start_key = tl.program_id(0) % blocks * BLOCK_N")
        write("first_key = tl.cast(start_key, tl.int64)")
        write("ik = start_key + keys")
        write("in_keys = ik < SK")
        self.tile.features(*self.layout.q, *self.layout.k, self.layout.v)
        if self.layout.spec.dropout:
            write("seed_value = tl.load(seed)")
        self.tile.captured("bk", None, "in_keys")
        self.load_keys("in_keys")

    def one_of(self, axes: str) -> None:
        """b and h, from what the program owns and what it adds up."""
        self.write("added = own64 * 0 + other")
        batch, head = {
            "bh": ("own64 // H", "own64 % H"), "b": ("own64", "added"), "h": ("added", "own64"),
            "": ("added // H", "added % H"),
        }["".join(a for a in axes if a in "bh")]  # fmt: skip
        self.write(f"b = {batch}")
        self.write(f"h = {head}")
        self.write("hk = h // GROUP")

    def load_rows(self, valid: str | None, *, with_delta: bool) -> None:
        for i in self.layout.products:
            self.tile.load(f"q{i}", self.layout.q[i], self.tile.queries(f"q{i}"), valid)
        self.tile.load("do", self.do, self.tile.queries("do"), valid)
        mask = f", mask={valid}, other=" if valid else ""
        for name, source, other in (("m", "row_max", 'float("inf")'), ("l", "row_sum", "1.0")):
            rest = f"{mask}{other}" if mask else ""
            pointers = self.tile.queries(source).pointers(source)
            self.write(f"{name} = tl.load({pointers}{rest})")
        self.write("inverse = 1.0 / l")
        if self.layout.spec.dead_rows_are_zero:
            self.write("inverse = tl.where(l == 0.0, 0.0, inverse)")
            self.write('m = tl.where(m == float("-inf"), 0.0, m)')
        if with_delta:
            rest = f"{mask}0.0" if mask else ""
            pointers = self.tile.queries("delta").pointers("delta")
            self.write(f"less = tl.load({pointers}{rest})")

    def load_keys(self, valid: str | None) -> None:
        for i in self.layout.products:
            self.tile.load(f"k{i}", self.layout.k[i], self.tile.keys_of(f"k{i}"), valid)
        self.tile.load("v", self.layout.v, self.tile.keys_of("v"), valid)

    def keys_of_tile(self, loop: Loop) -> None:
        """What a tile of keys brings to a program that owns queries."""
        valid = "(ik < SK)" if loop.edges else None
        self.load_keys(valid)
        self.tile.captured("bhqk", "in_rows", valid)

    def rows_of_tile(self, loop: Loop) -> None:
        """What a tile of queries brings to a program that owns keys."""
        valid = "(iq < SQ)" if loop.edges else None
        self.load_rows(valid, with_delta=True)
        self.tile.captured("bhqk", valid, "in_keys")

    # -- results

    def zeros(self, name: str, operand: Operand, rows: str) -> None:
        """Sums for the chunks of a gradient."""
        for j, (_, size) in enumerate(chunks(operand.features)):
            self.write(f"{name}_sum_{j} = tl.zeros([{rows}, {size}], tl.float32)")

    def store(self, name: str, operand: Operand, at: str, valid: str) -> None:
        sums = [f"{name}_sum_{j}" for j in range(len(chunks(operand.features)))]
        self.tile.store(name, operand, at, valid, sums)

    # -- a tile

    def probabilities(self, loop: Loop) -> None:
        """`p`, zero where a position does not count."""
        layout, tile = self.layout, self.tile
        for i in layout.products:
            count = range(len(chunks(layout.q[i].features)))
            rows, keys = [f"q{i}_{j}" for j in count], [f"k{i}_{j}" for j in count]
            tile.product(f"s{i}", rows, keys, layout.q[i].dtype)
        tile.score()
        less = tile.exponential(f"score - {tile.rows('m')}")
        self.write(f"p = {less} * {tile.rows('inverse')}")
        kept = self._inside(loop)
        if loop.masked:
            kept.append(tile.mask())
        if kept:
            self.write(f"p = tl.where({' & '.join(kept)}, p, 0.0)")
        tile.drop()

    def _inside(self, loop: Loop) -> list[str]:
        """Conditions under which a position of a tile on an edge is there and may count.

        What a program does for queries or keys of its own that are not there is never stored. For
        those of a loop, k, v, q and do are zeros. A key still has p > 0; a query has not, since its
        maximum is infinite, and so gives nothing, where the program makes no NaN of a zero.
        """
        if not loop.edges:
            return []
        if self.tile.keys_first:
            return [] if self.layout.bounded else [self.tile.rows("(iq < SQ)")]
        return [self.tile.keys("(ik < SK)")]

    def weights(self, loop: Loop) -> str:
        """What v was multiplied with."""
        value = self.tile.run(self.layout.probs, {"p": self.tile.probabilities()})
        text = self.tile.wide(value)
        inside = self._inside(loop)
        if inside and self.layout.two_passes:
            return f"tl.where({' & '.join(inside)}, {text}, 0.0)"
        return text

    def through_probs(self, wrt: Sequence[int]) -> dict[str, Value]:
        """`dp`, and what captured tensors get through `probs`."""
        layout, tile = self.layout, self.tile
        count = range(len(chunks(layout.v.features)))
        tile.product("dw", [f"do_{j}" for j in count], [f"v_{j}" for j in count], layout.v.dtype)
        names = ["p", *(f"c{c}" for c in wrt)]
        grads = tile.gradient(layout.probs, {"p": tile.probabilities()}, "dw", names)
        self.write(f"dp = {tile.wide(grads.pop('p'))}")
        rate = layout.spec.dropout
        if rate:
            self.write(f"dp = tl.where(gone, 0.0, dp * {1 / (1 - rate)!r})")
        return grads

    def gradients(self, wrt: Sequence[int], loop: Loop) -> dict[str, str]:
        """Of every product and of captured tensors, at each position of the tile: tile texts."""
        layout, tile = self.layout, self.tile
        through = self.through_probs(wrt)
        self.write(f"ds = p * (dp - {tile.rows('less')})")
        names = [*(f"s{i}" for i in layout.products), *(f"c{c}" for c in wrt)]
        direct = tile.gradient(layout.score, tile.scores(), "ds", names)
        found: dict[str, str] = {}
        for name in names:
            parts = [tile.wide(g[name]) for g in (direct, through) if name in g]
            total = f"d_{name}"
            self.write(f"{total} = {' + '.join([*parts, tile.zeros][: max(1, len(parts))])}")
            inside = [] if layout.bounded else self._inside(loop)
            if inside:
                self.write(f"{total} = tl.where({' & '.join(inside)}, {total}, 0.0)")
            found[name] = total
        return found
