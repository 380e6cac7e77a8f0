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
from dataclasses import dataclass, replace

import torch

from ...triton.kernel import pointer
from .bounds import Loop, keys_of_rows, rows_of_keys
from .kernel_text import KernelText, lists_of_tiles
from .layout import Layout
from .recomputation import Recomputation, statistics

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
    atomics: bool = False
    """What tiles of queries own is added up by programs that own keys, in any order."""

    def apart(self) -> list[tuple[str, Needs]]:
        """What programs that own keys give, by a kernel for dk and one for dv: stages with their
        needs."""
        parts = [("dk", replace(self, v=False)), ("dv", replace(self, k=False, captured=()))]
        return [(stage, n) for stage, n in parts if n.k or n.v or n.captured]

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


def _text(
    name: str,
    layout: Layout,
    about: str,
    results: Sequence[tuple[str, str, str]],
    *,
    scalars: tuple[str, ...] = (),
    keys_first: bool = False,
    listed: bool = False,
) -> KernelText:
    """A kernel that starts from the cotangent and what the forward left of each query."""
    rows = ((name, _FP32, "bhm") for name in (*statistics(layout), "delta"))
    given = (("do", pointer(layout.spec.dtype), "bhmd"), *rows)
    tables = lists_of_tiles(layout) if listed else ()
    return KernelText(
        name, layout, about, (*given, *results, *tables), scalars, keys_first=keys_first
    )


def delta_text(layout: Layout, listed: bool = False) -> KernelText:
    """`delta = Σ_keys p dp`, where that is not do·out.

    Args:
        layout: of the attention.
        listed: here and below: the tiles that a program visits come from a table.
    """
    about = "What the softmax subtracts from the gradient of each p."
    text = _text("delta_kernel", layout, about, (), listed=listed)
    body = Recomputation(text)
    body.own_rows()
    text.body("total = tl.zeros([BLOCK_M], tl.float32)")

    def add(loop: Loop) -> None:
        body.keys_of_tile(loop)
        body.probabilities(loop)
        body.through_probs((), loop)
        text.body(f"total += {text.tile.sum_over_keys('p * dp')}")

    text.loops_over_keys(_keys_of_rows(text, listed), add)
    text.store_rows("delta", "total")
    return text


def _keys_of_rows(text: KernelText, listed: bool) -> tuple[Loop, ...]:
    return text.listed_tiles("keys") if listed else keys_of_rows(text.body, text.layout)


def rows_text(layout: Layout, needs: Needs, listed: bool = False) -> KernelText:
    """dq, and sums over keys for captured tensors, (B, H, SQ) in fp32."""
    sums = needs.over_rows(layout)
    wanted = layout.products if needs.q else range(0)
    results = [(f"dq{i}", pointer(layout.q[i].dtype), "bhmd") for i in wanted]
    results += [(f"dc{c}", _FP32, "bhm") for c in sums]
    about = "Gradients that a tile of queries owns."
    text = _text("rows_kernel", layout, about, results, listed=listed)
    body, write, tile = Recomputation(text), text.body, text.tile
    body.own_rows(with_delta=True)
    for i in wanted:
        body.zeros(f"dq{i}", layout.q[i], "BLOCK_M")
    for c in sums:
        write(f"dc{c}_sum = tl.zeros([BLOCK_M], tl.float32)")

    def add(loop: Loop) -> None:
        body.keys_of_tile(loop)
        body.probabilities(loop)
        grads = body.gradients(sums, loop)
        for i in wanted:
            body.accumulate(f"dq{i}", grads[f"s{i}"], f"k{i}", layout.k[i])
        for c in sums:
            write(f"dc{c}_sum += {tile.sum_over_keys(grads[f'c{c}'])}")

    text.loops_over_keys(_keys_of_rows(text, listed), add)
    for i in wanted:
        body.store(f"dq{i}", layout.q[i], tile.queries(f"dq{i}"), tile.in_rows, f"s{i}")
    for c in sums:
        text.store_rows(f"dc{c}", f"dc{c}_sum")
    return text


