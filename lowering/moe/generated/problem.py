"""One mixture with its operands: its kernels, how they are cut and how they are launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.torch_private import hint, known_true

from ...triton.launch import Target, describable, run, target_of
from ..experts import Experts, accumulating, is_choice
from . import tune
from .build import build
from .catalogue import record
from .config import Config, choose
from .layout import Layout, Matrix, layout_of
from .sort import part, scan_programs
from .text import power_of_two

MANY = 512.0
"""Rows that an expert has on average, where their number is not known while compiling."""


@dataclass(frozen=True)
class Places:
    """Choices in the order of their experts.

    Attributes:
        order: by place, the number of the choice, `t * K + k`, in int32; empty where rows come in
            runs, since it is the place.
        starts: by expert, the place of its first one, and at the end how many there are.
    """

    order: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Problem:
    """One mixture with its operands, as `MoeSpec` has them.

    Attributes:
        indices: or the ends of runs.
        origin: for the header of generated text.
        target: what the rules know of the device.
    """

    layout: Layout
    x: Tensor
    indices: Tensor
    weights: Tensor
    experts: Experts
    origin: str
    target: Target

    # -- sizes

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    @property
    def choices(self) -> int:
        """Of every token."""
        return 1 if self.layout.spec.runs else self.indices.shape[1]

    @property
    def rows(self) -> int:
        """Choices of all tokens."""
        return self.tokens * self.choices

    @property
    def _each(self) -> float:
        """Choices of an expert on average, as far as they are known."""
        rows = hint(self.rows)
        return MANY if rows is None else rows / self.layout.spec.experts

    def config(self, stage: str) -> Config:
        """How a stage is cut."""
        found = tune.lookup(self, stage)
        return found or choose(stage, self.layout, self.target.arch, self._each)

    # -- stages

    def sort(self) -> Places:
        """Sorts the choices; an index of no expert is nowhere."""
        if self.layout.spec.runs:
            # ends that decrease, or are too large, stay inside all the same
            starts = torch.cummax(F.pad(self.indices, (1, 0)), 0).values.clamp(max=self.rows)
            return Places(starts.new_empty(0, dtype=torch.int32), starts.to(torch.int32))
        experts = self.layout.spec.experts
        order = self.indices.new_empty(self.rows, dtype=torch.int32)
        starts = self.indices.new_empty(experts + 1, dtype=torch.int32)
        index, numbers = self.indices.dtype, {"CHOICES": self.rows, "K": self.choices}
        given = {"indices": self.indices, "order": order, "starts": starts}
        parts: Any = torch.sym_max(-(-self.rows // part(self.layout)), 1)
        if known_true(parts == 1):
            self.launch("place", (index, True), 1, given, **numbers)
            return Places(order, starts)
        counts = self.indices.new_empty(parts + 1, power_of_two(experts), dtype=torch.int32)
        given["counts"] = counts
        self.launch("count", (index,), parts, given, **numbers)
        self.launch("scan", (), scan_programs(self.layout), given, PARTS=parts)
        self.launch("place", (index, False), parts, given, PARTS=parts, **numbers)
        return Places(order, starts)

    def up(self, places: Places, *, keep: bool, hidden: bool = True) -> tuple[Tensor, Tensor]:
        """Hidden columns by place, and what is saved for the backward, `(rows, columns, hidden)`;
        nothing in the place of what is not wanted."""
        layout = self.layout
        columns = len(layout.columns)
        found = self.x.new_empty(self.rows if hidden else 0, layout.hidden, dtype=layout.dtype)
        saved = self.x.new_empty(
            self.rows if keep else 0, columns, layout.hidden, dtype=layout.dtype
        )
        given = {**self._rows(places), **self._experts(), "hidden": found, "saved": saved}
        self.launch("up", (keep, hidden), self._tiles("up", layout.hidden), given)
        return found, saved

    def down(self, places: Places, hidden: Tensor) -> Tensor:
        """The result."""
        layout = self.layout
        y = self._room(layout.width, layout.spec.dtype)
        given = {**self._rows(places), **self._experts(), "hidden": hidden, "y": y}
        self.launch("down", (), self._tiles("down", layout.width), given)
        return self._by_token(y)

    def of_hidden(
        self, places: Places, grad: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the first products, hidden columns, gradients of weights `(T, K)`."""
        layout = self.layout
        dh, again = torch.empty_like(saved), saved.new_empty(self.rows, layout.hidden)
        across = -(-layout.hidden // self.config("hidden").block_n)
        partial = saved.new_zeros(self.rows, across, dtype=torch.float32)
        given = {
            **self._rows(places), **self._experts(), "grad": grad, "saved": saved, "dh": dh,
            "again": again, "partial": partial,
        }  # fmt: skip
        self.launch("hidden", (), self._tiles("hidden", layout.hidden), given)
        return dh, again, partial.sum(1).reshape(self.weights.shape)

    def of_tokens(self, places: Places, dh: Tensor) -> Tensor:
        """The gradient of x."""
        dx = self._room(self.layout.features, self.x.dtype)
        given = {**self._rows(places), **self._experts(), "dh": dh, "dx": dx}
        self.launch("tokens", (), self._tiles("tokens", self.layout.features), given)
        return self._by_token(dx)

    def of_tensor(
        self,
        stage: str,
        places: Places,
        grads: Sequence[Tensor],
        column: int | None,
        given: Mapping[str, Any],
    ) -> None:
        """Fills in the gradient of a matrix, or of what is added to a product, of all experts.

        Args:
            stage: `matrix` or `bias`.
            places: the choices in the order of their experts.
            grads: one for all experts, or one each.
            column: which input of the activation the product makes; None for the last product.
            given: the gradients that it starts from.
        """
        layout, config = self.layout, self.config(stage)
        p = layout.last if column is None else layout.columns[column].product
        rows = layout.width if column is None else layout.hidden
        columns = layout.hidden if column is None else layout.features
        if stage == "matrix":
            tiles = -(-rows // config.block_m) * -(-columns // config.block_n)
        else:
            tiles = -(-rows // config.block_n)
        own = self._of_experts(f"d{stage[0]}{p}", grads)
        given = {**self._rows(places), **given, **own}
        self.launch(stage, (column,), tiles * layout.spec.experts, given)

    # -- launching

    def launch(
        self, stage: str, arguments: tuple[Any, ...], programs: int, given: Mapping[str, Any],
        **numbers: int,
    ) -> None:  # fmt: skip
        """Runs one kernel.

        Args:
            stage: what it is for.
            arguments: of the stage.
            programs: how many there are.
            given: tensors by their names, of which the kernel takes what it wants.
            numbers: its own numbers.
        """
        record(self.layout, stage, arguments, self._each)
        config = self.config(stage)
        kernel = build(self.layout, stage, arguments, config, self.origin)
        values: dict[str, Any] = {"K": self.choices, **numbers, **given}
        for name, _ in kernel.signature:
            if name not in values:
                values[name] = _stride(name, given)
        run(kernel, (programs,), values, scratch_on=self.x.device if config.tma else None)

    def _rows(self, places: Places) -> dict[str, Tensor]:
        return {
            "x": self.x, "weights": self.weights, "order": places.order, "starts": places.starts,
        }  # fmt: skip

    def _experts(self) -> dict[str, Tensor]:
        spec, experts = self.layout.spec, self.experts
        return dict(
            zip([*spec.matrices, *spec.added], [*experts.matrices, *experts.biases], strict=True)
        )

    def _of_experts(self, name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        if not self.layout.spec.separate:
            return {name: tensors[0]}
        return {f"{name}_{e}": t for e, t in enumerate(tensors)}

    def _tiles(self, stage: str, columns: int) -> int:
        """Programs for tiles of rows and of columns; experts have at most so many tiles of rows."""
        config = self.config(stage)
        partial: Any = torch.sym_min(self.rows, self.layout.spec.experts)
        tiles = self.rows // config.block_m + partial
        strips = -(-tiles // config.group)
        programs: Any = strips * config.group * -(-columns // config.block_n)
        if config.persistent:
            programs = torch.sym_min(programs, config.persistent * self.target.processors)
        return programs

    def _room(self, width: int, dtype: torch.dtype) -> Tensor:
        """For the result of each choice; rows of no run are zeros."""
        make = self.x.new_zeros if self.layout.spec.runs else self.x.new_empty
        return make(self.rows, width, dtype=dtype)

    def _by_token(self, rows: Tensor) -> Tensor:
        """Sums over the choices of each token. A choice of no expert is dropped, or, where eager
        stops at it, gives NaN."""
        spec = self.layout.spec
        if spec.runs:
            return rows
        valid = is_choice(self.indices, spec).unsqueeze(-1)
        each = rows.view(self.tokens, self.choices, rows.shape[-1])
        each = torch.where(valid, each, 0.0 if spec.dropping else torch.nan)
        return each.sum(1, dtype=accumulating(rows.dtype)).to(rows.dtype)


_LETTERS = {
    "x": "td", "grad": "td", "weights": "tk", "indices": "tk", "m": "eoi", "b": "eo",
}  # fmt: skip
"""Dimensions of tensors that are not ours, whose strides a kernel is told."""


def _stride(name: str, given: Mapping[str, Tensor]) -> int:
    """What `m0_o` means: the stride of a tensor, or of the first of those of all experts."""
    stem, _, letter = name.rpartition("_")
    letters = _LETTERS[stem.rstrip("0123456789").removeprefix("d")]
    tensor = given[stem] if stem in given else given[f"{stem}_0"]
    return tensor.stride(letters.index(letter) - len(letters))


def problem(x: Tensor, indices: Tensor, weights: Tensor, experts: Experts, origin: str) -> Problem:
    """Lays out the operands of a mixture.

    Raises:
        NoKernel: there are no kernels for it.
    """
    spec = experts.spec
    each = spec.experts if spec.separate else 1
    experts = Experts(spec, _alike(experts.matrices, each), _alike(experts.biases, each))
    firsts = experts.matrices[::each]
    layout = layout_of(
        spec,
        x.dtype,
        weights.dtype,
        [_matrix(m) for m in firsts],
        [b.dtype for b in experts.biases[::each]],
        precision="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        interpreted=x.device.type == "cpu",
    )
    return Problem(layout, x, indices, weights, experts, origin, target_of(x.device))


def _matrix(tensor: Tensor) -> Matrix:
    """Where a size is a symbol, `int` guards it. A matrix that an expert has for itself needs no
    `along`: there is no descriptor for several."""
    *_, rows, columns = tensor.shape
    views = {"i": tensor, "o": tensor.mT} if tensor.ndim == 3 else {}
    along = next((axis for axis, view in views.items() if describable(view)), "")
    return Matrix(int(rows), int(columns), tensor.dtype, along)


def _alike(tensors: Sequence[Tensor], each: int) -> list[Tensor]:
    """Tensors of which those that all experts have share their strides, as kernels expect it."""
    found: list[Tensor] = []
    for start in range(0, len(tensors), each):
        own = tensors[start : start + each]
        alike = all(t.stride() == own[0].stride() for t in own)
        found += own if alike else [t.contiguous() for t in own]
    return found
