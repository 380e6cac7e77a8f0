"""The forward kernel: online softmax over tiles of keys.

    m, l = running maximum and sum of a query's exponentials
    acc  = Σ probs(exp(score - m)) v        out = acc / l

A program that is not linear in p needs p itself: then m and l come from a first pass over the keys,
and the second one adds up what the program makes of p. With `split`, each program sees a part of
the keys and leaves m, l and acc to the kernel in `combine`.
"""

from __future__ import annotations

import torch

from ...triton.kernel import pointer
from .bounds import Loop, keys_of_rows
from .kernel_text import KernelText, lists_of_tiles, row_statistics
from .layout import Layout
from .memory import chunks


def forward_text(
    layout: Layout, packed: bool = False, split: bool = False, listed: bool = False
) -> KernelText:
    """The kernel `(q, k, v, captured) -> out, m, l`, or the same in parts.

    Args:
        layout: what it is specialised on.
        packed: a tile's rows are the queries of all heads that share a key head.
        split: the keys are cut into `SPLITS` parts; results are partial, in fp32.
        listed: the tiles that a program visits come from a table.
    """
    if split:
        fp32 = pointer(torch.float32)
        results = (("part", fp32, "sbhmd"), ("part_max", fp32, "sbhm"), ("part_sum", fp32, "sbhm"))
    else:
        results = (("out", pointer(layout.spec.dtype), "bhmd"), *row_statistics())
    if listed:
        results = (*results, *lists_of_tiles(layout))
    text = KernelText(
        "split_kernel" if split else "forward_kernel",
        layout,
        "Attention of a tile of queries, over a part of the keys." if split
        else "Attention of a tile of queries, and the maximum and sum of its exponentials.",
        results,
        ("SPLITS",) if split else (),
        packed,
    )  # fmt: skip
    _Forward(text, split, listed).write()
    return text


class _Forward:
    def __init__(self, text: KernelText, split: bool, listed: bool) -> None:
        self.text, self.layout, self.tile = text, text.layout, text.tile
        self.split, self.listed = split, listed
        self.line = text.body
        self.count = len(chunks(self.layout.v.features))

    def write(self) -> None:
        line, tile, layout = self.line, self.tile, self.layout
        self.text.heads_of_rows()
        tile.features(*layout.q, *layout.k, layout.v)
        tile.descriptors()
        for i in layout.products:
            tile.load(f"q{i}", layout.q[i], tile.queries(f"q{i}"), tile.in_rows)
        if layout.spec.dropout:
            line("seed_value = tl.load(seed)")
        tile.captured("bhq", tile.in_rows, None)
        self.text.start_statistics(sink=not self.split)
        if self.split:
            line("part_id = tl.program_id(1)")
            line("per_part = tl.cdiv(tl.cdiv(SK, SPLITS), BLOCK_N) * BLOCK_N")
            line("part_low = part_id * per_part")
            line("part_high = tl.maximum(tl.minimum(part_low + per_part, SK), part_low)")
        if self.listed:
            visited = self.text.listed_tiles("keys")
        else:
            visited = keys_of_rows(line, layout, packed=tile.packed, split=self.split)
        if layout.two_passes:
            self.text.loops_over_keys(visited, self._sum)
            self.text.inverse_sums()
            self.text.loops_over_keys(visited, self._add_whole)
        else:
            self.text.loops_over_keys(visited, self._add)
        self._finish()

    def _scores(self, loop: Loop) -> None:
        """`score` of a tile, -inf where a position does not count."""
        tile, layout = self.tile, self.layout
        valid = "(ik < SK)" if loop.edges else None
        for i in layout.products:
            keys = tile.load(f"k{i}", layout.k[i], tile.keys_of(f"k{i}"), valid)
            rows = [f"q{i}_{j}" for j in range(len(keys))]
            tile.product(f"s{i}", rows, keys, layout.q[i].dtype)
        tile.captured("bhqk", tile.in_rows, valid)
        tile.score()
        kept = ["(ik < SK)[None, :]"] if loop.edges else []
        if loop.masked:
            kept.append(tile.mask())
        if kept:
            self.line(f'score = tl.where({" & ".join(kept)}, score, float("-inf"))')

    def _maximum(self) -> None:
        """Exponentials beside the maximum so far; a query without keys keeps -inf."""
        exponential = self.tile.exponential
        self.line("m_new = tl.maximum(m, tl.max(score, 1))")
        self.line('base = tl.where(m_new == float("-inf"), 0.0, m_new)')
        self.line(f"p = {exponential('score - base[:, None]')}")
        self.line(f"shrink = {exponential('m - base')}")
        self.line("l = l * shrink + tl.sum(p, 1)")
        self.line("m = m_new")

    def _values(self, loop: Loop) -> list[str]:
        layout = self.layout
        return self.tile.load(
            "v", layout.v, self.tile.keys_of("v"), "(ik < SK)" if loop.edges else None
        )

    def _add(self, loop: Loop) -> None:
        self._scores(loop)
        values = self._values(loop)
        self._maximum()
        weights = self._weights()
        for j, value in enumerate(values):
            self.line(f"acc_{j} = acc_{j} * shrink[:, None]")
            product = self.tile.dot(weights, value, self.layout.v.dtype, f"acc_{j}")
            self.line(f"acc_{j} = {product}")

    def _sum(self, loop: Loop) -> None:
        self._scores(loop)
        self._maximum()

    def _add_whole(self, loop: Loop) -> None:
        self._scores(loop)
        values = self._values(loop)
        self.line(f"p = {self.tile.exponential('score - base[:, None]')} * inverse[:, None]")
        if loop.edges:
            self.line("p = tl.where((ik < SK)[None, :], p, 0.0)")
        weights = self._weights()
        if loop.edges:
            self.line(f"weights = tl.where((ik < SK)[None, :], {weights}, 0.0)")
            weights = "weights"
        for j, value in enumerate(values):
            product = self.tile.dot(weights, value, self.layout.v.dtype, f"acc_{j}")
            self.line(f"acc_{j} = {product}")

    def _weights(self) -> str:
        """What v is multiplied with: probabilities that were dropped and went through `probs`."""
        self.tile.drop()
        layout = self.layout
        value = self.tile.run(layout.probs, {"p": self.tile.probabilities()})
        return self.tile.operand(self.tile.wide(value), layout.v.dtype)

    def _finish(self) -> None:
        if not self.split:
            self.text.finish(self.count, divided=self.layout.two_passes)
            return
        for name in ("part", "part_max", "part_sum"):
            self.line(f"{name} += tl.cast(part_id, tl.int64) * {name}_s")
        values = [f"acc_{j}" for j in range(self.count)]
        at = self.tile.queries("part")
        self.tile.store("part", self.layout.v, at, self.tile.in_rows, values)
        self.text.store_rows("part_max", "m")
        self.text.store_rows("part_sum", "l")
