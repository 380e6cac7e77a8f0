"""Numbers that q or k are multiplied with: a generated kernel multiplies the scores instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.attention.generated.catalogue import recording
from tests.compiled import assert_near, compiled, run, wide
from tests.lowering.generated import operands

Attention = Callable[[Tensor, Tensor, Tensor], Any]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = q.shape[-1] ** -0.25
    return attend(q * root, root * k, v)


def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q / math.sqrt(q.shape[-1]), k, v)


def negated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q.mul(-0.3), k, v)


def through_views(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flat = q.transpose(1, 2).flatten(-2) * 0.3
    return attend(flat.unflatten(-1, (2, -1)).transpose(1, 2), k, v)


def two_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q * 0.5).mT.mT / 2, k, v)


MOVED: dict[str, tuple[Attention, str]] = {
    "both": (halves, "0.25"),
    "divided": (divided, "0.25"),
    "negated": (negated, "-0.3"),
    "through views": (through_views, "0.3"),
    "two steps": (two_steps, "0.25"),
}


def read_elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Any:
    small = q * 0.3
    return attend(small, k, v), small


def written_to(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q + 1.0
    small = q * 0.3
    out = attend(small, k, v)
    q.mul_(2.0)
    return out + q


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q + 1.0
    q *= 0.3
    return attend(q, k, v)


def by_a_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q * v.new_full((16,), 0.3), k, v)


def detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        small = q * 0.3
    return attend(small, k, v)


def huge(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q * 1e30) * 1e-30, k, v)


def nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q * 0.0, k, v)


def of_integers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q.detach().mul(4).to(torch.int32) * 0.3).to(k.dtype), k, v)


def rounded_down(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(torch.div(q, 0.3, rounding_mode="floor"), k, v)


LEFT: dict[str, Attention] = {
    "read elsewhere": read_elsewhere,
    "written to": written_to,
    "in place": in_place,
    "by a tensor": by_a_tensor,
    "detached": detached,
    "huge": huge,
    "nothing": nothing,
    "of integers": of_integers,
    "rounded down": rounded_down,
}


def scores(fn: Attention, dtype: torch.dtype) -> str:
    """The formula of the kernel's scores, after its numbers were compared with eager's."""
    x = operands(heads=2, kv=2, dtype=dtype).placed()
    args = (x.q[0], x.k[0], x.v)
    with recording() as entries:
        ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton"})
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True))
    assert ours.rewrites() == 1
    return next(iter(entries.values())).layout.spec.score.formula()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", MOVED)
def test_a_number_is_moved_to_the_scores(name: str, dtype: torch.dtype) -> None:
    fn, factor = MOVED[name]
    assert factor in scores(fn, dtype)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_such_number_stays(name: str) -> None:
    assert scores(LEFT[name], torch.float32) == "s0"
