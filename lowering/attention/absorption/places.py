"""Where an axis of a tensor lies among the positions of a score: batch, head, query and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import sympy
import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, leaves, resolve, same_size, size_of
from fuser.graph.fold import Folder
from fuser.graph.index import MAX_STEPS, IndexReader
from fuser.graph.index_rules import is_one
from fuser.graph.ops import value
from fuser.graph.positional import Value
from fuser.graph.program import SIZES
from fuser.pattern import Call
from fuser.torch_private import hints, to_expr

from ..conditions import IB, IH, IK, IQ

POSITION = (IB, IH, IQ, IK)
QUERY, KEY = 2, 3
_UNKNOWN_SIZE = 64
Place: TypeAlias = "Dim | Node | int"
"""What a dimension is read at: axes in row-major order, or the index that a step computes."""
Index: TypeAlias = "tuple[Place, ...]"


class Places:
    """The canonical dimensions of the scores of one call.

    Attributes:
        target: (B, H, Sq, Sk).
        fixed: axes at which only one index is read.
        sizes: of every position symbol.
    """

    def __init__(self, call: Call, folder: Folder) -> None:
        q, k = call.operands["q0"], call.operands["k0"]
        self.target: Dims = resolve((*q.target[:3], k.target[2]))
        self.fixed = dict(pair for o in call.operands.values() for pair in o.fixed)
        totals = [sympy.sympify(size_of(dim)) for dim in self.target]
        self.sizes: dict[sympy.Symbol, sympy.Expr] = dict(zip(POSITION, totals, strict=True))
        self.counts: dict[str, sympy.Expr] = dict(zip(SIZES, totals, strict=True))
        examples = [value(n) for n in folder.view.size_sources]
        self._hints = hints([x for x in examples if isinstance(x, torch.Tensor)])

    def of_axis(self, axis: Axis) -> sympy.Expr:
        """The index along an axis, as an expression of positions.

        Raises:
            Unproven: the scores do not have the axis.
        """
        if axis in self.fixed:
            return sympy.Integer(self.fixed[axis])
        for symbol, dim in zip(POSITION, self.target, strict=True):
            own = leaves((dim,))
            if axis not in own:
                continue
            place = own.index(axis)
            inner: Any = size_of(own[place + 1 :])
            if not isinstance(inner, int):
                raise Unproven("an axis within an axis of symbolic size")
            index: Any = symbol if inner == 1 else sympy.floor(symbol / inner)
            return index if place == 0 else sympy.Mod(index, axis.size)
        raise Unproven("a tensor has an axis that its place does not have")

    def of_dim(self, dim: Dim) -> sympy.Expr:
        """The index along a dimension."""
        own = leaves((dim,))
        total: Any = sympy.Integer(0)
        for place, axis in enumerate(own):
            total += self.of_axis(axis) * size_of(own[place + 1 :])
        return _joined(sympy.expand(total))

    def varies(self, dims: Dims) -> frozenset[int]:
        """Canonical dimensions along which a tensor with these axes differs."""
        own = set(leaves(dims)) - set(self.fixed)
        return frozenset(i for i, d in enumerate(self.target) if own & set(leaves((d,))))

    def is_whole(self, dims: Dims) -> bool:
        """Whether views arrange the tensor, without a copy: no canonical dimension in part."""
        own = leaves(dims)
        if len(set(own)) != len(own):
            return False
        rest = set(own) - set(self.fixed)
        parts = [set(leaves((dim,))) for dim in self.target]
        return all(p <= rest or not p & rest for p in parts) and rest <= set().union(*parts)

    def elements(self, dims: Dims) -> int:
        """How many elements a tensor has once it is arranged; a guess where sizes are symbolic."""
        return self.number(size_of(a for i in self.varies(dims) for a in leaves((self.target[i],))))

    def number(self, size: Any) -> int:
        """A size, or what it was in the example."""
        size = sympy.sympify(size).xreplace(self._hints)
        return int(size.xreplace({s: sympy.Integer(_UNKNOWN_SIZE) for s in size.free_symbols}))


def _joined(index: Any) -> sympy.Expr:
    """`n floor(x / n) + x mod n` is x."""
    for found in index.atoms(sympy.Mod):
        x, n = found.args
        whole = sympy.floor((x.args[0] if isinstance(x, sympy.floor) else x) / n)
        factor = index.coeff(found)
        if index.coeff(whole) == n * factor:
            return _joined(sympy.expand(index + factor * (x - found - n * whole)))
    return index


def aligned(index: Index, shape: Sequence[Any], wanted: Sequence[Any]) -> Index:
    """Where an input of shape `wanted`, broadcast to `shape`, is read."""
    offset = len(index) - len(wanted)
    if offset < 0:
        raise Unproven("an operand has more dimensions than the result")
    found: list[Place] = []
    for place, have, want in zip(index[offset:], shape[offset:], wanted, strict=True):
        if not is_one(want) and not same_size(to_expr(want), to_expr(have)):
            raise Unproven("an operand of another size than the result")
        found.append(() if is_one(want) else place)
    return tuple(found)


@dataclass
class _Memory:
    """What readers of one graph have found, for attentions of the same sizes."""

    sizes: dict[sympy.Symbol, sympy.Expr]
    known: dict[tuple[Node, Any], Value] = field(default_factory=dict)


_memories: WeakKeyDictionary[Folder, dict[Any, _Memory]] = WeakKeyDictionary()


class PositionReader(IndexReader):
    """Reads elements of tensors as expressions of the positions of a score.

    The layers of a model have mostly the same mask, which is read once.
    """

    def __init__(self, folder: Folder, sizes: Mapping[sympy.Symbol, sympy.Expr]) -> None:
        super().__init__(folder)
        memories, key = _memories.setdefault(folder, {}), tuple(sizes.values())
        if key not in memories or len(memories[key].known) > MAX_STEPS // 2:
            memories[key] = _Memory(dict(sizes))
        self.sizes, self._known = memories[key].sizes, memories[key].known

    def start(self, part: slice, size: Any) -> sympy.Expr:
        """First position of a slice."""
        return self._start(part, size)
