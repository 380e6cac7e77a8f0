"""Masks that follow from symbolic sizes: causal ones are never made, look-alikes stay masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuser.backend import listening
from fuser.events import Record
from tests.compiled import assert_near, compiled, run, wide
from tests.models import CASES
from tests.models.case import Outputs

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
B, H, S, D = 2, 3, 10, 8
Mask = Callable[[Tensor, int, int], Tensor]
"""q, number of queries, number of keys -> kept positions, or a bias."""
LOWEST = torch.finfo(torch.float32).min


def _ij(s: int, t: int) -> tuple[Tensor, Tensor]:
    return torch.arange(s)[:, None], torch.arange(t)[None]


def _le(i: Tensor, j: Tensor) -> Tensor:
    return j <= i


CAUSAL: dict[str, Mask] = {
    "le": lambda q, s, t: _le(*_ij(s, t)),
    "not gt": lambda q, s, t: ~(torch.arange(t) > torch.arange(s).view(-1, 1)),
    "lt plus one": lambda q, s, t: torch.arange(t) < torch.arange(s)[:, None] + 1,
    "tril": lambda q, s, t: torch.ones(s, t, dtype=torch.bool).tril(),
    "triu bias": lambda q, s, t: torch.full((s, t), float("-inf")).triu(1),
    "lowest": lambda q, s, t: torch.full((s, t), LOWEST).triu(diagonal=1)[None, None],
    "inverted": lambda q, s, t: (1.0 - torch.ones(s, t).tril()) * LOWEST,
    "where": lambda q, s, t: torch.where(_le(*_ij(s, t)), torch.zeros(()), LOWEST),
    "batched": lambda q, s, t: _le(*_ij(s, t))[None, None].expand(q.shape[0], -1, s, t),
    "with no-op": lambda q, s, t: _le(*_ij(s, t)) & (torch.arange(t) < t),
}


def _window(s: int, t: int, width: int) -> Tensor:
    i, j = _ij(s, t)
    return (j <= i) & (j > i - width)


# name: mask, part of the lowering's name that it must have
OTHERS: dict[str, tuple[Mask, str]] = {
    "one more": (lambda q, s, t: torch.arange(t) <= torch.arange(s)[:, None] + 1, "flash"),
    "strict": (lambda q, s, t: torch.arange(t) < torch.arange(s)[:, None], "flash"),
    "reversed": (lambda q, s, t: torch.arange(t) >= torch.arange(s)[:, None], "flash"),
    "window": (lambda q, s, t: _window(s, t, 4), "flash"),
    "chunks": (
        lambda q, s, t: _le(*_ij(s, t)) & (torch.arange(t) // 4 == torch.arange(s)[:, None] // 4),
        "flash",
    ),
    "step of two": (
        lambda q, s, t: torch.arange(0, 2 * t, 2) <= torch.arange(s)[:, None],
        "flash",
    ),
    "heads": (
        lambda q, s, t: (torch.arange(t) <= torch.arange(q.shape[1])[:, None])[None, :, None],
        "flash",
    ),
    "floats": (
        lambda q, s, t: torch.arange(t).float() <= torch.arange(s)[:, None],
        "flash",
    ),
    "input": (
        lambda q, s, t: _le(*_ij(s, t)) & (q[0, 0, :, 0] > -9)[:, None],
        "flash",
    ),
    "small bias": (lambda q, s, t: torch.full((s, t), -100.0).triu(1), "flash"),
    "inner batch": (
        lambda q, s, t: (
            _le(*_ij(s, t)) | (torch.arange(q.shape[0]) == 0)[:, None, None]
        )[:, None],
        "flash",
    ),
}  # fmt: skip


def _program(mask: Mask) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * D**-0.5
        kept = mask(q, q.shape[-2], k.shape[-2])
        if kept.dtype is torch.bool:
            scores = scores.masked_fill(~kept, float("-inf"))
        else:
            scores = scores + kept.to(scores.dtype)
        return scores.softmax(-1) @ v

    return attend


def _inputs(rows: int, keys: int, features: int = D) -> list[Tensor]:
    torch.manual_seed(rows)
    inputs = [torch.randn(B, H, n, features) for n in (rows, keys, keys)]
    for x in inputs:
        for dim in (0, 2):
            torch._dynamo.maybe_mark_dynamic(x, dim)
    return inputs


def _check(mask: Mask, rows: int = S, keys: int = S, dynamic: bool | None = None) -> str:
    """Compile once, compare two lengths, and give the name of the lowering."""
    torch._dynamo.reset()
    program, record = _program(mask), Record()
    options: dict[str, Any] = {
        "fuser.inner": "aot_eager",
        "fuser.policy": "always",
        "fuser.strict": True,
    }
    target = torch.compile(program, backend="fuser", options=options, dynamic=dynamic)
    with listening(record.extend):
        for more in (0, 7):
            inputs = _inputs(rows + more, keys + more)
            with torch._dynamo.config.patch(error_on_recompile=bool(more)):
                ours = run(target, inputs)
            assert_near(ours, run(program, inputs), run(program, wide(inputs)))
    (name,) = {r.lowering for r in record.rewritten}
    return name


@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name: str) -> None:
    assert _check(CAUSAL[name]) == "aten.sdpa, causal"


def test_causal_when_everything_is_dynamic() -> None:
    assert _check(CAUSAL["le"], dynamic=True) == "aten.sdpa, causal"


@pytest.mark.parametrize("name", OTHERS)
def test_lookalikes(name: str) -> None:
    mask, part = OTHERS[name]
    lowering = _check(mask)
    assert "causal" not in lowering
    assert part in lowering


def test_first_rows_of_more_keys() -> None:
    assert _check(CAUSAL["le"], S, S + 3) == "aten.sdpa, causal"


def test_last_rows_of_more_keys() -> None:
    assert "causal" not in _check(
        lambda q, s, t: torch.ones(s, t, dtype=torch.bool).tril(t - s), S, S + 3
    )


def test_no_mask_at_all() -> None:
    assert _check(lambda q, s, t: torch.arange(t)[None] < t) == "aten.sdpa"
    assert _check(lambda q, s, t: torch.zeros(s, t)[None]) == "aten.sdpa"


def test_two_masks_are_both_kept() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q.shape[-2], k.shape[-2])
        scores = q @ k.transpose(-1, -2) + torch.where(j <= i, 0.0, LOWEST)
        return scores.masked_fill(j <= i - 4, LOWEST).softmax(-1) @ v

    inputs = _inputs(S, S)
    ours = compiled(program, inputs)
    assert_near(ours, run(program, inputs), run(program, wide(inputs)))
    assert ours.record.rewritten[0].lowering.endswith("flash, bias")


def test_a_window_of_one_sequence_keeps_every_query() -> None:
    def program(x: Tensor) -> Tensor:
        kept = _window(x.shape[1], x.shape[1], 4)
        scores = (x @ x.transpose(-1, -2)).masked_fill(~kept, float("-inf"))
        return scores.softmax(-1) @ x

    inputs = [_inputs(S, S)[0][:, 0].clone()]
    torch._dynamo.maybe_mark_dynamic(inputs[0], 1)
    ours = compiled(program, inputs)
    assert_near(ours, run(program, inputs), run(program, wide(inputs)))
    assert ours.record.rewritten[0].facts["rows"] == "every query keeps a key"


@pytest.mark.parametrize("name", ["triu bias", "lowest", "le"])
def test_gradients(name: str) -> None:
    program, inputs = _program(CAUSAL[name]), _inputs(S, S)
    inputs = [x.requires_grad_() for x in inputs]
    ours = compiled(program, inputs, grad=True)
    exact = run(program, wide(inputs), grad=True)
    assert_near(ours, run(program, inputs, grad=True), exact)
    assert ours.record.rewritten[0].lowering == "aten.sdpa, causal"


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("llama", "aten.sdpa, causal"), ("bloom", "bias"), ("gemma2", "")],
)
def test_models(name: str, lowering: str) -> None:
    case = CASES[name]
    model: nn.Module = Outputs(case, case.build("eager"))
    inputs = case.inputs()
    ours = compiled(model, (), inputs, dynamic=True)
    assert_near(ours, run(model, (), inputs), run(wide(model), (), wide(inputs)))
    assert ours.rewrites() >= case.attentions
    attentions = [r for r in ours.record.rewritten if r.pattern.startswith("attention.")]
    assert all(lowering in r.lowering for r in attentions)
