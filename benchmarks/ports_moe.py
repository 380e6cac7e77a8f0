"""A mixture of gated experts written by hand: a loop, PyTorch's grouped product, Liger's kernels.

All of them take `(x, router, gate_up, down)`, and route as the workload does.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cases import Port
from benchmarks.limits import Mixture
from benchmarks.providers import GROUPED, LIGER, LOOP, Function
from benchmarks.spellings_moe import grouped_product, route

Tensor = torch.Tensor

NAMES = (LOOP, GROUPED, LIGER)
FUSED = "liger_kernel.ops.fused_moe"


def of(sizes: Mixture) -> dict[str, Port]:
    """Every port; Liger's where it is installed."""
    found = {LOOP: Port(loop(sizes)), GROUPED: Port(grouped(sizes))}
    if find_spec("liger_kernel") is not None:
        found[LIGER] = Port(liger(sizes))
    return found


def loop(sizes: Mixture) -> Function:
    """Expert by expert, on the tokens that chose it. The host waits for their number."""

    def port(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        weights, chosen = route(x, router, sizes.k)
        out = torch.zeros_like(x)
        # unbind and not an index each: its gradient is one stack
        for i, (first, last) in enumerate(zip(gate_up.unbind(), down.unbind(), strict=True)):
            token, choice = torch.where(chosen == i)
            gate, up = F.linear(x[token], first).chunk(2, dim=-1)
            rows = F.linear(F.silu(gate) * up, last) * weights[token, choice, None]
            out.index_add_(0, token, rows)
        return out

    return port


def grouped(sizes: Mixture) -> Function:
    """Choices sorted by expert, and each run of rows by its matrix: nothing waits for the host."""

    def port(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        weights, chosen = route(x, router, sizes.k)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        ends = torch.searchsorted(
            flat[order], torch.arange(sizes.e, device=x.device), right=True, out_int32=True
        )
        gate, up = grouped_product(x[order // sizes.k], gate_up.mT, ends).chunk(2, dim=-1)
        rows = grouped_product(F.silu(gate) * up, down.mT, ends)
        place = order.argsort()
        return (rows[place].view(*chosen.shape, -1) * weights[..., None]).sum(1)

    return port


def liger(sizes: Mixture) -> Function:
    """Liger's fused mixture, which asks the host for the number of its tiles."""
    fused: Any = import_module(FUSED).LigerFusedMoEFunction

    def port(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        weights, chosen = route(x, router, sizes.k)
        return fused.apply(x, gate_up, down, chosen.to(torch.int32), weights)

    return port
