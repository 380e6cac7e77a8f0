"""One norm with its operands: its kernels, how they are cut and how they are launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fuser.specs import NormSpec
from fuser.torch_private import hint, known_true

from ...triton.launch import Target, run, target_of
from ...triton.space import Space, space_of
from ..reference import shape_of, spec_of
from .backward import Needs, Sum, sum_of
from .build import build
from .catalogue import record
from .config import Config, Sizes, Way, cut, parts, power_of_two, programs, way
from .layout import Layout, layout_of, require

MANY = 4096
"""Rows, or columns, where their number is not known while compiling."""


@dataclass(frozen=True)
class Statistics:
    """Of rows, in fp32 and the shape of the dimensions that are not normalised.

    Attributes:
        means: empty where x is not centred.
        lows: what these lack: a mean is two numbers, as their sum would be rounded as coarsely as a
            number of x.
        scales: what x was multiplied with; where eps is a floor, divided by.
    """

    means: Tensor
    lows: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Problem:
    """One norm with its operands, as `NormSpec` has them.

    Attributes:
        shape: to which they broadcast.
        origin: for the header of generated text.
        target: what the rules know of the device.
        launches: kernels are run, not only recorded.
    """

    spec: NormSpec
    captured: Sequence[Tensor]
    shape: tuple[Any, ...]
    origin: str
    target: Target
    launches: bool = True

    # -- tensors

    @property
    def rows(self) -> tuple[Any, ...]:
        """Sizes of the dimensions that are not normalised."""
        return self.shape[: len(self.shape) - self.spec.inner]

    @property
    def model(self) -> int | None:
        """The first operand that is not broadcast, whose order in memory results have."""
        return next((i for i, c in enumerate(self.captured) if self._has_shape(c)), None)

    def _has_shape(self, tensor: Tensor) -> bool:
        return all(known_true(a == b) for a, b in zip(tensor.shape, self.shape, strict=True))

    def result(self, dtype: torch.dtype | None) -> Tensor:
        """An empty one; without elements where there is no dtype."""
        if dtype is None:
            return self.captured[0].new_empty(0)
        if self.model is None:
            return self.captured[0].new_empty(self.shape, dtype=dtype)
        return torch.empty_like(self.captured[self.model], dtype=dtype)

    def statistics(self, *, keep: bool) -> Statistics:
        """Empty ones; without elements where they are not kept."""

        def row(kept: bool) -> Tensor:
            return self.captured[0].new_empty(self.rows if kept else 0, dtype=torch.float32)

        centred = keep and self.spec.centred
        return Statistics(row(centred), row(centred), row(keep))

    @property
    def empty(self) -> bool:
        return known_true(_product(self.shape) == 0)

    # -- forward

    def forward(self, y: Tensor, x: Tensor, found: Statistics, *, keep: bool) -> None:
        """Fills in the results and, where they are kept, the statistics."""
        given = {**self._operands(), "y": y, **({"x_out": x} if self.spec.kept else {})}
        given |= self._stored(found) if keep else {}
        launch = self._launching(given, backward=False)
        if launch.way is not Way.SPLIT:
            launch(launch.way.value, (keep,), launch.tiles)
            return
        sums = y.new_empty(self._parts(launch), 4 if self.spec.centred else 1, dtype=torch.float32)
        more = {"sums": sums}
        launch("part", (), launch.tiles * launch.parts, more)
        launch("apply", (keep, launch.block_p), launch.tiles * launch.parts, more)

    def _operands(self) -> dict[str, Tensor]:
        return {f"c{i}": c for i, c in enumerate(self.captured)}

    def _stored(self, found: Statistics) -> dict[str, Tensor]:
        centred = {"means": found.means, "lows": found.lows} if self.spec.centred else {}
        return {"scales": found.scales, **centred}

    def _parts(self, launch: Launching) -> Any:
        return _product(launch.space.rest) * launch.parts

    # -- backward

    def backward(
        self, grad: Tensor, grad_x: Tensor | None, found: Statistics, wanted: Sequence[int]
    ) -> list[Tensor]:
        """Gradients of the operands with these numbers."""
        given = {**self._operands(), "grad": grad, **self._stored(found)}
        given |= {} if grad_x is None else {"grad_x": grad_x}
        by = self._launching(given, backward=True).way
        read = {n for p in (self.spec.before, self.spec.after) for n in p.inputs}
        names = tuple(f"c{i}" for i in wanted if f"c{i}" in read)
        each = {f"d{n}": self._gradient(given[n], by) for n in names}
        given |= {name: t for name, t in each.items() if t is not None}
        launch = self._launching(given, backward=True, lead=self._lead(names, by), by=by)
        needs = Needs(names, grad_x is not None)
        sums = {f"d{n}": launch.sums(n) for n in names if each[f"d{n}"] is None}
        if by is Way.SPLIT:
            count = 2 if self.spec.centred else 1
            more = {"sums": grad.new_empty(self._parts(launch), count, dtype=torch.float32), **sums}
            launch("part_backward", (Needs(()),), launch.tiles * launch.parts, more)
            launch("apply_backward", (needs, launch.block_p), launch.tiles * launch.parts, more)
        else:
            launch(f"{by.value}_backward", (needs,), launch.all_programs, sums)
        return [
            self._finished(f"c{i}", launch, {**given, **sums})
            if f"c{i}" in names else torch.zeros_like(self.captured[i])
            for i in wanted
        ]  # fmt: skip

    def _varies(self, tensor: Tensor, dims: range) -> bool:
        """Whether a tensor has all elements along some dimensions."""
        return all(
            known_true(self.shape[d] == 1) or not known_true(tensor.shape[d] == 1) for d in dims
        )

    def _columns(self, tensor: Tensor) -> bool:
        return self._varies(tensor, range(len(self.rows), len(self.shape)))

    def _gradient(self, operand: Tensor, by: Way) -> Tensor | None:
        """An empty tensor for the gradient of every element, where kernels leave that."""
        if self._varies(operand, range(len(self.shape))):
            return torch.empty_like(operand)
        if by is Way.SPLIT and self._columns(operand):
            return self.result(torch.float32)
        return None

    def _lead(self, names: Sequence[str], by: Way) -> frozenset[int]:
        """Dimensions of rows along which an operand varies that is added up along others."""
        if by is Way.SPLIT:
            return frozenset()
        operands = [self.captured[int(n[1:])] for n in names]
        rows = range(len(self.rows))
        summed = [c for c in operands if self._columns(c) and not self._varies(c, rows)]
        return frozenset(d for c in summed for d in rows if not known_true(c.shape[d] == 1))

    def _finished(self, name: str, launch: Launching, given: Mapping[str, Tensor]) -> Tensor:
        """The gradient of an operand from what the kernels left."""
        operand, left = given[name], given[f"d{name}"]
        layout, space = launch.layout, launch.space
        if layout.whole(name):
            return left
        kind, varies = sum_of(layout, name, launch.way), layout.of(name)
        if kind is Sum.EACH:
            other = [d for d, s in enumerate(operand.shape) if known_true(s == 1)]
            return left.sum(other, keepdim=True).to(operand.dtype)
        columns = launch.columns_of_sum(name)
        dims = [*range(layout.outer), *columns]
        left = left.reshape(launch.shape_of_sum(name))
        added = launch.added(name)
        other = [added, *(i if i < added else i + 1 for i, d in enumerate(dims) if not varies[d])]
        if kind is Sum.PROGRAMS:
            dims = [*range(layout.lead), *columns]
            other = [added, *(d for d in range(layout.lead) if not varies[d])]
        total = left.sum(other)
        kept = [d for d in dims if varies[d]]
        return space.like(total, kept, operand, self.shape).to(operand.dtype)

    # -- launching

    def _launching(
        self,
        given: Mapping[str, Tensor],
        *,
        backward: bool,
        lead: frozenset[int] = frozenset(),
        by: Way | None = None,
    ) -> Launching:
        dtypes = {name: t.dtype for name, t in given.items()}
        model = f"c{self.model}" if self.model is not None else ("grad" if backward else "y")
        space = space_of(self.shape, self.spec.inner, given, model, lead)
        layout = layout_of(self.spec, dtypes, space)
        sizes = Sizes(
            _known(_product((*space.lead, *space.rest))),
            _known(_product(space.rest)),
            tuple(map(_known, space.inner)),
        )
        own = by or way(layout, sizes, self.target, backward=backward)
        config = cut(layout, sizes, self.target, own, backward=backward)
        return Launching(self, given, space, layout, sizes, own, config)


@dataclass(frozen=True)
class Launching:
    """Kernels of one direction."""

    of: Problem
    given: Mapping[str, Tensor]
    space: Space
    layout: Layout
    sizes: Sizes
    way: Way
    config: Config

    @property
    def tiles(self) -> Any:
        """Of the rows of one position of the leading dimensions."""
        return -(-_product(self.space.rest) // self.config.block_m)

    @property
    def pieces(self) -> Any:
        """Tiles of columns."""
        *slow, fast = self.space.inner
        return -(-_product(slow) // self.config.block_u) * -(-fast // self.config.block_f)

    @property
    def parts(self) -> int:
        """Of a row."""
        config, (*slow, fast) = self.config, self.sizes.inner
        pieces = -(-prod(slow) // config.block_u) * -(-fast // config.block_f)
        return parts(pieces, -(-self.sizes.rest // config.block_m), self.of.target)

    @property
    def block_p(self) -> int:
        return power_of_two(self.parts)

    @property
    def programs(self) -> int:
        """That share the rows of a position of the leading dimensions."""
        tiles = -(-self.sizes.rest // self.config.block_m)
        return programs(tiles, self.sizes.rows // max(self.sizes.rest, 1), self.of.target)

    @property
    def all_programs(self) -> Any:
        return _product(self.space.lead) * self.programs

    # -- sums

    def columns_of_sum(self, name: str) -> list[int]:
        """Dimensions of columns that a sum has: the fast one, all slow ones, or both."""
        layout = self.layout
        axes, last = layout.tile_axes(name), layout.outer + len(layout.inner) - 1
        slow = [*range(layout.outer, last)] if "u" in axes else []
        return [*slow, *([last] if "f" in axes else [])]

    def added(self, name: str) -> int:
        """The dimension of a sum that is added up at last: that of parts, or of programs."""
        by_row = sum_of(self.layout, name, self.way) is Sum.ROWS
        return 0 if by_row else self.layout.lead

    def shape_of_sum(self, name: str) -> list[Any]:
        """Parts and rows, or leading dimensions and programs; then columns."""
        columns = [self.space.sizes[d] for d in self.columns_of_sum(name)]
        if sum_of(self.layout, name, self.way) is Sum.PROGRAMS:
            return [*self.space.lead, self.programs, *columns]
        split = self.parts if self.way is Way.SPLIT else 1
        return [split, *self.space.lead, *self.space.rest, *columns]

    def sums(self, name: str) -> Tensor:
        """Memory for sums: zeros, where programs add to what is there."""
        like = self.given["grad"]
        make = like.new_empty if self.way is Way.WHOLE else like.new_zeros
        return make(self.shape_of_sum(name), dtype=torch.float32)

    # -- launching

    def __call__(
        self,
        stage: str,
        arguments: tuple[Any, ...],
        programs: Any,
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Runs one kernel.

        Args:
            stage: what it is for.
            arguments: of the stage.
            programs: how many there are.
            more: tensors without strides.
        """
        kernel = build(self.layout, stage, arguments, self.config, self.of.origin)
        known = {**self.given, **(more or {}), **self._numbers()}
        values = {n: known[n] if n in known else self._stride(n) for n, _ in kernel.signature}
        record(self.layout, stage, arguments, self.sizes, self.way, values)
        if self.of.launches:
            run(kernel, (programs,), values)

    def _numbers(self) -> dict[str, Any]:
        space, outer = self.space, self.layout.outer
        sizes = {f"{'D' if d < outer else 'N'}{d}": s for d, s in enumerate(space.sizes)}
        return {
            **sizes,
            "ROWS": _product(space.rest),
            "LENGTH": _product(space.inner),
            "PARTS": self.parts,
            "EACH": -(-self.pieces // self.parts),
            "PROGRAMS": self.programs,
        }

    def _stride(self, name: str) -> Any:
        """What `c0_1` means."""
        tensor, _, dim = name.rpartition("_")
        return self.space.strides[tensor][int(dim)]


def _product(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _known(size: Any) -> int:
    found = hint(size)
    return MANY if found is None else found


def problem(captured: Sequence[Tensor], spec: str, origin: str) -> Problem:
    """Lays out the operands of a norm.

    Raises:
        NoLayout: there are no kernels for it.
    """
    of = spec_of(spec)
    require(of, [c.dtype for c in captured])
    return Problem(of, captured, shape_of(captured), origin, target_of(captured[0].device))
