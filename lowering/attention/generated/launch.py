"""Allocates, launches: from operands to results, through the kernels of one attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fuser.specs import AttentionSpec

from ...triton.kernel import Kernel
from . import tune
from .build import Needs, build
from .catalogue import record
from .config import INTERPRETER, Config, Target, choose
from .layout import AXES, Layout, layout_of, strides_of, tensors

PACKED_ROWS = 16
"""Up to so many queries, all heads that share a key head are rows of one tile."""


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, in this process."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@lru_cache(maxsize=1024)
def _spec(text: str) -> AttentionSpec:
    return AttentionSpec.from_text(text)


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
    """

    layout: Layout
    q: Sequence[Tensor]
    k: Sequence[Tensor]
    v: Tensor
    captured: Sequence[Tensor]
    seed: Tensor | None
    origin: str

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
        results: Mapping[str, tuple[Tensor, str]],
        **numbers: int,
    ) -> None:
        """Runs one kernel.

        Args:
            stage: what it is for.
            arguments: of the stage.
            grid: numbers of programs.
            config: how it is cut.
            results: its own tensors, with letters for their dimensions.
            numbers: its own numbers.
        """
        rows = self.q[0].shape[2] * (self.sizes["GROUP"] if arguments[:1] == (True,) else 1)
        record(self.layout, stage, arguments, rows)
        kernel = build(self.layout, stage, arguments, config, self.origin)
        values = {**self.arguments(), **numbers}
        for name, (x, letters) in results.items():
            values[name] = x
            values.update(
                {f"{name}_{s}": stride for s, stride in zip(letters, x.stride(), strict=True)}
            )
        _run(kernel, grid, values)


def problem(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
) -> Problem:
    """Reads the spec and lays out its operands."""
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    layout = layout_of(
        _spec(spec), q, k, v, captured,
        interpreted=v.device.type == "cpu", precision=precision,
    )  # fmt: skip
    return Problem(layout, q, k, v, captured, seed, origin)


def _run(kernel: Kernel, grid: tuple[int, ...], values: Mapping[str, Any]) -> None:
    function = kernel.function()
    names = [name for name, _ in kernel.signature]
    arguments = {name: values[name] for name in names}
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    if interpreting():
        import numpy

        with numpy.errstate(all="ignore"):
            function[grid](**arguments, **dict(kernel.constants))
        return
    from torch.library import wrap_triton

    wrap_triton(function)[grid](**arguments, **dict(kernel.constants), **options)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def target_of(device: torch.device) -> Target:
    """What the rules know of a device."""
    if device.type == "cpu":
        return INTERPRETER
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = found.gcnArchName.partition(":")[0]
    else:
        arch = f"sm_{found.major}{found.minor}"
    shared = found.shared_memory_per_block_optin
    return Target(arch, found.multi_processor_count, shared, found.warp_size)


