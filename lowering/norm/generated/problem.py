"""One norm with its operands: which of its kernels run, and what is made of what they leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuser.specs import NormSpec
from fuser.torch_private import hint, known_true

from ...triton.kernel import require_dtypes, stored
from ...triton.launch import Target, target_of
from ...triton.space import space_of
from ..reference import members, shape_of, shape_of_result, spec_of, together
from .backward import Needs, Sum, sum_of
from .config import Sizes, Way, cut, way
from .launching import Launching, product
from .layout import layout_of

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

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.means, self.lows, self.scales


@dataclass(frozen=True)
class Problem:
    """One norm with its operands, as `NormSpec` has them.

    Attributes:
        shape: to which they broadcast, without the members of pairs.
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
        every = enumerate(self.captured)
        return next((i for i, c in every if self._has_shape(c) and not is_stand_in(c)), None)

    @property
    def full_shape(self) -> tuple[Any, ...]:
        return (*self.shape, *self.spec.parts)

    def _has_shape(self, tensor: Tensor) -> bool:
        return all(known_true(a == b) for a, b in zip(tensor.shape, self.full_shape, strict=True))

    def result(self, dtype: torch.dtype) -> Tensor:
        """An empty one."""
        if self.model is None:
            return self.captured[0].new_empty(self.full_shape, dtype=dtype)
        return torch.empty_like(self.captured[self.model], dtype=dtype)

    def results(self) -> list[Tensor]:
        """Empty ones: y_0, y_1, ... and, where it is kept, x; of eight bits as bytes."""
        return [
            self.captured[0].new_empty(shape_of_result(self.spec, i, self.shape), dtype=dtype)
            if i in self.spec.by_row else self.result(dtype)
            for i, dtype in enumerate(map(stored, self.spec.results))
        ]  # fmt: skip

    def typed(self, results: Sequence[Tensor]) -> list[Tensor]:
        """The results in the dtypes that they have."""
        pairs = zip(results, self.spec.results, strict=True)
        return [r if r.dtype is dtype else r.view(dtype) for r, dtype in pairs]

    def _all_apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: t
            for name, tensor in tensors.items()
            for n, t in members(self.spec, name, tensor).items()
        }

    def statistics(self, *, keep: bool) -> Statistics:
        """Empty ones; without elements where they are not kept."""

        def row(kept: bool) -> Tensor:
            return self.captured[0].new_empty(self.rows if kept else 0, dtype=torch.float32)

        keep = keep and not self.spec.bare
        centred = keep and self.spec.centred
        return Statistics(row(centred), row(centred), row(keep))

    @property
    def empty(self) -> bool:
        return known_true(product(self.shape) == 0)

    # -- forward

    def forward(self, results: Sequence[Tensor], found: Statistics, *, keep: bool) -> None:
        """Fills in the results and, where they are kept, the statistics."""
        names = [*(f"y_{i}" for i in range(len(self.spec.dtypes))), "x_out"]
        given = self._operands() | self._all_apart(dict(zip(names, results, strict=False)))
        given |= self._stored(found) if keep else {}
        launch = self._launching(given, backward=False)
        if launch.way is not Way.SPLIT:
            launch(launch.way.value, (keep,), launch.tiles)
            return
        count = 4 if self.spec.centred else 1
        more = {"sums": results[0].new_empty(self._parts(launch), count, dtype=torch.float32)}
        launch("part", (), launch.tiles * launch.parts, more)
        launch("apply", (keep, launch.block_p), launch.tiles * launch.parts, more)

    def _operands(self) -> dict[str, Tensor]:
        return self._all_apart({f"c{i}": c for i, c in enumerate(self.captured)})

    def _stored(self, found: Statistics) -> dict[str, Tensor]:
        if self.spec.bare:
            return {}
        centred = {"means": found.means, "lows": found.lows} if self.spec.centred else {}
        return {"scales": found.scales, **centred}

    def _parts(self, launch: Launching) -> Any:
        return product(launch.space.rest) * launch.parts

    # -- backward

    def backward(
        self, grads: Mapping[int, Tensor], grad_x: Tensor | None, found: Statistics,
        wanted: Sequence[int],
    ) -> list[Tensor]:  # fmt: skip
        """Gradients of the operands with these numbers; `grads` are those of results."""
        given = {f"grad{i}": grad for i, grad in grads.items()}
        given |= {} if grad_x is None else {"grad_x": grad_x}
        given = self._operands() | self._all_apart(given) | self._stored(found)
        by = self._launching(given, backward=True).way
        each = {i: [*members(self.spec, f"c{i}", self.captured[i])] for i in wanted}
        read = self._read(grads)
        names = tuple(n for i in wanted for n in each[i] if n in read)
        like = [*grads.values()]
        whole = {
            i: self._gradient(self.captured[i], like, by) for i in wanted if set(each[i]) & read
        }
        for i, tensor in whole.items():
            given |= {} if tensor is None else members(self.spec, f"dc{i}", tensor)
        launch = self._launching(given, backward=True, lead=self._lead(names, given, by), by=by)
        needs = Needs(names, tuple(grads), grad_x is not None)
        sums = {f"d{n}": launch.sums(n) for n in names if f"d{n}" not in given}
        if by is Way.SPLIT:
            count = 2 if self.spec.centred else 1
            like = self.captured[0]
            more = {"sums": like.new_empty(self._parts(launch), count, dtype=torch.float32), **sums}
            start = Needs((), needs.results)
            launch("part_backward", (start,), launch.tiles * launch.parts, more)
            launch("apply_backward", (needs, launch.block_p), launch.tiles * launch.parts, more)
        else:
            launch(f"{by.value}_backward", (needs,), launch.all_programs, sums)
        given |= sums
        return [self._together(i, whole.get(i), each[i], needs, launch, given) for i in wanted]

    def _read(self, results: Iterable[int]) -> set[str]:
        """What programs of some results read, by the names that kernels have for operands."""
        spec = self.spec
        own = {f"{n}{m}" for n in spec.before.inputs for m in ("", *spec.members)}
        return own | {n for i in results for p in spec.programs(i) for n in p.inputs}

    def _together(
        self, number: int, left: Tensor | None, names: Sequence[str], needs: Needs,
        launch: Launching, given: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """The gradient of an operand, of those of its members; zero of what no program reads."""
        made = [name in needs.operands for name in names]
        if not any(made):
            return torch.zeros_like(self.captured[number])
        if left is not None and launch.layout.whole(names[0]) and all(made):
            return left
        found = [
            torch.zeros_like(given[name]) if not here
            else given[f"d{name}"] if launch.layout.whole(name)
            else self._finished(name, launch, given)
            for name, here in zip(names, made, strict=True)
        ]  # fmt: skip
        kept = self.captured[number].shape
        return together(self.spec, found).reshape(kept)

    def _varies(self, tensor: Tensor, dims: range) -> bool:
        """Whether a tensor has all elements along some dimensions."""
        return all(
            known_true(self.shape[d] == 1) or not known_true(tensor.shape[d] == 1) for d in dims
        )

    def _columns(self, tensor: Tensor) -> bool:
        return self._varies(tensor, range(len(self.rows), len(self.shape)))

    def _gradient(self, operand: Tensor, grads: Sequence[Tensor], by: Way) -> Tensor | None:
        """An empty tensor for the gradient of every element, where kernels leave that."""
        if self._varies(operand, range(len(self.shape))):
            return gradient_like(operand, grads)
        if by is Way.SPLIT and self._columns(operand):
            found = self.result(torch.float32)
            for dim in range(-self.spec.apart, 0):
                found = found.narrow(dim, 0, operand.shape[dim])
            return found
        return None

    def _lead(self, names: Sequence[str], given: Mapping[str, Tensor], by: Way) -> frozenset[int]:
        """Dimensions of rows along which an operand varies that is added up along others."""
        if by is Way.SPLIT:
            return frozenset()
        operands = [given[name] for name in names]
        rows = range(len(self.rows))
        summed = [c for c in operands if self._columns(c) and not self._varies(c, rows)]
        return frozenset(d for c in summed for d in rows if not known_true(c.shape[d] == 1))

    def _finished(self, name: str, launch: Launching, given: Mapping[str, Tensor]) -> Tensor:
        """The gradient of an operand from what the kernels left."""
        operand, left = given[name], given[f"d{name}"]
        layout, space = launch.layout, launch.space
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
        like = ("grad" if backward else "y") if self.model is None else f"c{self.model}"
        model = next(name for name in given if name.startswith(like))
        space = space_of(self.shape, self.spec.inner, given, model, lead, self.spec.groups)
        layout = layout_of(self.spec, dtypes, space)
        sizes = Sizes(
            _known(product((*space.lead, *space.rest))),
            _known(product(space.rest)),
            tuple(map(_known, space.inner)),
        )
        own = by or way(layout, sizes, self.target, backward=backward)
        config = cut(layout, sizes, self.target, own, backward=backward)
        return Launching(self, given, space, layout, sizes, own, config)


def _known(size: Any) -> int:
    found = hint(size)
    return MANY if found is None else found


def is_stand_in(operand: Tensor) -> bool:
    """Whether an operand has no memory: it was not saved, as gradients do not read it."""
    sizes = zip(operand.shape, operand.stride(), strict=True)
    return any(known_true(stride == 0) and not known_true(size == 1) for size, stride in sizes)


def gradient_like(operand: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """An empty gradient in the order in memory of what it is of; where that was not saved, in the
    order of that of a result."""
    same = [grad for grad in grads if _same_shape(grad, operand)]
    like = same[0] if same and is_stand_in(operand) else operand
    return torch.empty_like(like, dtype=operand.dtype)


def _same_shape(a: Tensor, b: Tensor) -> bool:
    sizes = zip(a.shape, b.shape, strict=a.dim() == b.dim())
    return a.dim() == b.dim() and all(known_true(s == t) for s, t in sizes)


def problem(captured: Sequence[Tensor], spec: str, origin: str) -> Problem:
    """Lays out the operands of a norm.

    Raises:
        NoKernel: there are no kernels for it.
    """
    of = spec_of(spec)
    require_dtypes((*(c.dtype for c in captured), of.norm_dtype), written=of.results)
    shape = shape_of(captured)
    shape = shape[: len(shape) - of.apart]
    return Problem(of, captured, shape, origin, target_of(captured[0].device))
