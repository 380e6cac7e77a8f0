"""The parts that the backward kernels are made of: a tile of the forward, and its derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...triton.emitter import Value
from .bounds import Loop
from .kernel_text import KernelText
from .layout import Layout, Operand
from .memory import Place, chunks
from .tile import LOG2E, TileWriter


def statistics(layout: Layout) -> tuple[str, ...]:
    """What the backward knows of each query's exponentials, (B, H, SQ) in fp32.

    Their base, and the inverse of their sum; in half precision its logarithm to the base two, which
    takes part in the exponent and saves a multiplication. The two are not one number: beside a base
    of -1e9, that of a query whose keys are all hidden, the logarithm would be lost.
    """
    return ("row_base", "row_inverse" if layout.v.dtype.itemsize >= 4 else "row_log_sum")


_BEYOND = {"row_base": 'float("inf")', "row_inverse": "1.0", "row_log_sum": "0.0"}
"""Of queries that are not there, so that their probabilities are zero."""


class Recomputation:
    """Writes these parts into one kernel.

    Attributes:
        shares: a program that owns keys gives to sums that others store.
    """

    def __init__(self, text: KernelText, *, shares: bool = False) -> None:
        self.shares = shares
        self.text, self.layout, self.write = text, text.layout, text.body
        self.tile: TileWriter = text.tile
        spec = self.layout.spec
        self.do = Operand(spec.dtype, self.layout.v.features)
        self._slopes = {f"s{i}": self._slope(i) for i in self.layout.products}

    def _slope(self, i: int) -> float | None:
        """What the gradient of the score is multiplied with for a product, if that is a number.

        Sums are, not their terms; but terms that are small in fp16 are multiplied by a large one.
        """
        slope = self.tile.slope(self.layout.score, f"s{i}")
        small = self.layout.q[i].dtype is torch.float16
        return None if slope is None or (small and abs(slope) > 1) else slope

    # -- loads

    def own_rows(self, *, with_delta: bool = False) -> None:
        """A program for a tile of queries of one head."""
        self.text.heads_of_rows()
        self.tile.features(*self.layout.q, *self.layout.k, self.layout.v)
        self.tile.descriptors(("do", self.do))
        if self.layout.spec.dropout:
            self.write("seed_value = tl.load(seed)")
        self.tile.captured("bhq", self.tile.in_rows, None)
        self.load_rows(self.tile.in_rows, with_delta=with_delta)

    def own_keys(self) -> None:
        """A program for a tile of keys of one key head."""
        write = self.write
        write("blocks = tl.cdiv(SK, BLOCK_N)")
        write("b = (tl.program_id(0) // blocks // HKV).to(tl.int64)")
        write("hk = (tl.program_id(0) // blocks % HKV).to(tl.int64)")
        write("keys = tl.arange(0, BLOCK_N)")
        write("rows = tl.arange(0, BLOCK_M)")
        write("block = tl.program_id(0) % blocks")
        write("start_key = block * BLOCK_N")
        write("first_key = tl.cast(start_key, tl.int64)")
        write("ik = start_key + keys")
        if self.tile.in_keys:
            write("in_keys = ik < SK")
        self.tile.features(*self.layout.q, *self.layout.k, self.layout.v)
        self.tile.descriptors(("do", self.do))
        if self.layout.spec.dropout:
            write("seed_value = tl.load(seed)")
        self.tile.captured("bk", None, self.tile.in_keys)
        self.load_keys(self.tile.in_keys)

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
        sources = [(n, _BEYOND[n]) for n in statistics(self.layout)]
        for name, other in [*sources, *([("delta", "0.0")] if with_delta else [])]:
            rest = f"{mask}{other}" if mask else ""
            pointers = self.tile.queries(name).pointers(name)
            self.write(f"{name}_value = tl.load({pointers}{rest})")

    def load_keys(self, valid: str | None) -> None:
        for i in self.layout.products:
            self.tile.load(f"k{i}", self.layout.k[i], self.tile.keys_of(f"k{i}"), valid)
        self.tile.load("v", self.layout.v, self.tile.keys_of("v"), valid)

    def keys_of_tile(self, loop: Loop) -> None:
        """What a tile of keys brings to a program that owns queries."""
        valid = "(ik < SK)" if loop.edges else None
        self.load_keys(valid)
        self.tile.captured("bhqk", self.tile.in_rows, valid)

    def rows_of_tile(self, loop: Loop) -> None:
        """What a tile of queries brings to a program that owns keys."""
        valid = "(iq < SQ)" if loop.edges else None
        self.load_rows(valid, with_delta=True)
        self.tile.captured("bhqk", valid, self.tile.in_keys)

    # -- results

    def zeros(self, name: str, operand: Operand, rows: str) -> None:
        """Sums for the chunks of a gradient."""
        for j, (_, size) in enumerate(chunks(operand.features)):
            self.write(f"{name}_sum_{j} = tl.zeros([{rows}, {size}], tl.float32)")

    def accumulate(self, name: str, weights: str, others: str, operand: Operand) -> None:
        """Adds the products of a tile with rows of an operand, chunk by chunk."""
        weights = self.tile.operand(weights, operand.dtype)
        for j in range(len(chunks(operand.features))):
            total = f"{name}_sum_{j}"
            product = self.tile.dot(weights, f"{others}_{j}", operand.dtype, total)
            self.write(f"{total} = {product}")

    def share(self, name: str, weights: str, others: str, operand: Operand, product: str) -> None:
        """Gives queries of a tile what rows of keys add to them."""
        slope = self._slopes[product]
        factor = "" if slope in (None, 1.0) else f" * {slope!r}"
        weights = f"tl.trans({self.tile.operand(weights, operand.dtype)})"
        parts = []
        for j in range(len(chunks(operand.features))):
            parts.append(f"{name}_part_{j}")
            sums = self.tile.dot(weights, f"{others}_{j}", operand.dtype)
            self.write(f"{parts[-1]} = {sums}{factor}")
        wide = replace(operand, dtype=torch.float32)
        self.tile.store(name, wide, self.tile.queries(name), "(iq < SQ)", parts, added=True)

    def store(
        self, name: str, operand: Operand, at: Place, valid: str | None, product: str = ""
    ) -> None:
        """Stores sums; those that came from the gradient of a `product` are scaled now."""
        slope = self._slopes.get(product)
        factor = "" if slope in (None, 1.0) else f" * {slope!r}"
        sums = [f"{name}_sum_{j}{factor}" for j in range(len(chunks(operand.features)))]
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
        self.write(f"p = {self._exponential()}")
        kept = self._inside(loop)
        if loop.masked:
            kept.append(tile.mask())
        if kept:
            self.write(f"p = tl.where({' & '.join(kept)}, p, 0.0)")
        tile.drop()

    def _exponential(self) -> str:
        tile, names = self.tile, statistics(self.layout)
        base, total = (tile.rows(f"{name}_value") for name in names)
        if names[1] == "row_inverse":
            return f"{tile.exponential(f'score - {base}')} * {total}"
        factor = "" if self.layout.in_base_two else f" * {LOG2E}"
        return f"tl.exp2((score - {base}){factor} - {total})"

    def _inside(self, loop: Loop) -> list[str]:
        """Conditions under which a position of a tile on an edge is there and may count.

        What a program does for queries or keys of its own that are not there is never stored. For
        those of a loop k, v, q and do are zeros; but p is no zero there, and what multiplies a zero
        may be no number: the rest of a query that sees no key, a derivative at zero.
        """
        if not self.tile.keys_first:
            return [self.tile.keys("(ik < SK)")] if loop.edges else []
        mine = self.tile.in_keys
        found = [self.tile.keys(mine)] if self.shares and mine else []
        if loop.edges:
            found.append(self.tile.rows("(iq < SQ)"))
        return found

    def weights(self, loop: Loop) -> str:
        """What v was multiplied with."""
        value = self.tile.run(self.layout.probs, {"p": self.tile.probabilities()})
        text = self.tile.wide(value)
        inside = self._inside(loop)
        if inside and self.layout.two_passes:
            return f"tl.where({' & '.join(inside)}, {text}, 0.0)"
        return text

    def through_probs(self, wrt: Sequence[int], loop: Loop) -> dict[str, Value]:
        """`dp`, and what captured tensors get through `probs`."""
        layout, tile = self.layout, self.tile
        count = range(len(chunks(layout.v.features)))
        tile.product("dw", [f"do_{j}" for j in count], [f"v_{j}" for j in count], layout.v.dtype)
        names = ["p", *(f"c{c}" for c in wrt)]
        grads = tile.gradient(layout.probs, {"p": tile.probabilities()}, "dw", names)
        self.write(f"dp = {tile.wide(grads.pop('p'))}")
        if self._inside(loop) and not layout.bounded:
            self.write(f"dp = tl.where({' & '.join(self._inside(loop))}, dp, 0.0)")
        rate = layout.spec.dropout
        if rate:
            self.write(f"dp = tl.where(gone, 0.0, dp * {1 / (1 - rate)!r})")
        return grads

    def gradients(self, wrt: Sequence[int], loop: Loop) -> dict[str, str]:
        """Of every product and of captured tensors, at each position of the tile: tile texts.

        A product that the score is a multiple of gets the score's own: `store` scales its sums.
        """
        layout, tile = self.layout, self.tile
        through = self.through_probs(wrt, loop)
        self.write(f"ds = p * (dp - {tile.rows('delta_value')})")
        names = [*(f"s{i}" for i in layout.products), *(f"c{c}" for c in wrt)]
        known = {n for n in names if self._slopes.get(n) is not None}
        direct = tile.gradient(
            layout.score, tile.scores(), "ds", [n for n in names if n not in known]
        )
        found: dict[str, str] = {}
        for name in names:
            parts = [tile.wide(g[name]) for g in (direct, through) if name in g]
            parts = ["ds"] if name in known else parts
            total = f"d_{name}"
            self.write(f"{total} = {' + '.join([*parts, tile.zeros][: max(1, len(parts))])}")
            inside = self._inside(loop)
            if inside and not (tile.keys_first and layout.bounded and not self.shares):
                self.write(f"{total} = tl.where({' & '.join(inside)}, {total}, 0.0)")
            found[name] = total
        return found