def forward(of: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The result `(B, H, SQ, DV)`, and each query's maximum and sum of exponentials."""
    batch, heads, rows = of.rows
    sizes = of.sizes
    target = target_of(of.v.device)
    out = of.v.new_empty(batch, heads, rows, of.v.shape[-1], dtype=of.layout.spec.dtype)
    row_max, row_sum = (of.v.new_empty(batch, heads, rows, dtype=torch.float32) for _ in range(2))
    results = {"out": (out, "bhmd"), "row_max": (row_max, "bhm"), "row_sum": (row_sum, "bhm")}
    packed = sizes["GROUP"] > 1 and rows <= PACKED_ROWS
    together = rows * sizes["GROUP"] if packed else rows
    config = tune.lookup(of.layout, "forward", target, sizes, of.v.device)
    config = config or choose("forward", of.layout, target, rows=together)
    programs = _tiles(together, config.block_m) * batch * sizes["HKV" if packed else "H"]
    splits = splits_of(of.layout, programs, _tiles(sizes["SK"], config.block_n), target)
    if splits > 1:
        _split(of, packed, config, programs, splits, results)
    else:
        of.launch("forward", (packed, False), (programs,), config, results)
    return out, row_max, row_sum


def splits_of(layout: Layout, programs: int, tiles: int, target: Target) -> int:
    """Into how many parts the keys are cut, so that every processor has one, of two tiles or more.

    Not where probabilities must be whole: their sum is not known in any part.
    """
    if layout.two_passes or programs >= target.processors:
        return 1
    return min(target.processors // programs, tiles // 2)


def _split(
    of: Problem,
    packed: bool,
    config: Config,
    programs: int,
    splits: int,
    results: Mapping[str, tuple[Tensor, str]],
) -> None:
    """Every part of the keys by itself, then all of them together."""
    shape = (splits, *of.rows)
    part = of.v.new_empty(*shape, of.v.shape[-1], dtype=torch.float32)
    part_max, part_sum = (of.v.new_empty(shape, dtype=torch.float32) for _ in range(2))
    parts = {
        "part": (part, "sbhmd"), "part_max": (part_max, "sbhm"), "part_sum": (part_sum, "sbhm"),
    }  # fmt: skip
    of.launch("forward", (packed, True), (programs, splits), config, parts, SPLITS=splits)
    combining = choose("combine", of.layout, target_of(of.v.device), rows=of.rows[2])
    grid = (_tiles(of.rows[2], combining.block_m) * of.rows[0] * of.rows[1],)
    of.launch("combine", (), grid, combining, {**parts, **results}, SPLITS=splits)


def backward(
    of: Problem, grad: Tensor, out: Tensor, row_max: Tensor, row_sum: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of q, k, v and captured, in this order, where wanted."""
    count = len(of.q)
    spec = of.layout.spec
    captured = [i for i, w in enumerate(wanted[2 * count + 1 :]) if w]
    read = _read_by_programs(spec)
    needs = Needs(
        any(wanted[:count]),
        any(wanted[count : 2 * count]),
        wanted[2 * count],
        tuple(c for c in captured if f"c{c}" in read),
        of.layout.spec.sink in {f"c{c}" for c in captured},
    )
    return _Backward(of, grad, out, row_max, row_sum, needs).run(wanted, captured)


def _read_by_programs(spec: AttentionSpec) -> set[str]:
    return {*spec.score.inputs, *spec.probs.inputs}


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
        self.sums_over_keys = bool(needs.over_rows(of.layout)) or needs.sink
        self.row_max, self.row_sum = row_max, row_sum
        self.target = target_of(of.v.device)
        self.delta = self._delta(out)

    def run(self, wanted: Sequence[bool], captured: Sequence[int]) -> list[Tensor]:
        of, layout, needs = self.of, self.of.layout, self.needs
        dq = [x.new_empty(x.shape) for x in of.q if needs.q]
        dk = [x.new_empty(x.shape) for x in of.k if needs.k]
        dv = of.v.new_empty(of.v.shape)
        grads: dict[int, Tensor] = {}
        if needs.q or needs.over_rows(layout):
            grads.update(self._rows(dq))
        if needs.k or needs.v or needs.over_keys(layout):
            grads.update(self._keys(dk, dv))
        for c in needs.over_tiles(layout):
            grads[c] = self._tiles(c)
        if needs.sink:
            c = int(layout.spec.sink[1:])
            own = self._sink(of.captured[c])
            grads[c] = own + grads[c] if c in grads else own
        for c in captured:
            if c not in grads:
                grads[c] = torch.zeros_like(of.captured[c])
        count = len(of.q)
        full = [
            *(dq or of.q), *(dk or of.k), dv,
            *(grads.get(c, x) for c, x in enumerate(of.captured)),
        ]  # fmt: skip
        assert len(full) == 2 * count + 1 + len(of.captured)
        return [g.to(x.dtype) for g, x, w in zip(full, self._operands(), wanted, strict=True) if w]

    def _operands(self) -> list[Tensor]:
        return [*self.of.q, *self.of.k, self.of.v, *self.of.captured]

    def _given(self) -> dict[str, tuple[Tensor, str]]:
        return {
            "do": (self.grad, "bhmd"), "row_max": (self.row_max, "bhm"),
            "row_sum": (self.row_sum, "bhm"), "delta": (self.delta, "bhm"),
        }  # fmt: skip

    def _config(self, stage: str) -> Config:
        of = self.of
        found = tune.lookup(of.layout, stage, self.target, of.sizes, of.v.device)
        return found or choose(stage, of.layout, self.target, rows=of.rows[2])

    def _delta(self, out: Tensor) -> Tensor:
        """`Σ_keys p dp` of every query: do·out where `probs` is linear.

        Not where out is rounded and a gradient adds up what should cancel, over all keys of a query
        (a bias that they share, a sink): then it is added up from the same products.
        """
        layout = self.of.layout
        rounded = layout.spec.dtype.itemsize < 4
        if not layout.two_passes and not (rounded and self.sums_over_keys):
            return (self.grad.float() * out.float()).sum(-1)
        self.delta = torch.empty_like(self.row_max)
        batch, heads, rows = self.of.rows
        config = self._config("delta")
        grid = (_tiles(rows, config.block_m) * batch * heads,)
        self.of.launch("delta", (), grid, config, self._given())
        return self.delta

    def _rows(self, dq: Sequence[Tensor]) -> dict[int, Tensor]:
        of = self.of
        batch, heads, rows = of.rows
        sums = {c: torch.empty_like(self.row_max) for c in self.needs.over_rows(of.layout)}
        results = {
            **self._given(),
            **{f"dq{i}": (x, "bhmd") for i, x in enumerate(dq)},
            **{f"dc{c}": (x, "bhm") for c, x in sums.items()},
        }
        config = self._config("rows")
        grid = (_tiles(rows, config.block_m) * batch * heads,)
        of.launch("rows", (self.needs,), grid, config, results)
        return {c: x[..., None].sum_to_size(of.captured[c].shape) for c, x in sums.items()}

    def _keys(self, dk: Sequence[Tensor], dv: Tensor) -> dict[int, Tensor]:
        of = self.of
        keys = of.sizes["SK"]
        heads = of.sizes["H" if self.needs.by_head(of.layout) else "HKV"]
        sums = {
            c: self.row_max.new_empty(of.rows[0], heads, keys)
            for c in self.needs.over_keys(of.layout)
        }
        results = {
            **self._given(),
            **{f"dk{i}": (x, "bhnd") for i, x in enumerate(dk)},
            **({"dv": (dv, "bhnd")} if self.needs.v else {}),
            **{f"dc{c}": (x, "bhn") for c, x in sums.items()},
        }
        config = self._config("keys")
        grid = (_tiles(keys, config.block_n) * of.rows[0] * of.sizes["HKV"],)
        of.launch("keys", (self.needs,), grid, config, results)
        return {c: x[..., None, :].sum_to_size(of.captured[c].shape) for c, x in sums.items()}

    def _tiles(self, c: int) -> Tensor:
        of = self.of
        x = of.captured[c]
        found = x.new_empty(x.shape)
        axes = of.layout.captured[c].axes
        batch, heads, rows = of.rows
        own = (batch if "b" in axes else 1) * (heads if "h" in axes else 1)
        letters = axes.replace("q", "m").replace("k", "n")
        strides = found.as_strided(
            [x.shape[AXES.index(a) - 4] for a in axes],
            [found.stride(AXES.index(a) - 4) for a in axes],
        )
        results = {**self._given(), f"dc{c}": (strides, letters)}
        config = self._config("tiles")
        grid = (_tiles(rows, config.block_m) * _tiles(of.sizes["SK"], config.block_n) * own,)
        of.launch("tiles", (c,), grid, config, results, REPEATS=batch * heads // own)
        return found

    def _sink(self, sink: Tensor) -> Tensor:
        """A sink takes from all keys what it gets: `-p_sink delta`, for every query."""
        logit = sink.to(torch.float32).expand(*self.of.rows, 1)
        p = torch.exp(logit - self.row_max[..., None]) / self.row_sum[..., None]
        return (-p * self.delta[..., None]).sum_to_size(sink.shape)


def result_dtype(spec: str) -> torch.dtype:
    """Of the attention that a spec's text describes."""
    return _spec(spec).dtype
