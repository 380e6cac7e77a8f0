"""Mixtures of experts as their authors spell them.

Each maker takes the sizes and gives a plain function of `(x, router, *matrices)`: tokens `(T, H)`,
the router's matrix `(E, H)`, and either `gate_up (E, 2I, H)` and `down (E, H, I)` or, where experts
are modules of their own, all gates `(I, H)`, all ups and all downs `(H, I)`. The result is
`(T, H)`. Experts are SwiGLU; routers take a softmax, its top-k, and divide by their sum, Llama 4's
excepted.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from benchmarks.limits import Mixture
from benchmarks.providers import Function

Tensor = torch.Tensor


def route(x: Tensor, router: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mixtral's and Qwen3's router: weights and chosen experts, `(T, K)`."""
    probabilities = F.softmax(F.linear(x, router), dim=-1, dtype=torch.float32)
    weights, chosen = torch.topk(probabilities, k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(x.dtype), chosen


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One expert, `(T, H) -> (T, H)`."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def run_all(of: Mixture) -> Function:
    """Every expert on every token, and weights that are zero where it was not chosen."""

    def run_all(x: Tensor, router: Tensor, *matrices: Tensor) -> Tensor:
        e = router.shape[0]
        weights, chosen = route(x, router, of.k)
        dense = torch.zeros(x.shape[0], e, dtype=x.dtype, device=x.device)
        dense = dense.scatter(1, chosen, weights)
        out = torch.zeros_like(x)
        for i in range(e):
            gate, up, down = matrices[i], matrices[e + i], matrices[2 * e + i]
            out = out + dense[:, i, None] * swiglu(x, gate, up, down)
        return out

    return run_all


def bmm_after(of: Mixture) -> Function:
    """GPT-OSS: all experts by bmm, weighted after them."""

    def bmm_after(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        e, (t, h) = router.shape[0], x.shape
        weights, chosen = route(x, router, of.k)
        dense = torch.zeros(t, e, dtype=x.dtype, device=x.device).scatter_(1, chosen, weights)
        tokens = x.repeat(e, 1).view(e, t, h)
        gate, up = torch.bmm(tokens, gate_up.transpose(1, 2)).chunk(2, dim=-1)
        out = torch.bmm(up * F.silu(gate), down.transpose(1, 2))
        return (out * dense.transpose(0, 1)[..., None]).sum(dim=0)

    return bmm_after


def bmm_before(of: Mixture) -> Function:
    """Llama 4: tokens are weighted, by a sigmoid, before they go through all experts by bmm."""

    def bmm_before(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        e, h = router.shape
        logits = F.linear(x, router)
        top, chosen = torch.topk(logits, of.k, dim=1)
        scores = torch.full_like(logits, -math.inf).scatter_(1, chosen, top)
        scores = torch.sigmoid(scores.float()).to(x.dtype).transpose(0, 1)
        tokens = x.repeat(e, 1) * scores.reshape(-1, 1)
        gate, up = torch.bmm(tokens.view(e, -1, h), gate_up.transpose(1, 2)).chunk(2, dim=-1)
        out = torch.bmm(up * F.silu(gate), down.transpose(1, 2))
        return out.view(e, -1, h).sum(dim=0)

    return bmm_before


def where_loop(of: Mixture) -> Function:
    """Mistral's reference: expert by expert, on the tokens that chose it."""

    def where_loop(x: Tensor, router: Tensor, *matrices: Tensor) -> Tensor:
        e = router.shape[0]
        weights, chosen = route(x, router, of.k)
        out = torch.zeros_like(x)
        for i in range(e):
            token, choice = torch.where(chosen == i)
            gate, up, down = matrices[i], matrices[e + i], matrices[2 * e + i]
            out[token] += weights[token, choice, None] * swiglu(x[token], gate, up, down)
        return out

    return where_loop


def index_add_loop(of: Mixture) -> Function:
    """transformers' Mixtral before it stacked its experts: one-hot masks and `index_add_`."""

    def index_add_loop(x: Tensor, router: Tensor, *matrices: Tensor) -> Tensor:
        e, h = router.shape
        weights, chosen = route(x, router, of.k)
        mask = F.one_hot(chosen, num_classes=e).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for i in range(e):
            choice, token = torch.where(mask[i])
            rows = x[None, token].reshape(-1, h)
            gate, up, down = matrices[i], matrices[e + i], matrices[2 * e + i]
            rows = swiglu(rows, gate, up, down) * weights[token, choice, None]
            out.index_add_(0, token, rows.to(x.dtype))
        return out

    return index_add_loop


def grouped(of: Mixture) -> Function:
    """transformers' `grouped_mm`: choices sorted by expert, a product of each run of rows."""

    def grouped(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        e, (t, h) = router.shape[0], x.shape
        weights, chosen = route(x, router, of.k)
        experts, order = torch.sort(chosen.reshape(-1))
        rows = x[order // of.k]
        counted = experts.float() if x.device.type == "cpu" else experts.int()
        counts = torch.histc(counted, bins=e, min=0, max=e - 1)
        ends = torch.cumsum(counts, dim=0, dtype=torch.int32)
        gate, up = grouped_product(rows, gate_up.transpose(-2, -1), ends).chunk(2, dim=-1)
        rows = grouped_product(F.silu(gate) * up, down.transpose(-2, -1), ends)
        rows = rows * weights.reshape(-1)[order].unsqueeze(-1)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.size(0), device=order.device)
        return rows[inverse].view(t, of.k, h).sum(dim=1).to(x.dtype)

    return grouped


def gathered(of: Mixture) -> Function:
    """transformers' `batched_mm`: the matrices of the experts that each token chose."""

    def gathered(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        t, h = x.shape
        weights, chosen = route(x, router, of.k)
        rows, experts = x.repeat_interleave(of.k, dim=0), chosen.reshape(-1)
        gate, up = torch.bmm(gate_up[experts], rows.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        rows = torch.bmm(down[experts], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (rows * weights.reshape(-1, 1)).view(t, of.k, h).sum(dim=1)

    return gathered


def grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Runs of rows `(R, in)`, each by its matrix of `(E, in, out)`.

    PyTorch's own product, which compiles in bf16 alone; the one that transformers puts in its place
    otherwise.
    """
    if rows.dtype == torch.bfloat16:
        return torch._grouped_mm(rows, matrices, offs=ends)
    return torch.ops.transformers.grouped_mm_fallback(rows, matrices, offs=ends)
