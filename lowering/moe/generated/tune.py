"""How the kernels of a mixture are cut, by measurement, where the user asks for that.

Beside the rule's config, tiles with half or twice as many rows or columns are tried, other numbers
of warps and stages, matrices that are loaded through descriptors, and programs that go from tile to
tile. Tokens are random, and choose all experts alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from fuser import measure
from fuser.torch_private import hint, kernels_launched

from ...triton.launch import Target
from ...triton.tuning import Question, Tuner
from ..experts import Experts
from .config import Config, choose
from .layout import Layout

if TYPE_CHECKING:
    from .problem import Problem

STAGES = ("up", "down", "hidden", "tokens", "matrix")
"""What is tuned; sorting choices and adding up biases takes little time."""
TUNER = Tuner("a mixture", Config)


def lookup(of: Problem, stage: str) -> Config | None:
    """The config that was measured to be the fastest; None where the rule is to choose."""
    if stage not in STAGES:
        return None

    def question() -> Question[Config] | None:
        tokens, choices = hint(of.tokens), hint(of.choices)
        if tokens is None or choices is None:
            return None
        rows = tokens * choices / of.layout.spec.experts
        return Question(
            _about(of.layout, tokens, choices),
            lambda: _run(_made(of, tokens, choices), stage),
            lambda run: neighbours(of.layout, stage, of.target, rows),
        )

    return TUNER.lookup(stage, of.target, of.x.device, question)


def neighbours(layout: Layout, stage: str, target: Target, rows: float) -> list[Config]:
    """The rule's config, first, and those around it.

    Args:
        layout: what is computed.
        stage: one of `STAGES`.
        target: what the rule knows of the device.
        rows: that an expert has on average.
    """
    rule = choose(stage, layout, target.arch, rows)
    return list(dict.fromkeys([rule, *_varied(rule, stage, layout, target)]))


def _varied(rule: Config, stage: str, layout: Layout, target: Target) -> Iterator[Config]:
    for rows in (rule.block_m // 2, rule.block_m * 2):
        if 16 <= rows <= 256:
            yield replace(rule, block_m=rows)
    for columns in (rule.block_n // 2, rule.block_n * 2):
        if 16 <= columns // rule.parts and columns <= 256:
            yield replace(rule, block_n=columns)
    for warps in (rule.num_warps // 2, rule.num_warps * 2):
        if 2 <= warps <= 8:
            yield replace(rule, num_warps=warps)
    for stages in (rule.num_stages - 1, rule.num_stages + 1):
        if stages >= 1:
            yield replace(rule, num_stages=stages)
    if stage == "matrix":
        return
    described = target.tma and not layout.spec.separate and any(layout.along)
    for tma in (False, True) if described else (False,):
        for programs in (0, 1, 2):
            yield replace(rule, tma=tma, persistent=programs)


def _about(layout: Layout, tokens: int, choices: int) -> dict[str, Any]:
    """What the fastest config depends on; tokens by powers of two."""
    return {
        **{f.name: repr(getattr(layout, f.name)) for f in fields(layout)},
        "spec": layout.spec.to_text(),
        "sizes": {"T": measure.bucket(tokens), "K": choices},
    }


def _made(of: Problem, tokens: int, choices: int) -> Problem:
    """The same mixture of random operands; tensors lie as they do here."""
    device = of.x.device

    def like(t: torch.Tensor, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(t.dtype)

    def tensors(given: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for t in given:
            order = sorted(range(t.ndim), key=lambda d: -hint(t.stride(d)))  # type: ignore[operator]
            made = like(t, *(int(t.shape[d]) for d in order))
            found.append(made.permute([order.index(d) for d in range(t.ndim)]))
        return found

    experts = Experts(of.experts.spec, tensors(of.experts.matrices), tensors(of.experts.biases))
    count = of.layout.spec.experts
    if of.layout.spec.runs:  # of equal lengths
        indices = torch.arange(1, count + 1, device=device) * tokens // count
    else:
        indices = torch.rand(tokens, count, device=device).topk(choices, dim=-1).indices
    return replace(
        of,
        x=like(of.x, tokens, of.layout.features),
        indices=indices.to(of.indices.dtype),
        weights=like(of.weights, tokens, choices),
        experts=experts,
    )


def _run(of: Problem, stage: str) -> measure.Run:
    """Runs one stage on what the stages before it give."""
    layout = of.layout
    with TUNER.trying({}), kernels_launched():
        places = of.sort()
        hidden, saved = of.up(places, keep=True)
    if stage == "up":
        return lambda: of.up(places, keep=True)
    if stage == "down":
        return lambda: of.down(places, hidden)
    grad = torch.randn(of.tokens, layout.width, device=of.x.device).to(layout.spec.dtype)
    if stage == "hidden":
        return lambda: of.of_hidden(places, grad, saved)
    with TUNER.trying({}), kernels_launched():
        dh, again, _ = of.of_hidden(places, grad, saved)
    if stage == "tokens":
        return lambda: of.of_tokens(places, dh)
    each = layout.spec.experts if layout.spec.separate else 1
    grads = [torch.empty_like(m) for m in of.experts.matrices[-each:]]
    given = {"grad": grad, "again": again}
    return lambda: of.of_tensor("matrix", places, grads, None, given)
