"""Kernels of one direction of a norm: how they are cut, and what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...triton.launch import run
from ...triton.space import Space
from .backward import Sum, sum_of
from .build import build
from .catalogue import record
from .config import Config, Sizes, Way, parts, power_of_two, programs
from .layout import Layout

if TYPE_CHECKING:
    from .problem import Problem


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
        return -(-product(self.space.rest) // self.config.block_m)

    @property
    def pieces(self) -> Any:
        """Tiles of columns."""
        *slow, fast = self.space.inner
        return -(-product(slow) // self.config.block_u) * -(-fast // self.config.block_f)

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
        return product(self.space.lead) * self.programs

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
        like = self.of.captured[0]
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
            "ROWS": product(space.rest),
            "LENGTH": product(space.inner) * len(self.of.spec.members),
            "PARTS": self.parts,
            "EACH": -(-self.pieces // self.parts),
            "PROGRAMS": self.programs,
        }

    def _stride(self, name: str) -> Any:
        """What `c0_1` means."""
        tensor, _, dim = name.rpartition("_")
        return self.space.strides[tensor][int(dim)]


def product(sizes: Sequence[Any]) -> Any:
    """Of sizes, which may be symbols."""
    total: Any = 1
    for size in sizes:
        total = total * size
    return total