def keys_text(layout: Layout, needs: Needs, listed: bool = False) -> KernelText:
    """dk and dv, and sums over queries for captured tensors, in fp32: (B, H, SK) if one of them
    varies along heads, and otherwise (B, HKV, SK). With `needs.atomics`, what `rows_text` gives
    too, in fp32: added by all programs to zeros."""
    return _Keys(layout, needs, listed).text


class _Keys:
    """The kernel that owns tiles of keys."""

    def __init__(self, layout: Layout, needs: Needs, listed: bool) -> None:
        self.layout, self.needs, self.listed = layout, needs, listed
        self.sums, shared = needs.over_keys(layout), needs.atomics
        self.dk = layout.products if needs.k else range(0)
        self.dq = layout.products if needs.q and shared else range(0)
        self.shared_sums = needs.over_rows(layout) if shared else ()
        about = "Gradients that a tile of keys owns" + (
            ", and its share of others." if shared else "."
        )
        of_k = bool(self.dk or self.sums or shared)
        name = {(True, False): "dk_kernel", (False, True): "dv_kernel"}
        self.text = _text(
            name.get((of_k, needs.v), "keys_kernel"), layout, about, self._results(),
            keys_first=True, listed=listed,
        )  # fmt: skip
        self.body = Recomputation(self.text, shares=shared)
        self._write()

    def _results(self) -> list[tuple[str, str, str]]:
        layout = self.layout
        results = [(f"dk{i}", pointer(layout.k[i].dtype), "bhnd") for i in self.dk]
        if self.needs.v:
            results.append(("dv", pointer(layout.v.dtype), "bhnd"))
        results += [(f"dq{i}", _FP32, "bhmd") for i in self.dq]
        results += [(f"dc{c}", _FP32, "bhn") for c in self.sums]
        return results + [(f"dc{c}", _FP32, "bhm") for c in self.shared_sums]

    def _write(self) -> None:
        text, body, layout = self.text, self.body, self.layout
        body.own_keys()
        owned = [(f"dk{i}", layout.k[i], f"s{i}") for i in self.dk]
        owned += [("dv", layout.v, "")] if self.needs.v else []
        for name, operand, _ in owned:
            body.zeros(name, operand, "BLOCK_N")
        by_head = self.needs.by_head(layout)
        if by_head or (self.listed and "h" in layout.visible_axes):
            loops = () if self.listed else rows_of_keys(text.body, layout)
            if not by_head:
                self._zero_sums()
            with text.body.block("for g in range(GROUP):"), text.tile.tile():
                text.body("h = hk * GROUP + g")
                if by_head:
                    self._zero_sums()
                text.loops_over_rows(
                    text.listed_tiles("queries") if self.listed else loops, self._add
                )
                if by_head:
                    self._store_sums("h")
        else:
            self._zero_sums()
            if self.listed:
                loops = text.listed_tiles("queries")
            else:
                loops = rows_of_keys(text.body, layout)
            text.loops_over_heads(loops, self._add)
        if not by_head:
            self._store_sums("hk")
        for name, operand, product in owned:
            body.store(name, operand, text.tile.keys_of(name), text.tile.in_keys, product)

    def _add(self, loop: Loop) -> None:
        body, layout, tile = self.body, self.layout, self.text.tile
        body.rows_of_tile(loop)
        body.probabilities(loop)
        if self.needs.v:
            body.accumulate("dv", body.weights(loop), "do", body.do)
        if not (self.dk or self.dq or self.sums or self.shared_sums):
            return
        grads = body.gradients((*self.sums, *self.shared_sums), loop)
        for i in self.dk:
            body.accumulate(f"dk{i}", grads[f"s{i}"], f"q{i}", layout.q[i])
        for i in self.dq:
            body.share(f"dq{i}", grads[f"s{i}"], f"k{i}", layout.k[i], f"s{i}")
        for c in self.sums:
            self.text.body(f"dc{c}_sum += {tile.sum_over_rows(grads[f'c{c}'])}")
        for c in self.shared_sums:
            pointers = tile.queries(f"dc{c}").pointers(f"dc{c}")
            total = tile.sum_over_keys(grads[f"c{c}"])
            self.text.body(f'tl.atomic_add({pointers}, {total}, mask=iq < SQ, sem="relaxed")')

    def _zero_sums(self) -> None:
        for c in self.sums:
            self.text.body(f"dc{c}_sum = tl.zeros([BLOCK_N], tl.float32)")

    def _store_sums(self, head: str) -> None:
        for c in self.sums:
            pointers = self.text.tile.keys_of(f"dc{c}", head).pointers(f"dc{c}")
            mask = self.text.tile.in_keys
            mask = f", mask={mask}" if mask else ""
            self.text.body(f"tl.store({pointers}, dc{c}_sum{mask})")


