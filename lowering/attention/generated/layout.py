"""What a kernel's text depends on: the spec, dtypes, feature sizes, and who varies along what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuser.graph.program import SIZES, Program
from fuser.specs import AttentionSpec

from ...triton.kernel import pointer
from ...triton.trace import Input
from ..dtypes import narrower, rounds_coarsely, widened
from ..visible import Visible, visible
from . import integers
from .numerics import chooses, is_bounded, is_linear, keeps_a_key, overflows, tables_of

AXES = "bhqk"
"""Batch, query head, query, key: the dimensions of a captured tensor, by letter."""
POSITIONS = {"ib": "b", "ih": "h", "iq": "q", "ik": "k"}
"""Inputs of programs that are positions, and the axis that each counts."""


@dataclass(frozen=True)
class Operand:
    """q, k or v: its dtype and number of features."""

    dtype: torch.dtype
    features: int


@dataclass(frozen=True)
class Captured:
    """A captured tensor.

    Attributes:
        dtype: as it lies in memory.
        axes: those along which it differs, letters of `AXES`.
        is_scalar: it has no dimensions at all, and so no say in type promotion.
        rank: of a table that is read through `gather` only; -1 where it is none.
    """

    dtype: torch.dtype
    axes: str
    is_scalar: bool
    rank: int = -1

    @property
    def strides(self) -> str:
        """Suffixes of its stride arguments."""
        return self.axes if self.rank < 0 else "".join(str(i) for i in range(self.rank))


@dataclass(frozen=True)
class Layout:
    """Everything that decides the text of the kernels of one attention."""

    spec: AttentionSpec
    q: tuple[Operand, ...]
    k: tuple[Operand, ...]
    v: Operand
    captured: tuple[Captured, ...]
    grouped: bool = True
    """Several query heads share a key head."""
    interpreted: bool = False
    precision: str = "ieee"
    """Of products in fp32: `ieee` or `tf32`."""
    tma: bool = False
    """q, k, v and the gradient of the result are loaded through tensor descriptors."""
    warp_specialize: bool = False
    """Warps of a program share the work of a loop by what they do, not by what they do it to."""
    hoists: bool = True
    """What a loop does not change is computed before it; else in it."""
    whole_rows: bool = False
    """Every tile of queries is full: their number is a multiple of its size."""
    whole_keys: bool = False
    """The same for keys."""
    most: int = integers.MOST
    """Positions along a dimension are less."""

    @property
    def products(self) -> range:
        return range(len(self.q))

    @property
    def faithful(self) -> bool:
        """Whether intermediate values are rounded as in the region: its result is finer than they
        are, or a number of its program is infinite there."""
        spec = self.spec
        return (
            narrower(spec.score_dtype, spec.dtype)
            or narrower(spec.softmax_dtype, spec.dtype)
            or rounds_coarsely(spec.score, spec.dtype)
            or rounds_coarsely(spec.probs, spec.dtype)
            or overflows(spec.score, spec.score_dtype)
        )

    @property
    def score(self) -> Program:
        return self.spec.score if self.faithful else self.spec.score.widened()

    @property
    def probs(self) -> Program:
        return self.spec.probs if self.faithful else self.spec.probs.widened()

    @property
    def two_passes(self) -> bool:
        """Whether probabilities must be whole before the rest of the program sees them."""
        coarse = self.faithful and narrower(self.spec.softmax_dtype, self.spec.dtype)
        return coarse or not is_linear(self.probs, "p") or self._hides_nan

    @property
    def _hides_nan(self) -> bool:
        """Whether a query without keys, whose probabilities are NaN, may have a result that is not:
        `softmax(...).masked_fill(gone, 0)`."""
        spec = self.spec
        if not chooses(self.probs) or spec.sink or spec.dead_rows_are_zero:
            return False
        return spec.mask is not None or not keeps_a_key(self.score)

    @property
    def bounded(self) -> bool:
        """Whether neither program makes an infinity or NaN of finite numbers, nor its gradient."""
        return is_bounded(self.score) and is_bounded(self.probs)

    @property
    def in_base_two(self) -> bool:
        """Whether scores are kept in units of log 2, so that one multiplication is saved.

        Not where a score may be near the largest number: it would become infinite.
        """
        floats = any(c.dtype.is_floating_point and c.rank < 0 for c in self.captured)
        return not floats and not self.faithful and is_bounded(self.score)

    @property
    def visible(self) -> Visible | None:
        """What data decides of which scores count, where whole tiles may not.

        A bias of floating-point numbers for every query and key is not read for it: it would be
        read twice, and rarely hides anything.
        """
        if self.two_passes:  # what `probs` makes of a zero may be no zero
            return None
        biases = {
            f"c{i}"
            for i, c in enumerate(self.captured)
            if c.dtype.is_floating_point and {"q", "k"} <= set(c.axes)
        }
        found = visible(self.score, self.spec.mask, frozenset(biases))
        if found is None:
            return None
        read = [self.captured[i] for i in found.captured]
        return found if any(c.rank >= 0 or set(c.axes) & {"q", "k"} for c in read) else None

    @property
    def visible_axes(self) -> str:
        """Those of batch and head, as letters, along which `visible` differs."""
        found = self.visible
        names = [] if found is None else found.condition.inputs
        read = {POSITIONS.get(name, "") for name in names}
        read |= {a for n in names if n[0] == "c" for a in self.captured[int(n[1:])].axes}
        return "".join(a for a in "bh" if a in read)

    def exceeds(self, program: Program) -> bool:
        """Whether what a program makes of positions may need more than 32 bits."""
        wide = {name: self._input(name, torch.int64) for name in program.inputs}
        return integers.exceeds(program, wide, self.most)

    def _input(self, name: str, counted: torch.dtype) -> Input:
        """How an input of a program looks to the tracer; positions and sizes are `counted`."""
        if name in POSITIONS:
            return Input(counted)
        if name[0] == "c":
            captured = self.captured[int(name[1:])]
            dtype = captured.dtype if captured.rank >= 0 else self.held(captured.dtype)
            return Input(dtype, captured.is_scalar, captured.rank)
        if name in SIZES:
            return Input(counted, is_scalar=True)
        return Input(self.score_dtype if name[0] == "s" else self.p_dtype)

    @property
    def score_dtype(self) -> torch.dtype:
        """Of the products of q and k, as the program sees them."""
        return self.spec.score_dtype if self.faithful else torch.float32

    @property
    def p_dtype(self) -> torch.dtype:
        """Of probabilities, as the program sees them."""
        return self.spec.softmax_dtype if self.faithful else torch.float32

    def held(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that a program sees for a captured tensor: half is widened, unless faithful."""
        return torch.float32 if widened(dtype) and not self.faithful else dtype

    def inputs(self, program: Program) -> dict[str, Input]:
        """How they look to the tracer: positions are of 32 bits where those will do."""
        counted = torch.int64 if self.exceeds(program) else torch.int32
        return {name: self._input(name, counted) for name in program.inputs}


