"""Chains around norms and activations at the sizes of GPUs, as their authors spell them.

Each has the row of its sizes in the list of workloads that the targets come from:

    14  residual_rms      16384 x 4096, Llama's sum and its norm: a control
    15  layer_norm        32768 x 4096, with its gradients
        rms_norm          131072 x 16384, with its gradients
    16  group_norm_video  128 channels of 20 frames of 256 x 256, SiLU after the norm
        group_norm_last   128 channels of 1024 x 1024 in channels_last, SiLU after the norm
    17  qk_norm_rope      4608 tokens, 24 heads of 128 features, with gradients
    18  adaptive          4608 x 3072, a gated sum, its norm, shift and scale: a control
    19  swiglu            16384 x 14336: a control
    20  cross_entropy     8192 x 128256, with its gradient
    21  rms_norm_fp8      1024 x 4096, rounded to fp8 by groups of 128

Bytes are those of tensors of rows that have to be read and written; a group norm reads twice what
no cache holds. Where fp64 would not fit it is asked for the first rows alone, and for no gradient
that sums over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F

from benchmarks import ports_norm
from benchmarks.cases import Case, Port, Tensors, Workload, as_double
from benchmarks.limits import Work
from benchmarks.providers import LIGER, Function

Tensor = torch.Tensor
Shape: TypeAlias = tuple[int, ...]

GROUPS = 32
FP8_GROUP = 128


def residual_rms(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight), total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, GROUPS, weight, bias))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    q, k = rms_norm(q, q_weight).transpose(1, 2), rms_norm(k, k_weight).transpose(1, 2)
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def adaptive(x: Tensor, branch: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate = modulation[:, None].chunk(3, -1)
    total = x + gate * branch
    return F.layer_norm(total, (x.shape[-1],)) * (1 + scale) + shift, total


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def rms_norm_fp8(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = rms_norm(x, weight).float().unflatten(-1, (-1, FP8_GROUP))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 448.0
    return (groups / scale).to(torch.float8_e4m3fn).flatten(-2), scale.squeeze(-1)


def _classes(shape: Shape, device: torch.device) -> Tensor:
    return torch.randint(shape[-1], shape[:-1], device=device)


@dataclass(frozen=True)
class Program:
    """One workload.

    Attributes:
        row: its number in the list of workloads.
        fn: the function.
        size: of what is normalised, or activated, which comes first.
        rows: how many operands have that size.
        others: shapes of operands that every row takes.
        moved: tensors of that size that the forward moves, and the backward.
        modes: those it is measured in.
        channels_last: the order of the first operands in memory.
        labels: makes an operand that is no floating tensor.
        fixed: how many of the other operands, the last ones, take no gradient.
        first: fp64 is asked for so many rows alone, as the whole would not fit.
        port: Liger's kernels for it.
    """

    row: int
    fn: Function
    size: Shape
    others: tuple[Shape, ...]
    moved: tuple[float, float]
    rows: int = 1
    modes: tuple[str, ...] = ("forward", "full")
    channels_last: bool = False
    labels: Callable[[Shape, torch.device], Tensor] | None = None
    fixed: int = 0
    first: int | None = None
    port: Function | None = None

    def work(self, dtype: torch.dtype, mode: str) -> Work:
        """Bytes that have to be moved."""
        moved = self.moved[0] + (self.moved[1] if mode == "full" else 0.0)
        return Work(0.0, moved * math.prod(self.size) * dtype.itemsize)


def programs(quick: bool) -> Mapping[str, Program]:
    """All of them; `quick` shrinks them to a few rows, with sizes that divide nothing."""

    def sized(small: Shape, full: Shape) -> Shape:
        return small if quick else full

    wide, lines = sized((19, 40), (16384, 4096)), sized((21, 24), (32768, 4096))
    long = sized((11, 72), (131072, 16384))
    video = sized((1, 64, 3, 5, 7), (1, 128, 20, 256, 256))
    image = sized((1, 64, 9, 7), (1, 128, 1024, 1024))
    heads = sized((1, 13, 3, 16), (1, 4608, 24, 128))
    tokens, hidden = sized((2, 7, 24), (1, 4608, 3072)), sized((9, 56), (16384, 14336))
    classes, quantised = sized((12, 130), (8192, 128256)), sized((5, 256), (1024, 4096))
    table = (heads[1], heads[-1])
    full = ("full",)
    return {
        "residual_rms": Program(
            14, residual_rms, wide, ((wide[-1],),), (4, 4), 2, port=ports_norm.residual_rms
        ),
        "layer_norm": Program(
            15, layer_norm, lines, ((lines[-1],),) * 2, (2, 3), port=ports_norm.layer_norm
        ),
        "rms_norm": Program(
            15, rms_norm, long, ((long[-1],),), (2, 3), modes=full, first=4 if quick else 8192,
            port=ports_norm.rms_norm,
        ),
        "group_norm_video": Program(
            16, group_norm_silu, video, ((video[1],),) * 2, (3, 5), port=ports_norm.group_norm_silu
        ),
        "group_norm_last": Program(
            16, group_norm_silu, image, ((image[1],),) * 2, (3, 5), channels_last=True
        ),
        "qk_norm_rope": Program(
            17, qk_norm_rope, heads, (table[1:], table[1:], table, table), (4, 6), 2, fixed=2,
            port=ports_norm.qk_norm_rope,
        ),
        "adaptive": Program(18, adaptive, tokens, ((tokens[0], 3 * tokens[-1]),), (4, 6), 2),
        "swiglu": Program(19, swiglu, hidden, (), (3, 5), 2, port=ports_norm.swiglu),
        "cross_entropy": Program(
            20, cross_entropy, classes, (), (1, 2), modes=full, labels=_classes
        ),
        "rms_norm_fp8": Program(
            21, rms_norm_fp8, quantised, ((quantised[-1],),), (1.5, 0), modes=("forward",)
        ),
    }  # fmt: skip


def build(program: Program, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random operands, Liger's port where it is installed, and an fp64 twin that fits."""

    def normal(shape: Shape) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    rows = [normal(program.size) for _ in range(program.rows)]
    if program.channels_last:
        rows = [x.contiguous(memory_format=torch.channels_last) for x in rows]
    others = [normal(shape) for shape in program.others]
    labels = [] if program.labels is None else [program.labels(program.size, device)]
    if mode == "full":
        for x in (*rows, *others[: len(others) - program.fixed]):
            x.requires_grad_()
    args = (*rows, *others, *labels)
    ports = {LIGER: Port(program.port)} if program.port and ports_norm.installed() else {}
    if mode != "full":
        return Case(program.fn, args, ports=ports)
    like = program.fn(*(x.detach().to("meta") for x in args))
    shapes = [x.shape for x in (like if isinstance(like, tuple) else (like,))]
    case = Case(program.fn, args, tuple(map(normal, shapes)), ports=ports)
    return case if program.first is None else _of_first(case, program.first)


def _of_first(case: Case, count: int) -> Case:
    """The same where fp64 has the first rows of one operand, and their gradient alone."""
    x, *others = case.args

    def part(results: Tensors) -> Tensors:
        return tuple(r[:count] for r in results[:2])

    def double() -> Case:
        own = as_double(x[:count]).requires_grad_()
        rest = tuple(as_double(o.detach()) for o in others)
        return Case(case.fn, (own, *rest), tuple(c[:count].double() for c in case.cotangents))

    return replace(case, part=part, double=double)


def workloads(quick: bool) -> list[Workload]:
    """All programs."""

    def one(name: str, program: Program) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(program, dtype, device, mode)

        config = {"row": program.row, "size": list(program.size)}
        n = math.prod(program.size)
        return Workload("norm", name, case, program.modes, ("N", n), config, program.work)

    return [one(name, program) for name, program in programs(quick).items()]
