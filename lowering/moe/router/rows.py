"""A router in plain PyTorch, operator by operator as its spec says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fuser.specs import RouterSpec
from fuser.torch_private import differentiable


@lru_cache(maxsize=1024)
def spec_of(text: str) -> RouterSpec:
    """The spec that an operator's argument describes."""
    return RouterSpec.from_text(text)


def route(spec: RouterSpec, logits: Tensor, captured: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weights and indices, `(T, K)`.

    Args:
        spec: of the router.
        logits: `(T, E)`.
        captured: `(E,)` each.
    """
    scores = _scores(spec, logits)
    indices = _chosen(spec, logits, scores, captured)
    return _weights(spec, logits, scores, indices), indices


def gradient(spec: RouterSpec, grad: Tensor, logits: Tensor, indices: Tensor) -> Tensor:
    """Of the logits, from that of the weights; the indices are given."""
    leaf = logits.detach().requires_grad_()
    with differentiable():
        weights = _weights(spec, leaf, _scores(spec, leaf), indices)
    (found,) = torch.autograd.grad(weights, leaf, grad)
    return found.contiguous()


def _scores(spec: RouterSpec, logits: Tensor) -> Tensor:
    """`s`; nothing reads it where there is no softmax over experts."""
    if spec.softmax is None:
        return logits
    return spec.before(x=logits).softmax(-1, dtype=spec.softmax)


def _chosen(spec: RouterSpec, logits: Tensor, scores: Tensor, captured: Sequence[Tensor]) -> Tensor:
    biases = {f"b{i}": b for i, b in enumerate(captured)}
    compared = spec.compared(x=logits, s=scores, **biases)
    if spec.groups is not None:
        groups = compared.unflatten(-1, (spec.groups.count, -1))
        best = groups.topk(spec.groups.best, -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(-1, best.topk(spec.groups.kept, -1).indices, True)
        compared = groups.masked_fill(~kept[..., None], spec.groups.fill).flatten(-2)
    if spec.first:
        return compared.max(-1, keepdim=True).indices
    return compared.topk(spec.choices, -1, sorted=spec.sorted).indices


def _weights(spec: RouterSpec, logits: Tensor, scores: Tensor, indices: Tensor) -> Tensor:
    given = spec.taken(x=logits.gather(-1, indices), s=scores.gather(-1, indices))
    if spec.top_softmax is not None:
        given = given.softmax(-1, dtype=spec.top_softmax)
    total = given if spec.total is None else given.sum(-1, keepdim=True, dtype=spec.total)
    return spec.weights(g=given, t=total)
