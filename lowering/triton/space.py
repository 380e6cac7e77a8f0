"""The dimensions in which kernels count: those of the operands, fewer and sorted.

Dimensions of one element are left out. Others are put in the order of memory and then merged, where
every tensor has them in one piece: a row norm of contiguous tensors has rows and columns, whatever
their rank; a group norm has two dimensions of columns, as its weight varies along one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fuser.torch_private import hint, known_true


@dataclass(frozen=True)
class Space:
    """Merged dimensions; sizes may be symbols.

    Attributes:
        lead: sizes of dimensions of rows that each program has one position of.
        rest: those of other rows, which a program may add something up over.
        inner: of the columns, the last one being the fastest in memory.
        strides: of each tensor along all of them; None where it does not vary.
        runs: which dimensions of the shape each of them is.
        between: rows next to each other are nearer in memory than columns of other positions in
            the first of two dimensions.
    """

    lead: tuple[Any, ...]
    rest: tuple[Any, ...]
    inner: tuple[Any, ...]
    strides: Mapping[str, tuple[Any, ...]]
    runs: tuple[tuple[int, ...], ...]
    between: bool

    @property
    def sizes(self) -> tuple[Any, ...]:
        return (*self.lead, *self.rest, *self.inner)

    def varies(self, name: str) -> tuple[bool, ...]:
        """Along which dimensions a tensor has more than one element."""
        return tuple(stride is not None for stride in self.strides[name])

    def like(
        self, given: Tensor, dims: Sequence[int], model: Tensor, shape: Sequence[Any]
    ) -> Tensor:
        """A tensor of some of the merged dimensions in the shape of one that varies along them.

        Args:
            given: has these dimensions.
            dims: which, in order.
            model: whose shape is wanted.
            shape: to which operands broadcast.
        """
        split = [d for dim in dims for d in self.runs[dim]]
        order = sorted(range(len(split)), key=split.__getitem__)
        wide = given.reshape([shape[d] for d in split])
        return wide.permute(order).reshape(model.shape)


def space_of(
    shape: Sequence[Any],
    inner: int,
    tensors: Mapping[str, Tensor],
    model: str,
    lead: frozenset[int] = frozenset(),
    groups: int = 0,
) -> Space:
    """Merges dimensions.

    Args:
        shape: to which operands broadcast.
        inner: how many of the last dimensions are normalised.
        tensors: with the rank of the shape, or of its rows alone.
        model: the tensor whose order in memory is followed.
        lead: dimensions of rows of which each program has one position.
        groups: how many of the first dimensions of columns are not merged with others, and slower.
    """
    rank = len(shape)
    strides = {name: _strides(t, shape) for name, t in tensors.items()}
    many = [d for d in range(rank) if not known_true(shape[d] == 1)]
    columns = [d for d in many if d >= rank - inner]
    rows = [d for d in many if d < rank - inner]
    single = rank - inner + groups
    zones = [
        [d for d in rows if d in lead],
        _in_memory([d for d in rows if d not in lead], strides[model]),
        _in_memory([d for d in columns if d < single], strides[model]),
        _in_memory([d for d in columns if d >= single], strides[model]),
    ]
    merged = [_merged(zone, shape, strides.values()) for zone in zones]
    merged[-1] = merged[-1] or [[]]  # a row, or a group, of one element
    merged[-2:] = [[*merged[-2], *merged[-1]]]
    runs = [run for zone in merged for run in zone]
    lead_sizes, rest, inner_sizes = (tuple(_product(shape, run) for run in zone) for zone in merged)
    return Space(
        lead_sizes,
        rest,
        inner_sizes,
        {name: _of_runs(own, runs) for name, own in strides.items()},
        tuple(map(tuple, runs)),
        _is_between(merged[1], merged[2], strides[model]),
    )  # fmt: skip


def _strides(tensor: Tensor, shape: Sequence[Any]) -> list[Any]:
    missing = [None] * (len(shape) - tensor.dim())
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return [*(None if known_true(size == 1) else stride for size, stride in sizes), *missing]


def _of_runs(strides: Sequence[Any], runs: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    return tuple(strides[run[-1]] if run else None for run in runs)


def _in_memory(dims: list[int], strides: Sequence[Any]) -> list[int]:
    """Dimensions, the slowest one first, as far as that is known."""
    found = {d: 0 if strides[d] is None else hint(strides[d]) for d in dims}
    if any(stride is None for stride in found.values()):
        return dims
    return sorted(dims, key=lambda d: -(found[d] or 0))


def _merged(dims: Sequence[int], shape: Sequence[Any], strides: Any) -> list[list[int]]:
    runs: list[list[int]] = []
    for d in dims:
        if runs and all(_in_one_piece(own, runs[-1][-1], d, shape[d]) for own in strides):
            runs[-1].append(d)
        else:
            runs.append([d])
    return runs


def _in_one_piece(strides: Sequence[Any], slow: int, fast: int, size: Any) -> bool:
    if strides[slow] is None or strides[fast] is None:
        return strides[slow] is strides[fast]
    return known_true(strides[slow] == strides[fast] * size)


def _product(shape: Sequence[Any], dims: Sequence[int]) -> Any:
    total: Any = 1
    for d in dims:
        total = total * shape[d]
    return total


def _is_between(
    rows: Sequence[Sequence[int]], columns: Sequence[Sequence[int]], strides: Sequence[Any]
) -> bool:
    if not rows or len(columns) < 2 or not columns[-1]:
        return False
    row, slow, fast = (strides[run[-1]] for run in (rows[-1], columns[-2], columns[-1]))
    known = [None if s is None else hint(s) for s in (row, slow, fast)]
    if any(s is None for s in known):
        return False
    near, far, nearest = (int(s or 0) for s in known)
    return nearest < near < far
