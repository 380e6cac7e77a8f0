"""Attention at the sizes of GPUs: eight programs as their authors spell them, and their ports.

Each is the row of that number in the list of workloads that the targets come from:

    1  plain_causal     B4 H16 S4096 D128: a control, which libraries have
    2  alibi_causal     the same shape with ALiBi
    3  softcap_causal   B2 H16/8 S4096 D256: Gemma 2's soft cap of 50
    4  sliding_window   B1 H32/8 S16384 D128: 1024 keys back
    5  t5_bias          B8 H64 S512 D64: T5-XXL's learned bias, and its gradient
    6  pair_bias        B256 H4 S256 D32: AlphaFold's bias of pairs, one for all rows
    7  commuted_mask    shape 1 with 4 key heads: the mask comes first in the sum
    8  decode           B16 H32/8 D128: one query, 8192 keys

The functions take no advantage of anything; what fp64 is asked for is cut to a part of the heads
where the whole would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks import limits, ports
from benchmarks import spellings_gpu as spelled
from benchmarks.attention import BUCKETS, t5_bias
from benchmarks.cases import Case, Tensors, Workload, as_double
from benchmarks.limits import Sizes, Work
from benchmarks.ports import Variant

Tensor = torch.Tensor

FP64_SCORES = 2**27
"""At most so many scores are computed in fp64: 1 GiB for each step of a program."""


@dataclass(frozen=True)
class Program:
    """One workload.

    Attributes:
        row: its number in the list of workloads.
        fn: `(q, k, v, *extra) -> (B, H, Sq, D)`.
        sizes: of the operands.
        variant: what its ports are made of.
        pairs: positions that count, of one head.
        extra: builds the extra argument, in the workload's dtype or, like slopes, in fp32.
        trains_extra: the extra argument takes a gradient too.
        extra_by_head: its first dimension is the query heads.
        modes: those it is measured in.
    """

    row: int
    fn: Callable[..., Tensor]
    sizes: Sizes
    variant: Variant
    pairs: Callable[[Sizes], int] = limits.causal
    extra: Callable[[Sizes, torch.dtype], Tensor] | None = None
    trains_extra: bool = False
    extra_by_head: bool = False
    modes: tuple[str, ...] = ("forward", "full")

    def part(self) -> tuple[int, int]:
        """Batch and key heads of which fp64 computes everything: all of them if they fit."""
        of = self.sizes
        each = of.group * of.sq * of.skv
        if of.b * of.h_kv * each <= FP64_SCORES:
            return of.b, of.h_kv
        return 1, min(of.h_kv, max(1, FP64_SCORES // each))


def _slopes(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    return 2.0 ** -(8.0 * torch.arange(1, sizes.h + 1) / sizes.h)


def _table(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    return torch.randn(BUCKETS, sizes.h).to(dtype)


def _pairs(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, sizes.h, sizes.sq, sizes.skv).to(dtype)


def programs(quick: bool) -> Mapping[str, Program]:
    """All eight; `quick` shrinks them to a few tiles, with sizes that divide nothing."""
    one = Sizes(1, 2, 2, 24, 24, 16) if quick else Sizes(4, 16, 16, 4096, 4096, 128)
    cap = Sizes(1, 2, 1, 24, 24, 32) if quick else Sizes(2, 16, 8, 4096, 4096, 256)
    far = Sizes(1, 4, 2, 24, 24, 16, 5) if quick else Sizes(1, 32, 8, 16384, 16384, 128, 1024)
    t5 = Sizes(1, 2, 2, 20, 20, 16) if quick else Sizes(8, 64, 64, 512, 512, 64)
    pair = Sizes(2, 2, 2, 20, 20, 16) if quick else Sizes(256, 4, 4, 256, 256, 32)
    shared = Sizes(1, 2, 1, 24, 24, 16) if quick else Sizes(4, 16, 4, 4096, 4096, 128)
    new = Sizes(2, 4, 2, 1, 40, 16) if quick else Sizes(16, 32, 8, 1, 8192, 128)
    every = limits.everything
    return {
        "plain_causal": Program(1, spelled.plain_causal, one, ports.CAUSAL),
        "alibi_causal": Program(
            2, spelled.alibi_causal, one, ports.ALIBI, extra=_slopes, extra_by_head=True
        ),
        "softcap_causal": Program(3, spelled.softcap_causal, cap, ports.SOFTCAP),
        "sliding_window": Program(4, spelled.windowed(far.window), far, ports.window(far.window)),
        "t5_bias": Program(5, t5_bias, t5, ports.t5(t5.sq), every, _table, trains_extra=True),
        "pair_bias": Program(
            6, spelled.pair_bias, pair, ports.PAIR, every, _pairs, trains_extra=True
        ),
        "commuted_mask": Program(7, spelled.commuted_mask, shared, ports.CAUSAL),
        "decode": Program(8, spelled.decode, new, Variant(), every, modes=("forward",)),
    }


def build(program: Program, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random inputs, the ports, and the part that fp64 is asked for."""
    train, sizes = mode == "full", program.sizes

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    # T5 has no scale of its own: its weights are initialised small instead.
    small = sizes.d**-0.5 if program.variant.scale == 1.0 else 1.0
    args = (normal(sizes.query), normal(sizes.key) * small, normal(sizes.key))
    args = tuple(x.requires_grad_(train) for x in args)
    if program.extra is not None:
        extra = program.extra(sizes, dtype).to(device)
        args = (*args, extra.requires_grad_(program.trains_extra and train))
    cotangents = (normal(sizes.query),) if train else ()
    found = ports.of(program.variant, sizes, args)
    case = Case(program.fn, args, cotangents, ports=found)
    batch, key_heads = program.part()
    if (batch, key_heads) == (sizes.b, sizes.h_kv):
        return case
    assert not program.trains_extra, "its gradient is a sum over the whole batch"
    return _in_part(program, case, batch, key_heads)


def _in_part(program: Program, case: Case, batch: int, key_heads: int) -> Case:
    """The case with an fp64 twin of a part of the heads: heads know nothing of each other."""
    heads = key_heads * program.sizes.group

    def part(results: Tensors) -> Tensors:
        counts = (heads, heads, key_heads, key_heads)
        return tuple(r[:batch, :n] for r, n in zip(results, counts, strict=False))

    def double() -> Case:
        _, *args = part((case.args[0], *case.args[:3]))
        more = [x[:heads] if program.extra_by_head else x for x in case.args[3:]]
        cotangents = tuple(c[:batch, :heads].double() for c in case.cotangents)
        return Case(program.fn, tuple(map(as_double, (*args, *more))), cotangents)

    return Case(case.fn, case.args, case.cotangents, ports=case.ports, double=double, part=part)


def workloads(quick: bool) -> list[Workload]:
    """All programs."""

    def one(name: str, program: Program) -> Workload:
        sizes = program.sizes

        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(program, dtype, device, mode)

        def work(dtype: torch.dtype, mode: str) -> Work:
            return limits.attention(sizes, program.pairs(sizes), dtype, mode)

        config = {
            "row": program.row, "B": sizes.b, "H": sizes.h, "H_kv": sizes.h_kv, "D": sizes.d,
            "Sq": sizes.sq, "Skv": sizes.skv,
        }  # fmt: skip
        x = ("S", sizes.skv)
        return Workload("attention", name, case, program.modes, x, config, work)

    return [one(name, program) for name, program in programs(quick).items()]