def tiles_text(layout: Layout, c: int, in_parts: bool = False) -> KernelText:
    """The gradient of one captured tensor that varies along queries and keys, in its own dtype.

    A program owns a tile of it and adds up the batch and heads along which it does not vary, or a
    part of them, in fp32.
    """
    captured = layout.captured[c]
    dtype = torch.float32 if in_parts else captured.dtype
    axes = "".join(a for a in captured.axes if a in "bh") + "mn"
    about = f"The gradient of a tile of c{c}" + (", one part of it." if in_parts else ".")
    result = (f"dc{c}", pointer(dtype), f"s{axes}")
    text = _text("tiles_kernel", layout, about, (result,), scalars=("REPEATS", "EACH"))
    body, write, tile = Recomputation(text), text.body, text.tile
    write("across = tl.cdiv(SK, BLOCK_N)")
    write("down = tl.cdiv(SQ, BLOCK_M)")
    write("rows = tl.arange(0, BLOCK_M)")
    write("keys = tl.arange(0, BLOCK_N)")
    write("first_row = tl.cast(tl.program_id(0) // across % down * BLOCK_M, tl.int64)")
    write("first_key = tl.cast(tl.program_id(0) % across * BLOCK_N, tl.int64)")
    write("iq = first_row.to(tl.int32) + rows")
    write("ik = first_key.to(tl.int32) + keys")
    if tile.in_rows:
        write("in_rows = iq < SQ")
    if tile.in_keys:
        write("in_keys = ik < SK")
    tile.features(*layout.q, *layout.k, layout.v)
    if layout.spec.dropout:
        write("seed_value = tl.load(seed)")
    write("own64 = (tl.program_id(0) // (across * down)).to(tl.int64)")
    write("total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)")
    write("first = tl.program_id(1) * EACH")
    with write.block("for other in range(first, tl.minimum(first + EACH, REPEATS)):"), tile.tile():
        body.one_of(captured.axes)
        body.load_keys(tile.in_keys)
        body.load_rows(tile.in_rows, with_delta=True)
        tile.captured("bhqk", tile.in_rows, tile.in_keys)
        everywhere = Loop("", "", False, layout.spec.mask is not None, "")
        body.probabilities(everywhere)
        grads = body.gradients((c,), everywhere)
        write(f"total += {grads[f'c{c}']}")
    write("part = tl.program_id(1).to(tl.int64)")
    own = {"bh": ("own64 // H", "own64 % H"), "b": ("own64",), "h": ("own64",), "": ()}
    terms = [f"part * dc{c}_s"]
    terms += [f"{o} * dc{c}_{a}" for a, o in zip(axes, own[axes[:-2]], strict=False)]
    terms += [f"first_row * dc{c}_m", f"first_key * dc{c}_n"]
    terms += [f"(rows * dc{c}_m)[:, None]", f"(keys * dc{c}_n)[None, :]"]
    masks = [f"{tile.in_rows}[:, None]"] if tile.in_rows else []
    masks += [f"{tile.in_keys}[None, :]"] if tile.in_keys else []
    mask = f", mask={' & '.join(masks)}" if masks else ""
    value = tile.stored("total", dtype)
    write(f"tl.store({' + '.join([f'dc{c}', *terms])}, {value}{mask})")
    return text
