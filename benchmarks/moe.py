"""Mixtures of experts as their authors write them, at the sizes of a CPU: H256 I512.

Two mixtures, 8 experts of which each token takes 2 and 64 of which it takes 8, for 1, 16 and 512
tokens; the last forward and backward too. The spellings are of three kinds:

    dense    run_all, bmm_after, bmm_before     all experts on all tokens
    loop     where_loop, index_add_loop         expert by expert, on the tokens that chose it
    grouped  grouped                            sorted by expert, one product of all runs

Logits are made so that no rounding changes which experts a token takes: figures in fp64 would be
those of another mixture otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers.integrations import moe as _moe  # noqa: F401  registers the operator

from benchmarks import limits
from benchmarks import spellings_moe as spelled
from benchmarks.cases import Case, Tensors, Workload, as_double
from benchmarks.limits import Mixture
from benchmarks.providers import Function

Tensor = torch.Tensor

TOKENS = (1, 16, 512)
SIZES = (Mixture(t=1, h=256, i=512, e=8, k=2), Mixture(t=1, h=256, i=512, e=64, k=8))
SMALL = Mixture(t=16, h=32, i=24, e=8, k=2)
"""For `--quick`."""
DENSE, LOOP, GROUPED = "dense", "loop", "grouped"


@dataclass(frozen=True)
class Spelling:
    """One way to write a mixture.

    Attributes:
        make: the function, for given sizes.
        kind: `DENSE`, `LOOP` or `GROUPED`.
        separate: experts have matrices of their own.
        twin: what computes the same in fp64, where the function itself cannot.
    """

    make: Callable[[Mixture], Function]
    kind: str
    separate: bool = False
    twin: Callable[[Mixture], Function] | None = None


SPELLINGS: dict[str, Spelling] = {
    "run_all": Spelling(spelled.run_all, DENSE, separate=True),
    "bmm_after": Spelling(spelled.bmm_after, DENSE),
    "bmm_before": Spelling(spelled.bmm_before, DENSE),
    "where_loop": Spelling(spelled.where_loop, LOOP, separate=True),
    "index_add_loop": Spelling(spelled.index_add_loop, LOOP, separate=True),
    "grouped": Spelling(spelled.grouped, GROUPED, twin=spelled.bmm_after),
}


def tokens(of: Mixture, place: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and a router that gives the chosen experts logits at least 1 above all others.

    The router's rows are orthonormal, so that a token is any noise that they do not see, and the
    logits that it is to have.

    Returns:
        `x (T, H)` and `router (E, H)`, in fp32.

    Raises:
        ValueError: there are more experts than features.
    """
    if of.e > of.h:
        raise ValueError(f"{of.e} experts cannot have orthonormal rows of {of.h} features")
    rows, _ = torch.linalg.qr(torch.randn(of.h, of.e))
    rows = rows.to(place)
    logits = torch.rand(of.t, of.e, device=place)
    chosen = logits.topk(of.k, dim=-1).indices
    logits = logits.scatter_add(1, chosen, torch.ones_like(chosen, dtype=logits.dtype))
    noise = torch.randn(of.t, of.h, device=place)
    return noise + (logits - noise @ rows) @ rows.T, rows.T.contiguous()


def matrices(of: Mixture, place: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`gate_up (E, 2I, H)` and `down (E, H, I)`, as modules are initialised."""
    gate_up = torch.randn(of.e, 2 * of.i, of.h, device=place) * of.h**-0.5
    down = torch.randn(of.e, of.h, of.i, device=place) * of.i**-0.5
    return gate_up.to(dtype), down.to(dtype)


def build(
    spelling: Spelling, of: Mixture, dtype: torch.dtype, device: torch.device, mode: str
) -> Case:
    """Random tokens and experts; all of them take a gradient where there is a backward."""
    x, router = (a.to(dtype) for a in tokens(of, device))
    gate_up, down = matrices(of, device, dtype)
    experts: Tensors = (gate_up, down)
    if spelling.separate:
        gates, ups = gate_up.chunk(2, dim=1)
        experts = tuple(m.clone() for stack in (gates, ups, down) for m in stack)
    full = mode == "full"
    args = tuple(a.requires_grad_(full) for a in (x, router, *experts))
    cotangents = (torch.randn(of.t, of.h, device=device).to(dtype),) if full else ()
    case = Case(spelling.make(of), args, cotangents, loops=spelling.kind == LOOP)
    if spelling.twin is None:
        return case
    twin = spelling.twin(of)
    wide = tuple(c.double() for c in cotangents)
    return replace(case, double=lambda: Case(twin, tuple(map(as_double, args)), wide))


def workloads(quick: bool) -> list[Workload]:
    """All spellings, at all sizes and numbers of tokens."""

    def one(name: str, spelling: Spelling, of: Mixture, modes: tuple[str, ...]) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(spelling, of, dtype, device, mode)

        def work(dtype: torch.dtype, mode: str) -> limits.Work:
            return limits.mixture(of, dtype, mode)

        config = {"H": of.h, "I": of.i, "E": of.e, "K": of.k, "kind": spelling.kind}
        label = f"{name}_e{of.e}_t{of.t}"
        return Workload("moe", label, case, modes, ("T", of.t), config, work)

    sizes = [SMALL] if quick else [replace(of, t=t) for of in SIZES for t in TOKENS]
    longest = max(of.t for of in sizes)
    return [
        one(name, spelling, of, ("forward", "full") if of.t == longest else ("forward",))
        for of in sizes
        for name, spelling in SPELLINGS.items()
    ]
