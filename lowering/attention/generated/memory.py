"""Where the rows of a tile are in memory: loads and stores, by pointers or by descriptors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ...triton.source import Source
from ...triton.values import Value
from .layout import Layout, Operand

_LARGEST_CHUNK = 256


def chunks(features: int) -> list[tuple[int, int]]:
    """(start, size) of the powers of two that cover the features, at most three of them.

    192 is 128 and 64, not 256; a size is at least 16, which tensor cores ask for.
    """
    rest, start, found = -(-features // 16) * 16, 0, list[tuple[int, int]]()
    while rest > 0:
        size = min(1 << (rest.bit_length() - 1), _LARGEST_CHUNK)
        if size < rest < _LARGEST_CHUNK and (
            (len(found) == 1 and rest != size) or rest > 1.5 * size
        ):
            size = 1 << rest.bit_length()
        found.append((start, size))
        start, rest = start + size, rest - size
    return found


@dataclass(frozen=True)
class Place:
    """Where the rows of a tile are.

    Attributes:
        scalars: offsets that they share.
        vector: each one's own.
        start: the head and the first position, which a descriptor is asked for.
        block: how many they are.
    """

    scalars: tuple[str, ...]
    vector: str
    start: str = ""
    block: str = ""

    def base(self, name: str) -> str:
        """A pointer that all rows share."""
        return " + ".join((name, *self.scalars))

    def pointers(self, name: str) -> str:
        """A pointer for each row."""
        return f"{self.base(name)} + {self.vector}"


class TileMemory:
    """Writes what one kernel's tiles load and store.

    Attributes:
        keys_first: tiles are (keys, queries).
        packed: the rows of a tile are the queries of all heads that share a key head.
        functions: names of device functions that the text calls.
    """

    def __init__(
        self, write: Source, layout: Layout, *, keys_first: bool = False, packed: bool = False
    ) -> None:
        self.write, self.layout = write, layout
        self.keys_first, self.packed = keys_first, packed
        self.functions: set[str] = set()
        self._captured: dict[str, Value] = {}
        self._described: set[str] = set()

    # -- which positions are there

    @property
    def in_rows(self) -> str | None:
        """The condition under which a query that the program owns is there; None where all are."""
        return None if self.layout.whole_rows and not self.packed else "in_rows"

    @property
    def in_keys(self) -> str | None:
        """The same for keys that it owns."""
        return None if self.layout.whole_keys else "in_keys"

    # -- orientation

    def rows(self, vector: str) -> str:
        """A vector over queries, to be combined with a tile."""
        return f"{vector}[None, :]" if self.keys_first else f"{vector}[:, None]"

    def keys(self, vector: str) -> str:
        """A vector over keys, to be combined with a tile."""
        return f"{vector}[:, None]" if self.keys_first else f"{vector}[None, :]"

    def sum_over_keys(self, tile: str) -> str:
        return f"tl.sum({tile}, {0 if self.keys_first else 1})"

    def sum_over_rows(self, tile: str) -> str:
        return f"tl.sum({tile}, {1 if self.keys_first else 0})"

    @property
    def zeros(self) -> str:
        """A tile of zeros."""
        shape = "BLOCK_N, BLOCK_M" if self.keys_first else "BLOCK_M, BLOCK_N"
        return f"tl.zeros([{shape}], tl.float32)"

    # -- loads

    def features(self, *operands: Operand) -> None:
        """Positions along the features, once for every chunk."""
        for start, size in sorted({c for o in operands for c in chunks(o.features)}):
            plus = f"{start} + " if start else ""
            self.write(f"{_along(start, size)} = {plus}tl.arange(0, {size})")

    def queries(self, name: str, letter: str = "m") -> Place:
        """Where this tile's queries are in a tensor with strides b, h and m."""
        if self.packed:
            return Place((f"b * {name}_b",), f"(h * {name}_h + iq64 * {name}_{letter})")
        head = (f"b * {name}_b", f"h * {name}_h", f"first_row * {name}_{letter}")
        start = "h.to(tl.int32), first_row.to(tl.int32)"
        return Place(head, f"(rows * {name}_{letter})", start, "BLOCK_M")

    def keys_of(self, name: str, head: str = "hk") -> Place:
        """Where this tile's keys are in a tensor with strides b, h and n."""
        scalars = (f"b * {name}_b", f"{head} * {name}_h", f"first_key * {name}_n")
        start = f"{head}.to(tl.int32), first_key.to(tl.int32)"
        return Place(scalars, f"(keys * {name}_n)", start, "BLOCK_N")

    def descriptors(self, *others: tuple[str, Operand]) -> None:
        """Where the hardware finds tiles of q, k, v and others of (B, H, SQ, ...), if it loads.

        Beyond the last head, position or feature it gives zeros.
        """
        if not self.layout.tma:
            return
        products = self.layout.products
        rows = [(f"q{i}", self.layout.q[i]) for i in products]
        keys = [(f"k{i}", self.layout.k[i]) for i in products]
        if not self.packed:
            for name, operand in (*rows, *others):
                self._describe(name, operand, "H, SQ", "m", "BLOCK_M")
        for name, operand in (*keys, ("v", self.layout.v)):
            self._describe(name, operand, "HKV, SK", "n", "BLOCK_N")

    def _describe(self, name: str, operand: Operand, sizes: str, letter: str, block: str) -> None:
        self._described.add(name)
        for size in sorted({size for _, size in chunks(operand.features)}):
            shape, strides = f"[{sizes}, {operand.features}]", f"[{name}_h, {name}_{letter}, 1]"
            self.write(f"{name}_tiles_{size} = tl.make_tensor_descriptor(")
            self.write(f"    {name} + b * {name}_b, {shape}, {strides}, [1, {block}, {size}]")
            self.write(")")

    def load(self, name: str, operand: Operand, at: Place, valid: str | None) -> list[str]:
        """Rows of q, k, v or a gradient, as (positions, features): names of the chunks.

        Args:
            name: of the tensor.
            operand: its dtype and features.
            at: where the rows are.
            valid: which rows there are; None for all.
        """
        names = []
        for i, (start, size) in enumerate(chunks(operand.features)):
            names.append(f"{name}_{i}")
            widen = ".to(tl.float32)" if self._reads_wide(operand.dtype) else ""
            if name in self._described:
                tile = f"{name}_tiles_{size}.load([{at.start}, {start}])"
                self.write(f"{name}_{i} = {tile}.reshape([{at.block}, {size}]){widen}")
                continue
            pointers, mask = _chunk(name, operand, at, valid, start, size)
            other = ", other=0.0" if mask else ""
            self.write(f"{name}_{i} = tl.load({pointers}{mask}{other}){widen}")
        return names

    def _reads_wide(self, dtype: torch.dtype) -> bool:
        """The interpreter's products take bf16 for integers."""
        return self.layout.interpreted and dtype is torch.bfloat16

    def store(
        self,
        name: str,
        operand: Operand,
        at: Place,
        valid: str | None,
        values: Sequence[str],
        *,
        added: bool = False,
    ) -> None:
        """Rows of a result, chunk by chunk; or `added` to what is there, in any order."""
        for value, (start, size) in zip(values, chunks(operand.features), strict=True):
            pointers, mask = _chunk(name, operand, at, valid, start, size)
            if added:
                self.write(f'tl.atomic_add({pointers}, {value}{mask}, sem="relaxed")')
            else:
                value = self.stored(value, operand.dtype)
                self.write(f"tl.store({pointers}, {value}{mask})")

    def stored(self, text: str, dtype: torch.dtype) -> str:
        """An fp32 value on its way to memory, where it becomes the nearest one of a dtype."""
        return self._nearest(text) if self._reads_wide(dtype) else text

    def captured(
        self,
        available: str,
        valid_rows: str | None,
        valid_keys: str | None,
        only: Collection[int] | None = None,
    ) -> None:
        """Loads the captured tensors, or `only` some, that vary along `available` axes at most."""
        for i, captured in enumerate(self.layout.captured):
            name = f"c{i}"
            if name in self._captured or captured.rank >= 0 or set(captured.axes) - set(available):
                continue
            if only is not None and i not in only:
                continue
            over_rows = "q" in captured.axes or (self.packed and "h" in captured.axes)
            over_keys = "k" in captured.axes
            both = over_rows and over_keys
            terms, masks = [name, *self._scalars(name, captured.axes)], []
            if over_rows:
                vector = self._row_vector(name, captured.axes)
                terms.append(self.rows(vector) if both else vector)
            if over_keys:
                vector = f"(keys * {name}_k)"
                terms.append(self.keys(vector) if both else vector)
            if over_rows and valid_rows:
                masks.append(self.rows(valid_rows) if both else valid_rows)
            if over_keys and valid_keys:
                masks.append(self.keys(valid_keys) if both else valid_keys)
            mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
            held = self.layout.held(captured.dtype)
            widen = ".to(tl.float32)" if captured.dtype in (torch.float16, torch.bfloat16) else ""
            if captured.dtype is torch.bool:  # the pointer may be one to bytes
                widen = " != 0"
            self.write(f"{name}_value = tl.load({' + '.join(terms)}{mask}){widen}")
            text = f"{name}_value"
            if over_rows != over_keys:
                text = self.rows(text) if over_rows else self.keys(text)
            self._captured[name] = Value(text, held)

    def _scalars(self, name: str, axes: str) -> list[str]:
        """Offsets of a captured tensor that a whole tile shares."""
        position = {"b": "b", "h": "h", "q": "first_row", "k": "first_key"}
        if self.packed:
            axes = axes.replace("h", "").replace("q", "")
        return [f"{position[a]} * {name}_{a}" for a in axes]

    def _row_vector(self, name: str, axes: str) -> str:
        if not self.packed:
            return f"(rows * {name}_q)"
        position = {"h": "h", "q": "iq64"}
        terms = [f"{position[a]} * {name}_{a}" for a in axes if a in position]
        return f"({' + '.join(terms)})"

    def _nearest(self, text: str) -> str:
        """The interpreter's own cast to bf16 truncates."""
        self.functions.add("bfloat16")
        return f"bfloat16({text})"


def _chunk(
    name: str, operand: Operand, at: Place, valid: str | None, start: int, size: int
) -> tuple[str, str]:
    """Pointers to some features of rows, and the argument that says which of them there are."""
    along = _along(start, size)
    masks = [f"{valid}[:, None]"] if valid else []
    if start + size > operand.features:
        masks.append(f"({along} < {operand.features})[None, :]")
    pointers = f"{at.base(name)} + {at.vector}[:, None] + ({along} * {name}_d)[None, :]"
    return pointers, f", mask={' & '.join(masks)}" if masks else ""


def _along(start: int, size: int) -> str:
    return f"d{start}_{size}" if start else f"d{size}"