def layout_of(
    spec: AttentionSpec,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    *,
    interpreted: bool,
    precision: str,
) -> Layout:
    """The layout for these operands; only sizes of one, ranks and dtypes are looked at, and
    whether dimensions are short."""
    tables = tables_of(spec)
    sizes = [*q[0].shape[:3], v.shape[2]]
    short = all(isinstance(n, int) and n <= integers.FEW for n in sizes)
    return Layout(
        spec,
        tuple(_operand(x) for x in q),
        tuple(_operand(x) for x in k),
        _operand(v),
        tuple(_captured(x, f"c{i}" in tables) for i, x in enumerate(captured)),
        bool(q[0].shape[1] != v.shape[1]),
        interpreted,
        precision,
        most=integers.FEW if short else integers.MOST,
    )


def _operand(x: Tensor) -> Operand:
    return Operand(x.dtype, int(x.shape[-1]))


def _captured(x: Tensor, is_table: bool) -> Captured:
    if is_table:
        return Captured(x.dtype, "", False, x.ndim)
    letters = AXES[4 - x.ndim :]
    axes = "".join(a for a, size in zip(letters, x.shape, strict=True) if size != 1)
    return Captured(x.dtype, axes, x.ndim == 0)


def tensors(layout: Layout) -> Iterator[tuple[str, str, str]]:
    """(name, Triton type, stride suffixes) of the operands, in the order of the arguments."""
    for i in layout.products:
        yield f"q{i}", pointer(layout.q[i].dtype), "bhmd"
    for i in layout.products:
        yield f"k{i}", pointer(layout.k[i].dtype), "bhnd"
    yield "v", pointer(layout.v.dtype), "bhnd"
    for i, c in enumerate(layout.captured):
        yield f"c{i}", pointer(c.dtype), c.strides


def strides_of(name: str, suffixes: str, x: Tensor) -> dict[str, int]:
    """The stride arguments of a tensor; a captured tensor lacks leading dimensions."""
    if suffixes in ("bhmd", "bhnd") or suffixes.isdigit():
        return {f"{name}_{s}": x.stride(i) for i, s in enumerate(suffixes)}
    return {f"{name}_{s}": x.stride(AXES.index(s) - 4) for s in suffixes}
