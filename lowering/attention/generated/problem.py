"""One attention with its operands: its kernels, how they are cut and how they are launched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fuser.specs import AttentionSpec
from fuser.torch_private import hint

from ...triton.launch import Target, describable, run, target_of
from ..gpu import share
from . import tune
from .block_table import FEWEST_TILES, lists
from .build import build
from .catalogue import record
from .config import Config, choose
from .layout import Layout, layout_of, strides_of, tensors

Arguments = Mapping[str, "tuple[Tensor, str]"]
"""Tensors by the names of a kernel's arguments, with letters for their dimensions."""


@dataclass(frozen=True)
class Problem:
    """One attention with its operands.

    Attributes:
        q: each `(B, H, SQ, D_i)`.
        k: each `(B, HKV, SK, D_i)`.
        v: `(B, HKV, SK, DV)`.
        captured: 0-d, or broadcasting against `(B, H, SQ, SK)`; tables have any shape.
        seed: of the dropout, one int64 on the same device.
        origin: for the header of generated text.
        target: what the rules know of the device.
        atomics: gradients of queries may be added up in any order.
    """

    layout: Layout
    q: Sequence[Tensor]
    k: Sequence[Tensor]
    v: Tensor
    captured: Sequence[Tensor]
    seed: Tensor | None
    origin: str
    target: Target
    atomics: bool = False
    _kinds: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        heads, key_heads = self.q[0].shape[1], self.v.shape[1]
        return {
            "B": self.q[0].shape[0], "H": heads, "HKV": key_heads, "GROUP": heads // key_heads,
            "SQ": self.q[0].shape[2], "SK": self.v.shape[2],
        }  # fmt: skip

    @property
    def rows(self) -> tuple[int, int, int]:
        """Batch, query heads, queries."""
        return self.q[0].shape[0], self.q[0].shape[1], self.q[0].shape[2]

    def config(self, stage: str, *, rows: int | None = None) -> Config:
        """How a stage is cut.

        Args:
            stage: one of `build.STAGES`.
            rows: queries of a program's heads together, where that is not `SQ`.
        """
        layout, target, visits = self.layout, self.target, self._visits
        found = tune.lookup(layout, stage, target, self.sizes, visits, self.v.device)
        rows = self.sizes["SQ"] if rows is None else rows
        return found or choose(stage, layout, target, rows=rows, visits=visits)

    @property
    def _visits(self) -> float:
        """Keys that a query sees on average, as far as sizes and the mask tell."""
        rows, keys = hint(self.sizes["SQ"]), hint(self.sizes["SK"])
        return math.inf if keys is None else keys * share(self.layout.spec.mask, rows, keys)

    def arguments(self) -> dict[str, Any]:
        """Operands, their strides and sizes, by the names of a kernel's arguments."""
        operands = [*self.q, *self.k, self.v, *self.captured]
        found: dict[str, Any] = {}
        for (name, _, suffixes), x in zip(tensors(self.layout), operands, strict=True):
            found[name] = x
            found.update(strides_of(name, suffixes, x))
        if self.seed is not None:
            found["seed"] = self.seed
        return {**found, **self.sizes}

    def launch(
        self,
        stage: str,
        arguments: tuple[Any, ...],
        grid: tuple[int, ...],
        config: Config,
        given: Arguments,
        **numbers: int,
    ) -> None:
        """Runs one kernel.

        Args:
            stage: what it is for.
            arguments: of the stage.
            grid: numbers of programs.
            config: how it is cut.
            given: its own tensors.
            numbers: its own numbers.
        """
        rows = self.q[0].shape[2] * (self.sizes["GROUP"] if arguments[:1] == (True,) else 1)
        record(self.layout, stage, arguments, rows, self._visits)
        loaded = [*self.q, *self.k, self.v, *(given[n][0] for n in ("do",) if n in given)]
        if config.tma and not all(map(describable, loaded)):
            config = replace(config, tma=False, warp_specialize=False)
        whole = self._whole(config) if stage in tune.STAGES else (False, False)
        kernel = build(self.layout, stage, arguments, config, self.origin, whole=whole)
        values = {**self.arguments(), **numbers}
        for name, (x, letters) in given.items():
            values[name] = x
            values.update(
                {f"{name}_{s}": stride for s, stride in zip(letters, x.stride(), strict=True)}
            )
        run(kernel, grid, values, scratch_on=self.v.device if config.tma else None)

    def _whole(self, config: Config) -> tuple[bool, bool]:
        """Whether tiles of queries, and tiles of keys, are all full, as far as that is known."""
        numbers = ((self.sizes["SQ"], config.block_m), (self.sizes["SK"], config.block_n))
        rows, keys = (isinstance(size, int) and size % block == 0 for size, block in numbers)
        return rows, keys

    def lists(self, config: Config, *, of_keys: bool = False, backward: bool = False) -> Arguments:
        """Which tiles are worth a visit, where data decides that and there are many.

        Args:
            config: how the kernel is cut that will read it.
            of_keys: the tiles of queries that each tile of keys visits, not the other way round.
            backward: a query that sees no key gives NaN to all keys, where eager does.

        Returns:
            The arguments `order` and `counts`; nothing where the kernel goes by bounds alone.
        """
        layout, sizes = self.layout, self.sizes
        found = layout.visible
        if found is None:
            return {}
        if (
            sizes["SQ"] < FEWEST_TILES * config.block_m
            or sizes["SK"] < FEWEST_TILES * config.block_n
        ):
            return {}
        kinds, dead = self._table(config)
        spec = layout.spec
        if backward and found.in_score and not spec.sink and not spec.dead_rows_are_zero:
            kinds = torch.where(dead.unsqueeze(-1) > 0, kinds.clamp(min=1), kinds)
        order, counts = lists(kinds.transpose(-1, -2) if of_keys else kinds)
        letters = layout.visible_axes + "tn"
        return {"order": (order, letters), "counts": (counts, letters)}

    def _table(self, config: Config) -> tuple[Tensor, Tensor]:
        shape = (config.block_m, config.block_n)
        if shape not in self._kinds:
            axes, sizes = self.layout.visible_axes, self.sizes
            own = {
                "OWN_B": sizes["B"] if "b" in axes else 1,
                "OWN_H": sizes["H"] if "h" in axes else 1,
            }
            down, across = tiles(sizes["SQ"], shape[0]), tiles(sizes["SK"], shape[1])
            leading = [sizes[a.upper()] for a in axes]
            kinds = self.v.new_empty(*leading, down, across, dtype=torch.int8)
            dead = self.v.new_empty(*leading, down, dtype=torch.int8)
            given = {"kinds": (kinds, axes + "mn"), "dead": (dead, axes + "m")}
            self.launch("table", (), (down * math.prod(leading),), config, given, **own)
            self._kinds[shape] = kinds, dead
        return self._kinds[shape]


def problem(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
    atomics: bool = False,
) -> Problem:
    """Reads the spec and lays out its operands."""
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    layout = layout_of(
        spec_of(spec), q, k, v, captured,
        interpreted=v.device.type == "cpu", precision=precision,
    )  # fmt: skip
    return Problem(layout, q, k, v, captured, seed, origin, target_of(v.device), atomics)


@lru_cache(maxsize=1024)
def spec_of(text: str) -> AttentionSpec:
    """The spec that an operator's argument describes."""
    return AttentionSpec.from_text(text)


def tiles(size: int, block: int) -> int:
    """How many tiles cover so many positions."""
    return -(-size // block)
