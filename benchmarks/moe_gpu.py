"""Mixtures of experts at the sizes of GPUs: as their authors spell them, and their ports.

Each has the row of its sizes in the list of workloads that the targets come from:

     9  many_experts     T8192 H2048 I768 E128 K8 (Qwen3-30B); with its gradients it is row 10
    11  few_chosen       T32768 H4096 I1024 E64 K4
    12  mixtral          T4096 H4096 I14336 E8 K2
    13  decode_1, decode_16, decode_128
                         one step of as many sequences, H2816 I704 E128 K8

Rows are sorted by expert and multiplied in groups, as transformers does by default; a decoding step
is also written with the matrices of the chosen experts gathered, `decode_1_gathered` and so on.

fp64 goes expert by expert, with no other matrices in fp64 than those of one; gradients of matrices
are asked of as many experts as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import limits, ports_moe
from benchmarks import spellings_moe as spelled
from benchmarks.cases import Case, Tensors, Workload, as_double
from benchmarks.limits import Work
from benchmarks.moe import matrices, tokens
from benchmarks.providers import Function

Tensor = torch.Tensor

FP64_NUMBERS = 2**27
"""At most so many numbers of the matrices have gradients in fp64, one expert's at the least: 1 GiB
for them and 1 for the gradients."""


@dataclass(frozen=True)
class Program:
    """One workload.

    Attributes:
        row: its number in the list of workloads.
        make: the function, for given sizes.
        of: the sizes.
        modes: those it is measured in.
    """

    row: int
    make: Callable[[limits.Mixture], Function]
    of: limits.Mixture
    modes: tuple[str, ...] = ("forward", "full")

    def part(self) -> int:
        """Experts whose matrices have gradients in fp64."""
        each = 3 * self.of.h * self.of.i
        return min(self.of.e, max(1, FP64_NUMBERS // each))


def programs(quick: bool) -> Mapping[str, Program]:
    """All of them; `quick` shrinks them to a few rows an expert, with counts that divide nothing.

    Features stay multiples of 8, which the grouped product of PyTorch asks for.
    """

    def sized(small: tuple[int, ...], full: tuple[int, ...]) -> limits.Mixture:
        return limits.Mixture(*(small if quick else full))

    many = sized((19, 40, 24, 6, 3), (8192, 2048, 768, 128, 8))
    few = sized((21, 24, 40, 5, 2), (32768, 4096, 1024, 64, 4))
    mixtral = sized((11, 24, 40, 3, 2), (4096, 4096, 14336, 8, 2))
    one = sized((1, 32, 16, 7, 3), (1, 2816, 704, 128, 8))
    found = {
        "many_experts": Program(9, spelled.grouped, many),
        "few_chosen": Program(11, spelled.grouped, few),
        "mixtral": Program(12, spelled.grouped, mixtral),
    }
    for sequences in (1, 16, 128):
        of = replace(one, t=min(sequences, 5) if quick else sequences)
        name = f"decode_{sequences}"
        found[name] = Program(13, spelled.grouped, of, ("forward",))
        found[f"{name}_gathered"] = Program(13, spelled.gathered, of, ("forward",))
    return found


def build(program: Program, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random inputs, the ports, and an fp64 twin that fits."""
    train, of = mode == "full", program.of
    x, router = (a.to(dtype) for a in tokens(of, device))
    args = tuple(a.requires_grad_(train) for a in (x, router, *matrices(of, device, dtype)))
    cotangents = (torch.randn(of.t, of.h, device=device).to(dtype),) if train else ()
    count = program.part()

    def part(results: Tensors) -> Tensors:
        out, *grads = results
        return (out, *grads[:2], *(g[:count] for g in grads[2:]))

    def double() -> Case:
        x, router, gate_up, down = args
        exact = tuple(map(as_double, (x, router, *(m[:count] for m in (gate_up, down)))))
        leaves = tuple(a.detach().requires_grad_(train) for a in exact)
        rest = tuple(m[count:].detach() for m in (gate_up, down))
        wide = tuple(c.double() for c in cotangents)
        return Case(expert_by_expert(of, rest), leaves, wide)

    made = program.make(of)
    return Case(made, args, cotangents, ports=ports_moe.of(of), double=double, part=part)


def expert_by_expert(of: limits.Mixture, rest: Tensors) -> Function:
    """The mixture in fp64; for gradients an expert is computed again, and nothing of it is kept.

    Args:
        of: the sizes.
        rest: `gate_up` and `down` of the experts whose matrices the function does not take, in any
            dtype.
    """

    def expert(rows: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = F.linear(rows, gate_up.double()).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down.double())

    def twin(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        weights, chosen = spelled.route(x, router, of.k)
        firsts = [*gate_up.unbind(), *rest[0].unbind()]
        lasts = [*down.unbind(), *rest[1].unbind()]
        out = torch.zeros_like(x)
        for i, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            token, choice = torch.where(chosen == i)
            rows = checkpoint(expert, x[token], first, last, use_reentrant=False)
            out = out.index_add(0, token, rows * weights[token, choice, None])
        return out

    return twin


def workloads(quick: bool) -> list[Workload]:
    """All programs."""

    def one(name: str, program: Program) -> Workload:
        of = program.of

        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(program, dtype, device, mode)

        def work(dtype: torch.dtype, mode: str) -> Work:
            return limits.mixture(of, dtype, mode)

        config = {"row": program.row, "H": of.h, "I": of.i, "E": of.e, "K": of.k}
        return Workload("moe", name, case, program.modes, ("T", of.t), config, work)

    return [one(name, program) for name, program in programs(quick).items()]
