"""The backward: gradients of q, k, v and captured tensors, by the kernels that own their tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...triton.launch import Target
from .backward import Needs
from .config import splits_keys
from .layout import AXES
from .problem import Arguments, Problem, tiles
from .recomputation import statistics


def backward(
    of: Problem, grad: Tensor, out: Tensor, row_max: Tensor, row_sum: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of q, k, v and captured, in this order, where wanted."""
    count = len(of.q)
    spec = of.layout.spec
    captured = [i for i, w in enumerate(wanted[2 * count + 1 :]) if w]
    read = {*spec.score.inputs, *spec.probs.inputs}
    needs = Needs(
        any(wanted[:count]),
        any(wanted[count : 2 * count]),
        wanted[2 * count],
        tuple(c for c in captured if f"c{c}" in read),
        spec.sink in {f"c{c}" for c in captured},
        of.atomics,
    )
    return _Backward(of, grad, out, row_max, row_sum, needs).run(wanted, captured)


PROGRAMS = 4
"""For each processor, where sums over the batch are cut into parts."""


def parts_of(programs: int, repeats: int, target: Target) -> int:
    """Into how many parts a sum is cut, none of them empty.

    Args:
        programs: that there are anyway, one for each sum.
        repeats: terms of a sum.
        target: the device.
    """
    if programs >= target.processors or repeats == 1:
        return 1
    parts = max(1, min(PROGRAMS * target.processors // programs, repeats // 2))
    return tiles(repeats, tiles(repeats, parts))


class _Backward:
    def __init__(
        self,
        of: Problem,
        grad: Tensor,
        out: Tensor,
        row_max: Tensor,
        row_sum: Tensor,
        needs: Needs,
    ) -> None:
        self.of, self.grad, self.needs = of, grad, needs
        self.over_rows, self.over_keys = needs.over_rows(of.layout), needs.over_keys(of.layout)
        self.row_max, self.row_sum = row_max, row_sum
        self.statistics = self._statistics()
        self.delta = self._delta(out)

    def run(self, wanted: Sequence[bool], captured: Sequence[int]) -> list[Tensor]:
        of, needs = self.of, self.needs
        dk = [x.new_empty(x.shape) for x in of.k if needs.k]
        dv = of.v.new_empty(of.v.shape)
        grads: dict[int, Tensor] = {}
        rows_wanted = bool(needs.q or self.over_rows)
        keys_wanted = bool(needs.k or needs.v or self.over_keys)
        dq, sums = self._of_queries() if rows_wanted else ([], {})
        if rows_wanted and not needs.atomics:
            self._over_rows("rows", (needs,), self._named(dq, sums))
        if keys_wanted or (rows_wanted and needs.atomics):
            grads.update(self._keys(dk, dv, dq, sums))
        grads.update({c: x[..., None].sum_to_size(of.captured[c].shape) for c, x in sums.items()})
        for c in needs.over_tiles(of.layout):
            grads[c] = self._tiles(c)
        if needs.sink:
            c = int(of.layout.spec.sink[1:])
            own = self._sink(of.captured[c])
            grads[c] = own + grads[c] if c in grads else own
        for c in captured:
            if c not in grads:
                grads[c] = torch.zeros_like(of.captured[c])
        full = [
            *(dq or of.q), *(dk or of.k), dv,
            *(grads.get(c, x) for c, x in enumerate(of.captured)),
        ]  # fmt: skip
        operands = [*of.q, *of.k, of.v, *of.captured]
        return [g.to(x.dtype) for g, x, w in zip(full, operands, wanted, strict=True) if w]

    def _of_queries(self) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Where tiles of queries put what they own: dq, and sums over keys for captured tensors."""
        q = self.of.q if self.needs.q else []
        if self.needs.atomics:
            dq = [x.new_zeros(x.shape, dtype=torch.float32) for x in q]
            return dq, {c: torch.zeros_like(self.row_max) for c in self.over_rows}
        dq = [x.new_empty(x.shape) for x in q]
        return dq, {c: torch.empty_like(self.row_max) for c in self.over_rows}

    def _given(self) -> Arguments:
        return {
            "do": (self.grad, "bhmd"), "delta": (self.delta, "bhm"),
            **{name: (x, "bhm") for name, x in self.statistics.items()},
        }  # fmt: skip

    def _statistics(self) -> dict[str, Tensor]:
        """What the kernels know of each query's exponentials, by `recomputation.statistics`."""
        layout, base, total = self.of.layout, self.row_max, self.row_sum
        if layout.spec.dead_rows_are_zero:
            base = torch.where(base == -math.inf, 0.0, base)
        if "row_inverse" in statistics(layout):
            inverse = 1.0 / total
            if layout.spec.dead_rows_are_zero:
                inverse = torch.where(total == 0.0, 0.0, inverse)
            return {"row_base": base, "row_inverse": inverse}
        if layout.spec.dead_rows_are_zero:
            total = torch.where(total == 0.0, 1.0, total)
        return {"row_base": base, "row_log_sum": total.log2()}

    def _delta(self, out: Tensor) -> Tensor:
        """`Σ_keys p dp` of every query: do·out where `probs` is linear.

        Not where out is rounded and a gradient adds up what should cancel, over all keys of a query
        (a bias that they share, a sink): then it is added up from the same products.
        """
        layout = self.of.layout
        rounded = layout.spec.dtype.itemsize < 4
        cancels = bool(self.over_rows) or self.needs.sink
        if not layout.two_passes and not (rounded and cancels):
            return (self.grad.float() * out.float()).sum(-1)
        self.delta = torch.empty_like(self.row_max)
        self._over_rows("delta", (), {})
        return self.delta

    def _named(self, dq: Sequence[Tensor], sums: dict[int, Tensor]) -> Arguments:
        """What tiles of queries own, by the names of arguments."""
        return {
            **{f"dq{i}": (x, "bhmd") for i, x in enumerate(dq)},
            **{f"dc{c}": (x, "bhm") for c, x in sums.items()},
        }

    def _over_rows(self, stage: str, arguments: tuple[Needs, ...], results: Arguments) -> None:
        """A kernel whose programs own queries."""
        of = self.of
        batch, heads, rows = of.rows
        config = of.config(stage)
        listed = of.lists(config, backward=True)
        grid = (tiles(rows, config.block_m) * batch * heads,)
        given = {**self._given(), **results, **listed}
        of.launch(stage, (*arguments, bool(listed)), grid, config, given)

    def _keys(
        self, dk: Sequence[Tensor], dv: Tensor, dq: Sequence[Tensor], shared: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        of = self.of
        heads = of.sizes["H" if self.needs.by_head(of.layout) else "HKV"]
        sums = {
            c: self.row_max.new_empty(of.rows[0], heads, of.sizes["SK"]) for c in self.over_keys
        }
        to_keys: Arguments = {
            **{f"dk{i}": (x, "bhnd") for i, x in enumerate(dk)},
            **{f"dc{c}": (x, "bhn") for c, x in sums.items()},
            **(self._named(dq, shared) if self.needs.atomics else {}),
        }
        to_values: Arguments = {"dv": (dv, "bhnd")} if self.needs.v else {}
        results = {"dk": to_keys, "dv": to_values, "keys": {**to_keys, **to_values}}
        apart = splits_keys(of.layout, of.target) and not self.needs.atomics
        for stage, needs in self.needs.apart() if apart else [("keys", self.needs)]:
            if results[stage]:
                self._over_keys(stage, needs, results[stage])
        return {c: x[..., None, :].sum_to_size(of.captured[c].shape) for c, x in sums.items()}

    def _over_keys(self, stage: str, needs: Needs, results: Arguments) -> None:
        """A kernel whose programs own keys."""
        of = self.of
        config = of.config(stage)
        listed = of.lists(config, of_keys=True, backward=True)
        grid = (tiles(of.sizes["SK"], config.block_n) * of.rows[0] * of.sizes["HKV"],)
        given = {**self._given(), **results, **listed}
        of.launch(stage, (needs, bool(listed)), grid, config, given)

    def _tiles(self, c: int) -> Tensor:
        """The gradient of a captured tensor that varies along queries and keys.

        Where it has few tiles, so that most of the device would do nothing, what each of them adds
        up is cut into parts.
        """
        of = self.of
        x = of.captured[c]
        axes = of.layout.captured[c].axes
        batch, heads, rows = of.rows
        own = (batch if "b" in axes else 1) * (heads if "h" in axes else 1)
        repeats = batch * heads // own
        config = of.config("tiles")
        programs = tiles(rows, config.block_m) * tiles(of.sizes["SK"], config.block_n) * own
        parts = parts_of(programs, repeats, of.target)
        whole = parts == 1
        shape = (parts, *x.shape)
        found = x.new_empty(shape, dtype=x.dtype if whole else torch.float32)
        strides = found.as_strided(
            [parts, *(x.shape[AXES.index(a) - 4] for a in axes)],
            [found.stride(0), *(found.stride(AXES.index(a) - 4) for a in axes)],
        )
        letters = "s" + axes.replace("q", "m").replace("k", "n")
        given = {**self._given(), f"dc{c}": (strides, letters)}
        numbers = {"REPEATS": repeats, "EACH": tiles(repeats, parts)}
        of.launch("tiles", (c, not whole), (programs, parts), config, given, **numbers)
        return found.squeeze(0) if whole else found.sum(0)

    def _sink(self, sink: Tensor) -> Tensor:
        """A sink takes from all keys what it gets: `-p_sink delta`, for every query."""
        logit = sink.to(torch.float32).expand(*self.of.rows, 1)
        p = torch.exp(logit - self.row_max[..., None]) / self.row_sum[..., None]
        return (-p * self.delta[..., None]).sum_to_size(sink.shape)
