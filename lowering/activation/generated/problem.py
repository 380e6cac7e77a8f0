"""One activation with its operands: its kernels, how they are cut and how they are launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from fuser.specs import ActivationSpec
from fuser.torch_private import hint, known_true

from ...triton.kernel import require_dtypes, stored
from ...triton.launch import Target, run, target_of
from ...triton.space import Space, space_of
from ..operands import gradients_of, has_shape, result_of, shape_of, spec_of
from .catalogue import record
from .config import Config, Sizes, cut, programs
from .kernels import build
from .layout import Layout, Sum

MANY = 4096
"""Rows, or columns, where their number is not known while compiling."""
LARGEST = 2**31
"""Positions within a row that are below it are counted in 32 bits."""


@dataclass(frozen=True)
class Problem:
    """One activation with its operands, as `ActivationSpec` has them.

    Attributes:
        origin: for the header of generated text.
        target: what the rules know of the device.
        launches: kernels are run, not only recorded.
    """

    spec: ActivationSpec
    captured: Sequence[Tensor]
    origin: str
    target: Target
    launches: bool = True

    def forward(self) -> Tensor:
        """The result."""
        y = result_of(replace(self.spec, dtype=stored(self.spec.dtype)), self.captured)
        if not known_true(y.numel() == 0):
            launch = self._launching({**self._operands(), "y": y})
            launch("forward", (), launch.tiles * launch.across)
        return y if y.dtype is self.spec.dtype else y.view(self.spec.dtype)

    def backward(self, grad: Tensor, needs: Sequence[bool]) -> list[Tensor]:
        """Gradients of the operands where `needs` says so."""
        wanted = tuple(j for j, need in enumerate(needs) if need)
        empty = gradients_of(grad, self.captured, self.spec, needs)
        if known_true(grad.numel() == 0) or not wanted:
            return [g.zero_() for g in empty]
        pairs = zip(wanted, empty, strict=True)
        each = {f"dc{j}": g for j, g in pairs if self._is_full(self.captured[j])}
        given = {**self._operands(), "grad": grad[None], **each}
        launch = self._launching(given, wanted)
        sums = {f"dc{j}": launch.sums(f"c{j}") for j in wanted if f"dc{j}" not in each}
        tiles = launch.programs if launch.adds_up(wanted) else launch.tiles
        lead = _product(launch.space.lead)
        launch("backward", (wanted,), lead * tiles * launch.across, sums)
        return [
            each[f"dc{j}"] if f"dc{j}" in each else launch.finished(f"c{j}", sums[f"dc{j}"])
            for j in wanted
        ]

    def _operands(self) -> dict[str, Tensor]:
        return {f"c{j}": c for j, c in enumerate(self.captured)}

    def _is_full(self, operand: Tensor) -> bool:
        """Whether an operand is not broadcast."""
        shape = shape_of(self.captured)
        return all(
            known_true(a == 1) or not known_true(b == 1)
            for a, b in zip(shape, operand.shape[1:], strict=True)
        )

    def _is_paired(self, name: str, given: Mapping[str, Tensor], space: Space) -> bool:
        """Whether columns of the two parts of a tensor take turns in memory."""
        if name in ("y", "grad") or self.spec.parts[int(name.strip("dc"))] != 2:
            return False
        tensor, stride = given[name], space.strides[name][-1]
        turns = tensor.is_floating_point() and known_true(tensor.stride(0) == 1)
        return turns and stride is not None and known_true(stride == 2)

    def _launching(self, given: Mapping[str, Tensor], wanted: Sequence[int] = ()) -> Launching:
        shape = shape_of(self.captured)
        planes = {n: t if n == "y" else t[0] for n, t in given.items()}
        model = _model(planes, shape)
        order = _in_memory(planes[model])
        arranged = {n: t.permute(order) for n, t in planes.items()}
        sizes = [shape[d] for d in order]
        space = _flattest(sizes, arranged, model)
        lead = _lead(sizes, space, [arranged[f"c{j}"] for j in wanted])
        if lead:
            space = space_of(sizes, len(space.runs[-1]), arranged, model, lead)
        columns = space.inner[0]
        known = Sizes(
            _known(_product(space.lead)), _known(_product(space.rest)), _known(columns)
        )  # fmt: skip
        layout = Layout(
            self.spec,
            tuple(c.dtype for c in self.captured),
            len(space.lead),
            len(space.rest),
            columns if isinstance(columns, int) else None,
            tuple((name, space.varies(name)) for name in given),
            not all(_is_near(own[-1], columns) for own in space.strides.values()),
            tuple(name for name in given if self._is_paired(name, given, space)),
        )
        return Launching(
            self, given, space, layout, known, cut(known, self.target), order, tuple(sizes)
        )


@dataclass(frozen=True)
class Launching:
    """Kernels of one direction.

    Attributes:
        given: tensors with strides.
        order: of the dimensions of the result in memory, the slowest first.
        shape: of the result, in this order.
    """

    of: Problem
    given: Mapping[str, Tensor]
    space: Space
    layout: Layout
    sizes: Sizes
    config: Config
    order: tuple[int, ...]
    shape: tuple[Any, ...]

    @property
    def tiles(self) -> Any:
        """Of rows."""
        return -(-_product(self.space.rest) // self.config.block_m)

    @property
    def across(self) -> Any:
        """Blocks of columns."""
        return -(-self.space.inner[0] // self.config.block_f)

    @property
    def programs(self) -> int:
        """That share the rows of one block of columns."""
        return programs(self.sizes, self.config, self.of.target)

    def adds_up(self, wanted: Sequence[int]) -> bool:
        """Whether a program has several tiles of rows."""
        kinds = {self.layout.sum_of(f"c{j}") for j in wanted}
        return not kinds.isdisjoint((Sum.COLUMNS, Sum.TILES))

    # -- sums

    def sums(self, name: str) -> Tensor:
        """Memory for the sums that a kernel leaves of an operand: see `Sum`."""
        parts, space = self.of.spec.parts[int(name[1:])], self.space
        kind = self.layout.sum_of(name)
        if kind is Sum.ROWS:
            shape = [parts, self.across, *space.lead, *space.rest]
        else:
            last = space.inner[0] if kind is Sum.COLUMNS else self.across
            shape = [parts, *space.lead, self.programs, last]
        return self.given["grad"].new_empty(shape, dtype=torch.float32)

    def finished(self, name: str, left: Tensor) -> Tensor:
        """The gradient of an operand from what the kernel left."""
        layout, space, operand = self.layout, self.space, self.given[name]
        own, kind, lead = layout.of(name), layout.sum_of(name), layout.lead
        if kind is Sum.ROWS:
            kept = [d for d in range(layout.rows) if own[d]]
            added = [1, *(2 + d for d in range(layout.rows) if not own[d])]
        else:
            kept = [d for d in range(lead) if own[d]]
            added = [*(1 + d for d in range(lead) if not own[d]), 1 + lead]
            kept, added = (
                ([*kept, layout.rows], added) if kind is Sum.COLUMNS else (kept, [*added, 2 + lead])
            )
        total = left.sum(added)
        back = [self.order.index(d) for d in range(len(self.order))]
        model = operand[0].permute(self.order)
        parts = [space.like(part, kept, model, self.shape) for part in total.unbind(0)]
        found = torch.stack([part.permute(back) for part in parts])
        return found.to(operand.dtype)

    # -- launching

    def __call__(
        self,
        stage: str,
        arguments: tuple[Any, ...],
        count: Any,
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Runs one kernel.

        Args:
            stage: what it is for.
            arguments: of the stage.
            count: of programs.
            more: tensors that are contiguous.
        """
        kernel = build(self.layout, stage, arguments, self.config, self.of.origin)
        known = {**self.given, **(more or {}), **self._numbers()}
        values = {
            n: known[n] if n in known else self._stride(n, more or {}) for n, _ in kernel.signature
        }
        record(self.layout, stage, arguments, self.sizes, values)
        if self.of.launches:
            run(kernel, (count,), values)

    def _numbers(self) -> dict[str, Any]:
        space = self.space
        rows = (*space.lead, *space.rest)
        return {
            **{f"D{d}": size for d, size in enumerate(rows)},
            "ROWS": _product(space.rest),
            "ALL": _product(rows),
            "N": space.inner[0],
            "PROGRAMS": self.programs,
        }

    def _stride(self, name: str, more: Mapping[str, Tensor]) -> Any:
        """What `c0_s1` and `c0_part` mean."""
        tensor, _, dim = name.rpartition("_")
        if dim == "part":
            return (self.given[tensor] if tensor in self.given else more[tensor]).stride(0)
        return self.space.strides[tensor][int(dim[1:])]


