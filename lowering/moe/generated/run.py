"""The forward and the backward of a mixture, kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..experts import is_choice, owners
from .problem import Places, Problem


def forward(of: Problem, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward starts from: see `operator`."""
    places = of.sort()
    hidden, saved = of.up(places, keep=keep)
    return of.down(places, hidden), saved, places.order, places.starts


def backward(
    of: Problem, grad: Tensor, saved: Tensor, places: Places, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x, weights, matrices and biases where `needs` says so."""
    layout, spec, experts = of.layout, of.layout.spec, of.experts
    if saved.shape[0] != of.rows:
        _, saved = of.up(places, keep=True, hidden=False)
    dh, again, of_weights = of.of_hidden(places, grad, saved)
    needs_x, needs_weights, *rest = needs
    found: list[Tensor] = []
    if needs_x:
        found.append(of.of_tokens(places, dh))
    if needs_weights:
        found.append(_with_bias(of, grad, of_weights).to(of.weights.dtype))
    given = {"grad": grad, "again": again, "dh": dh}
    each = spec.experts if spec.separate else 1
    names = [*spec.matrices, *spec.added]
    tensors = dict(zip(names, [*experts.matrices, *experts.biases], strict=True))
    wanted = dict(zip(names, rest, strict=True))
    added = [p for p, has in enumerate(spec.biases) if has]
    parts = [("matrix", p) for p in range(spec.products)] + [("bias", p) for p in added]
    for number, (stage, p) in enumerate(parts):
        own = names[number * each : (number + 1) * each]
        if not any(wanted[n] for n in own):
            continue
        complete = p == layout.last or layout.covered(p)
        make = torch.empty_like if complete else torch.zeros_like
        grads = [make(tensors[n]) for n in own]
        for column in _columns(of, p):
            of.of_tensor(stage, places, grads, column, given)
        found += [g for n, g in zip(own, grads, strict=True) if wanted[n]]
    return found


def _columns(of: Problem, product: int) -> list[int | None]:
    """Which of the activation's inputs a product makes; the last one makes none."""
    if product == of.layout.last:
        return [None]
    return [i for i, c in enumerate(of.layout.columns) if c.product == product]


def _with_bias(of: Problem, grad: Tensor, of_weights: Tensor) -> Tensor:
    """The gradient of weights, with what the bias of the last product gives it."""
    spec, layout = of.layout.spec, of.layout
    if spec.weights_first or layout.biases[layout.last] is None:
        return of_weights
    each = spec.experts if spec.separate else 1
    last = of.experts.biases[-each:]
    bias = torch.stack(list(last)) if spec.separate else last[0]
    by_expert = grad.to(of_weights.dtype) @ bias.to(of_weights.dtype).t()
    indices = owners(of.indices, of.tokens) if spec.runs else of.indices
    experts = torch.where(indices < 0, indices + spec.experts, indices).long()
    found = by_expert.gather(1, experts.clamp(0, spec.experts - 1))
    return of_weights + torch.where(is_choice(indices, spec), found, 0.0)
