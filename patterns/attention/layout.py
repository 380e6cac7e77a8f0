"""Group the axes of an attention into the canonical (B, H, S, D) arrangement.

Of the axes of p that are not keys, those that k or v also has are batch; the others belong to the
queries alone: rows where they share p's row dimension, query-head groups (GQA, MQA) elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fuser.graph.axes import Axis, Dim, Dims, leaves, resolve


@dataclass(frozen=True)
class Layout:
    """Canonical dimensions: batch, key-value heads, query heads per key head, rows, keys."""

    batch: Dim
    kv_heads: Dim
    groups: Dim
    rows: Dim
    keys: Dim

    @property
    def heads(self) -> Dim:
        return self.kv_heads + self.groups

    def scores(self) -> Dims:
        return (self.batch, self.heads, self.rows, self.keys)

    def queries(self, inner: Dim) -> Dims:
        return (self.batch, self.heads, self.rows, inner)

    def key_values(self, inner: Dim) -> Dims:
        return (self.batch, self.kv_heads, self.keys, inner)

    def results(self, inner: Dim) -> Dims:
        return (self.batch, self.heads, self.rows, inner)


def group(
    p_dims: Dims,
    keys: Sequence[Axis],
    key_value_axes: Iterable[Axis],
    captured: Iterable[Dims],
) -> Layout:
    """Decide which axis plays which part."""
    keys = leaves((tuple(keys),))
    p_dims = resolve(p_dims)
    shared = set(key_value_axes)
    order = [a for a in leaves(p_dims) if a not in keys]
    batch = [a for a in order if a in shared]
    own = [a for a in order if a not in shared]
    rows = _rows(p_dims, own, captured)
    groups = tuple(a for a in own if a not in rows)
    kv_heads = _kv_heads(p_dims, batch, {*rows, *keys})
    rest = tuple(a for a in batch if a not in kv_heads)
    return Layout(rest, kv_heads, groups, rows, keys)


def _kv_heads(p_dims: Dims, batch: Sequence[Axis], positions: set[Axis]) -> Dim:
    """The last batch axis, if a dimension of p, or an axis of a folded one, stands before it."""
    outer = [d for d in p_dims if not set(d) & positions]
    shared = [tuple(a for a in d if a in batch) for d in outer]
    if len(outer) > 1:
        return next((d[-1:] for d in reversed(shared[1:]) if d), ())
    return tuple(batch[-1:]) if len(batch) > 1 else ()


def _rows(p_dims: Dims, own: Sequence[Axis], captured: Iterable[Dims]) -> Dim:
    last = next((d for d in reversed(p_dims) if set(d) & set(own)), ())
    rows = tuple(a for a in last if a in own)
    if len(rows) < 2:
        return rows
    used = {a for dims in captured for a in leaves(dims)}
    narrowed = tuple(a for a in rows if a in used)
    return narrowed or rows