def _in_memory(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions, the slowest one first, as far as that is known."""
    strides = [hint(s) for s in tensor.stride()]
    if any(s is None for s in strides):
        return tuple(range(tensor.dim()))
    return tuple(sorted(range(tensor.dim()), key=lambda d: -(strides[d] or 0)))


def _model(tensors: Mapping[str, Tensor], shape: Sequence[Any]) -> str:
    """The first tensor that has every element in memory."""
    found = (
        name
        for name, tensor in tensors.items()
        if has_shape(tensor, shape) and all(hint(s) != 0 for s in tensor.stride())
    )
    return next(found, [*tensors][-1])


def _flattest(sizes: Sequence[Any], tensors: Mapping[str, Tensor], model: str) -> Space:
    """The space whose rows are the longest that are in one piece in all tensors."""
    spaces = (space_of(sizes, inner, tensors, model) for inner in range(len(sizes), 0, -1))
    return next(space for space in spaces if len(space.inner) == 1)


def _lead(sizes: Sequence[Any], space: Space, wanted: Sequence[Tensor]) -> frozenset[int]:
    """Dimensions of rows along which an operand varies that is added up along others."""
    last = set(space.runs[-1])
    rows = [d for d in range(len(sizes)) if d not in last and not known_true(sizes[d] == 1)]
    found: set[int] = set()
    for operand in wanted:
        own = {d for d in rows if not known_true(operand.shape[d] == 1)}
        if any(not known_true(operand.shape[d] == 1) for d in last) and own != set(rows):
            found |= own
    return frozenset(found)


def _is_near(stride: Any, columns: Any) -> bool:
    """Whether a position in a row is known to be less than 2³¹ elements from its beginning."""
    return known_true((1 if stride is None else stride) * columns < LARGEST)


def _product(sizes: Sequence[Any]) -> Any:
    return prod(sizes, start=1)


def _known(size: Any) -> int:
    found = hint(size)
    return MANY if found is None else found


def problem(captured: Sequence[Tensor], spec: str, origin: str) -> Problem:
    """Lays out the operands of an activation.

    Raises:
        NoKernel: there are no kernels for it.
    """
    of = spec_of(spec)
    require_dtypes([c.dtype for c in captured], written=[of.dtype])
    return Problem(of, captured, origin, target_of(captured[0].device))
