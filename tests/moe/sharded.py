"""A mixture of experts on several ranks, and what one of the processes does.

python -m tests.moe.sharded FOLDER RANK

reads `given.pt` (see `Given`) there, runs every scenario of `SCENARIOS` compiled, and leaves a
`Found` for each as `NAME-RANK.pt`. Ranks meet through a file in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch.distributed._functional_collectives import all_reduce, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.nn.parallel import DistributedDataParallel

from fuser.backend import listening
from fuser.events import Record

RANKS, EXPERTS, CHOICES, FEATURES, HIDDEN, TOKENS = 4, 8, 2, 16, 24, 6
"""Tokens of each rank."""
OWN = EXPERTS // RANKS
OPTIONS = {"fuser.policy": "always", "fuser.inner": "aot_eager", "fuser.strict": True}


@dataclass
class Given:
    """What every rank starts from.

    Attributes:
        x, cotangent: tokens and what the results are weighted with in the loss, `(all, FEATURES)`.
        router, gate_up, down: of the mixture.
    """

    x: Tensor
    cotangent: Tensor
    router: Tensor
    gate_up: Tensor
    down: Tensor

    def to(self, dtype: torch.dtype) -> Given:
        return Given(*(t.to(dtype) for t in vars(self).values()))


@dataclass
class Found:
    """What a rank found: its results and the gradient of its tokens; those of parameters, whole;
    what was rewritten, and why other things were not."""

    out: Tensor
    x: Tensor
    parameters: dict[str, Tensor]
    rewritten: list[str]
    reasons: list[str]


def route(x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = torch.topk(F.softmax(F.linear(x, router), -1), CHOICES, -1)
    return weights / weights.sum(-1, keepdim=True), chosen


def gathered(x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = torch.einsum("td,tkhd->tkh", x, gate_up[chosen]).chunk(2, -1)
    out = torch.einsum("tkh,tkdh->tkd", F.silu(gate) * up, down[chosen])
    return (out * weights[..., None]).sum(1)


class Stacked(nn.Module):
    """All experts in two tensors."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.router = nn.Parameter(given.router.clone())
        self.gate_up, self.down = (
            nn.Parameter(given.gate_up.clone()),
            nn.Parameter(given.down.clone()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return gathered(x, *route(x, self.router), self.gate_up, self.down)


class Expert(nn.Module):
    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Parameter(gate_up.clone()), nn.Parameter(down.clone())

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class Chain(nn.Module):
    """Experts that are modules."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.router = nn.Parameter(given.router.clone())
        pairs = zip(given.gate_up, given.down, strict=True)
        self.experts = nn.ModuleList(Expert(*pair) for pair in pairs)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = route(x, self.router)
        dense = weights.new_zeros(len(x), EXPERTS).scatter(1, chosen, weights)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + dense[:, e, None] * expert(x)
        return out


class Sharded(nn.Module):
    """Each rank holds some of the experts."""

    placements: tuple[Placement, Placement] = (Replicate(), Shard(0))
    """Of the router and of the experts."""

    def __init__(self, given: Given, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh, self.group = mesh, mesh.get_group()
        self.first = mesh.get_local_rank() * OWN

        def spread(whole: Tensor, placement: Placement) -> nn.Parameter:
            return nn.Parameter(distribute_tensor(whole.clone(), mesh, [placement]))

        router, experts = self.placements
        self.router = spread(given.router, router)
        self.gate_up, self.down = spread(given.gate_up, experts), spread(given.down, experts)

    def whole_router(self) -> Tensor:
        return self.router.to_local(grad_placements=[Partial()])


class Exchanged(Sharded):
    """Expert parallelism: rows go to the rank of their expert and come back."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = route(x, self.whole_router())
        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)
        counts = F.one_hot(flat, EXPERTS).sum(0)
        theirs = all_to_all_single_autograd(counts, None, None, self.group)
        given, got = (n.view(RANKS, OWN).sum(1).tolist() for n in (counts, theirs))
        rows = all_to_all_single_autograd(x[order // CHOICES], got, given, self.group)
        # from rank by rank to expert by expert, and back
        experts = torch.arange(OWN).repeat(RANKS).repeat_interleave(theirs, output_size=sum(got))
        place = experts.argsort(stable=True)
        rows = self.local(rows[place], theirs.view(RANKS, OWN).sum(0))
        rows = torch.zeros_like(rows).index_copy(0, place, rows)
        rows = all_to_all_single_autograd(rows, given, got, self.group)
        rows = rows * weights.reshape(-1)[order, None]
        return torch.zeros_like(x).index_add(0, order // CHOICES, rows)

    def local(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = torch._grouped_mm(rows, self.gate_up.to_local().mT, offs=ends).chunk(2, -1)
        return torch._grouped_mm(F.silu(gate) * up, self.down.to_local().mT, offs=ends)


class ExchangedInTurn(Exchanged):
    """Local experts one after the other, as where there is no grouped product for a dtype."""

    def local(self, rows: Tensor, counts: Tensor) -> Tensor:
        runs = rows.split(counts.tolist())
        out: list[Tensor] = []
        for run, gate_up, down in zip(
            runs, self.gate_up.to_local().unbind(), self.down.to_local().unbind(), strict=True
        ):
            gate, up = F.linear(run, gate_up).chunk(2, -1)
            out.append(F.linear(F.silu(gate) * up, down))
        return torch.cat(out)


class Summed(Sharded):
    """Every rank runs its own experts on all tokens, and what they give is added up."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = route(x, self.whole_router())
        dense = weights.new_zeros(len(x), EXPERTS).scatter(1, chosen, weights)
        own = dense[:, self.first : self.first + OWN]
        gate, up = torch.einsum("td,ehd->teh", x, self.gate_up.to_local()).chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, self.down.to_local())
        return all_reduce(torch.einsum("te,ted->td", own, out), "sum", self.group)


class Collected(Sharded):
    """Experts are gathered for the step."""

    def forward(self, x: Tensor) -> Tensor:
        own = [Partial()]
        gate_up, down = (w.full_tensor(grad_placements=own) for w in (self.gate_up, self.down))
        return gathered(x, *route(x, self.whole_router()), gate_up, down)


class Spread(Sharded):
    """Tokens are a DTensor too, and all operators DTensor's."""

    placements = (Replicate(), Replicate())

    def forward(self, x: Tensor) -> Tensor:
        tokens = DTensor.from_local(x, self.mesh, [Shard(0)])
        weights, chosen = route(tokens, self.router)
        dense = torch.zeros_like(tokens[:, :EXPERTS]).scatter(1, chosen, weights)
        gate, up = torch.einsum("td,ehd->teh", tokens, self.gate_up).chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, self.down)
        return torch.einsum("te,ted->td", dense, out).to_local()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="fuser", options=OPTIONS)


def ddp(given: Given, mesh: DeviceMesh) -> tuple[nn.Module, Any]:
    inner = Chain(given)
    wrapped = DistributedDataParallel(compiled(inner))
    return inner, wrapped


def compiled_ddp(given: Given, mesh: DeviceMesh) -> tuple[nn.Module, Any]:
    inner = Stacked(given)
    return inner, compiled(DistributedDataParallel(inner))


def fsdp(given: Given, mesh: DeviceMesh) -> tuple[nn.Module, Any]:
    module = fully_shard(Stacked(given), mesh=mesh)
    return module, compiled(module)


def fsdp_each(given: Given, mesh: DeviceMesh) -> tuple[nn.Module, Any]:
    """Experts are gathered one by one, which no graph can hold."""
    module = Chain(given)
    for expert in module.experts:
        fully_shard(expert, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module, compiled(module)


def of(kind: type[Sharded]) -> Callable[[Given, DeviceMesh], tuple[nn.Module, Any]]:
    def make(given: Given, mesh: DeviceMesh) -> tuple[nn.Module, Any]:
        module = kind(given, mesh)
        return module, compiled(module)

    return make


@dataclass(frozen=True)
class Scenario:
    """A way to spread the mixture.

    Attributes:
        make: the module that holds the parameters, and what is called.
        averages: gradients are the mean over ranks, not the sum.
        everywhere: every rank takes all tokens.
        dtype: of everything.
        whole: sizes that are read from tensors do not break the graph.
        rewrites: regions on each rank.
        pattern: of these.
        reason: why there are none; "" where nobody says it.
    """

    make: Callable[[Given, DeviceMesh], tuple[nn.Module, Any]]
    averages: bool = False
    everywhere: bool = False
    dtype: torch.dtype = torch.float32
    whole: bool = False
    rewrites: int = 0
    pattern: str = "moe.mixture"
    reason: str = ""


SCENARIOS: dict[str, Scenario] = {
    "ddp": Scenario(ddp, averages=True, rewrites=1),
    "compiled_ddp": Scenario(compiled_ddp, averages=True, rewrites=1),
    "fsdp": Scenario(fsdp, averages=True, rewrites=1),
    "fsdp_each": Scenario(fsdp_each, averages=True),
    "collected": Scenario(of(Collected), rewrites=1),
    "exchanged": Scenario(of(Exchanged), dtype=torch.bfloat16, rewrites=1, pattern="moe.local"),
    "exchanged_whole": Scenario(
        of(Exchanged), dtype=torch.bfloat16, whole=True, rewrites=1, pattern="moe.local"
    ),
    "exchanged_in_turn": Scenario(of(ExchangedInTurn), whole=True, rewrites=1, pattern="moe.local"),
    "summed": Scenario(of(Summed), everywhere=True, reason="those of a part of the experts"),
    "spread": Scenario(of(Spread), reason="is a DTensor, which wraps other tensors"),
}


def run(scenario: Scenario, given: Given, mesh: DeviceMesh) -> Found:
    """One step of a rank: the loss of its tokens, and all gradients of the loss of all."""
    torch._dynamo.reset()
    given, record = given.to(scenario.dtype), Record()
    module, call = scenario.make(given, mesh)
    first = mesh.get_local_rank() * TOKENS
    rows = slice(None) if scenario.everywhere else slice(first, first + TOKENS)
    x, cotangent = given.x[rows].clone().requires_grad_(), given.cotangent[rows]
    times = RANKS if scenario.averages else 1 / RANKS if scenario.everywhere else 1
    capture: AbstractContextManager[object] = nullcontext()
    if scenario.whole:
        capture = dynamo_config.patch(capture_scalar_outputs=True)
    with listening(record.extend), capture:
        out = call(x)
    out.backward(cotangent * times)
    assert x.grad is not None
    own = x.grad / times
    if scenario.everywhere:
        own = x.grad
        dist.all_reduce(own)
    grads = {name: whole(p.grad) for name, p in module.named_parameters()}
    return Found(
        out.detach(),
        own,
        grads,
        [r.pattern for r in record.rewritten if r.pattern.startswith("moe.")],
        [n.reason for n in record.near_misses],
    )


def whole(grad: Tensor | None) -> Tensor:
    """A gradient with the parts of all ranks."""
    assert grad is not None
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
    try:
        mesh = init_device_mesh("cpu", (RANKS,))
        given = Given(**torch.load(folder / "given.pt"))
        for name, scenario in SCENARIOS.items():
            torch.save(vars(run(scenario, given, mesh)), folder / f"{name}-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
