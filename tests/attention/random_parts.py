"""The tables of parts that random_attention composes: each entry is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Contraction = Callable[[Tensor, Tensor], Tensor]
Unary = Callable[[Tensor], Tensor]


class Sizes(NamedTuple):
    """Sizes of one program; query heads are kv * group."""

    batch: int
    kv: int
    group: int
    queries: int
    keys: int
    depth: int
    values: int


class Layout(NamedTuple):
    """How operands lie in memory and how they become (B, H, S, D)."""

    order: str
    heads_first: Unary
    restore: Unary


LAYOUTS: dict[str, Layout] = {
    "bhsd": Layout("bhsd", lambda x: x, lambda x: x),
    "bshd transposed": Layout("bshd", lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2)),
    "bshd permuted": Layout(
        "bshd", lambda x: x.permute(0, 2, 1, 3), lambda x: x.permute(0, 2, 1, 3).flatten(2)
    ),
    "bshd copied": Layout(
        "bshd", lambda x: x.transpose(1, 2).contiguous(), lambda x: x.swapaxes(1, 2).contiguous()
    ),
    "sbhd einsum": Layout(
        "sbhd", lambda x: torch.einsum("sbhd->bhsd", x), lambda x: torch.einsum("bhsd->sbhd", x)
    ),
    "bhds": Layout("bhds", lambda x: x.mT, lambda x: x.transpose(-1, -2)),
}


def _expand(x: Tensor, group: int) -> Tensor:
    b, h, s, d = x.shape
    return x[:, :, None, :, :].expand(b, h, group, s, d).reshape(b, h * group, s, d)


HEADS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expand": _expand,
    "interleave": lambda x, group: x.repeat_interleave(group, dim=1),
    "interleave function": lambda x, group: torch.repeat_interleave(x, group, -3),
    "stack": lambda x, group: torch.stack([x] * group, dim=2).flatten(1, 2),
    "outermost": lambda x, group: x.repeat(1, group, 1, 1),
    "unflatten": lambda x, group: x.unsqueeze(2).repeat(1, 1, group, 1, 1).flatten(1, 2),
}


def _bmm(q: Tensor, k: Tensor) -> Tensor:
    b, h, s, d = q.shape
    keys = k.reshape(b * h, -1, d).transpose(1, 2)
    return torch.bmm(q.reshape(b * h, s, d), keys).view(b, h, s, -1)


def _baddbmm(q: Tensor, k: Tensor) -> Tensor:
    b, h, s, d = q.shape
    blank = torch.empty(b * h, s, k.shape[2], dtype=q.dtype, device=q.device)
    keys = k.reshape(b * h, -1, d).mT
    return torch.baddbmm(blank, q.reshape(b * h, s, d), keys, beta=0, alpha=1).view(b, h, s, -1)


CONTRACTIONS: dict[str, Contraction] = {
    "operator": lambda q, k: q @ k.transpose(-2, -1),
    "matmul": lambda q, k: torch.matmul(q, k.mT),
    "permute": lambda q, k: q.matmul(k.permute(0, 1, 3, 2)),
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "einsum": lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k),
    "einsum ellipsis": lambda q, k: torch.einsum("...id,...jd->...ij", q, k),
    "reversed": lambda q, k: (k @ q.mT).transpose(2, 3),
    "einsum reversed": lambda q, k: torch.einsum("bhkd,bhqd->bhkq", k, q).mT,
}

Scale = Callable[[Contraction, Tensor, Tensor, Tensor], Tensor]


def _in_place(dot: Contraction, q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    scores = dot(q, k)
    scores *= 0.4
    return scores


def _by_tensor(dot: Contraction, q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    return dot(q, k) / torch.full([], 2.5, dtype=q.dtype, device=q.device)


def _by_root(dot: Contraction, q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    root = torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float32, device=q.device))
    return dot(q / root.to(q.dtype), k)


SCALES: dict[str, Scale] = {
    "multiply": lambda dot, q, k, t: dot(q, k) * q.shape[-1] ** -0.5,
    "left": lambda dot, q, k, t: 0.4 * dot(q, k),
    "divide": lambda dot, q, k, t: dot(q, k) / q.size(-1) ** 0.5,
    "divide by integer": lambda dot, q, k, t: dot(q, k) / 3,
    "queries": lambda dot, q, k, t: dot(q * 0.4, k),
    "keys": lambda dot, q, k, t: dot(q, k * 0.4),
    "both": lambda dot, q, k, t: dot(q * 0.6, k / 1.5),
    "one": lambda dot, q, k, t: dot(q, k) * 1,
    "none": lambda dot, q, k, t: dot(q, k),
    "in place": _in_place,
    "0-d tensor": _by_tensor,
    "root tensor": _by_root,
    "per head": lambda dot, q, k, t: dot(q, k) * t.exp(),
}

Program = Callable[[Tensor, Tensor], Tensor]


def _rows(s: Tensor) -> Tensor:
    return torch.arange(s.shape[-2], device=s.device)[:, None]


def _columns(s: Tensor) -> Tensor:
    return torch.arange(s.shape[-1], device=s.device)[None, :]


def _future(s: Tensor) -> Tensor:
    return _columns(s) > _rows(s)


def _triangle(s: Tensor, filler: float) -> Tensor:
    return torch.full(s.shape[-2:], filler, dtype=s.dtype, device=s.device).triu(1)


def _iadd(s: Tensor, bias: Tensor) -> Tensor:
    s = s.clone()
    s += bias
    return s


def _window(s: Tensor, _: Tensor) -> Tensor:
    near = (_columns(s) - _rows(s) % s.shape[-1]).abs() < 4
    return s.masked_fill(~near, torch.finfo(s.dtype).min)


def _prefix(s: Tensor, _: Tensor) -> Tensor:
    keep = (_columns(s) <= _rows(s)) | (_columns(s) < 2)
    return torch.where(keep, s, torch.finfo(s.dtype).min)


def _alibi(s: Tensor, _: Tensor) -> Tensor:
    slopes = 0.5 ** torch.arange(1, s.shape[1] + 1, device=s.device, dtype=torch.float32)
    return s + (slopes[:, None, None] * _columns(s)).to(s.dtype)


# Every query keeps the first key or one near itself, so that no row is empty.
MASKS: dict[str, Program] = {
    "triangle added": lambda s, b: s + _triangle(s, -torch.inf),
    "triangle added left": lambda s, b: _triangle(s, torch.finfo(s.dtype).min)[None, None] + s,
    "filled": lambda s, b: s.masked_fill(_future(s), float("-inf")),
    "filled in place": lambda s, b: s.clone().masked_fill_(_future(s), torch.finfo(s.dtype).min),
    "where": lambda s, b: torch.where(_future(s), float("-inf"), s),
    "where turned": lambda s, b: torch.where(~_future(s), s, torch.finfo(s.dtype).min),
    "tril": lambda s, b: s.masked_fill(torch.ones_like(s[0, 0]).tril() == 0, -1e4),
    "window": _window,
    "prefix": _prefix,
}

PROGRAMS: dict[str, Program] = {
    "bias": lambda s, b: s + b,
    "bias left": lambda s, b: b[None] + s,
    "bias in place": _iadd,
    "bias promoted": lambda s, b: (s + b.float()).to(s.dtype),
    "alibi": _alibi,
    "distance": lambda s, b: s - 0.1 * (_columns(s) - _rows(s)).abs(),
    "cap": lambda s, b: torch.tanh(s / 4) * 4,
    "clamp": lambda s, b: s.clamp(-3, 5),
    "rescale": lambda s, b: s * 0.8,
    **MASKS,
}

Softmax = Callable[[Tensor, int], Tensor]


def _by_hand(s: Tensor, dim: int) -> Tensor:
    e = torch.exp(s - s.amax(dim=dim, keepdim=True))
    return e / e.sum(dim=dim, keepdim=True)


def _sink(s: Tensor, dim: int) -> Tensor:
    column = torch.linspace(-1, 1, s.shape[1], dtype=s.dtype, device=s.device)
    joined = torch.cat([s, column.view(1, -1, 1, 1).expand(*s.shape[:-1], 1)], dim=dim)
    joined = joined - joined.max(dim=dim, keepdim=True).values
    return joined.softmax(dim)[..., :-1]


def _plus_one(s: Tensor, dim: int) -> Tensor:
    peak = s.amax(dim=dim, keepdim=True).clamp(min=0).detach()
    e = torch.exp(s - peak)
    return e / (torch.exp(-peak) + e.sum(dim=dim, keepdim=True))


PLAIN_SOFTMAXES: dict[str, Softmax] = {
    "method": lambda s, dim: s.softmax(dim=dim),
    "functional": lambda s, dim: F.softmax(s, dim=dim),
    "dtype": lambda s, dim: torch.softmax(s, dim, dtype=torch.float32).to(s.dtype),
    "upcast": lambda s, dim: s.float().softmax(dim).type_as(s),
    "by hand": _by_hand,
    "logsumexp": lambda s, dim: torch.exp(s - s.logsumexp(dim, keepdim=True)),
    "log_softmax": lambda s, dim: F.log_softmax(s, dim=dim).exp(),
}

SOFTMAXES: dict[str, Softmax] = {
    **PLAIN_SOFTMAXES,
    "positive axis": lambda s, dim: F.softmax(s, dim=dim + s.dim()),
    "sink": _sink,
    "plus one": _plus_one,
}

DROPOUTS: dict[str, Unary] = {
    "none": lambda p: p,
    "zero": lambda p: F.dropout(p, p=0.0, training=True),
    "evaluation": lambda p: F.dropout(p, 0.2, False),
}


def _bmm_values(p: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(p.flatten(0, 1), v.flatten(0, 1)).unflatten(0, p.shape[:2])


VALUES: dict[str, Contraction] = {
    "operator": lambda p, v: p @ v,
    "matmul": lambda p, v: torch.matmul(p, v.contiguous()),
    "bmm": _bmm_values,
    "einsum": lambda p, v: torch.einsum("bhqk,bhkd->bhqd", p, v),
    "transposed": lambda p, v: (v.mT @ p.transpose(-2, -1)).mT,
}


def _same(x: Tensor) -> Tensor:
    return x


def _keep_values(v: Tensor, _: Tensor) -> Tensor:
    return v


@dataclass(frozen=True)
class Perturbation:
    """What is done to each stage of a program; by default nothing."""

    keys: Unary = _same
    scores: Unary = _same
    axis: int = -1
    probabilities: Unary = _same
    values: Callable[[Tensor, Tensor], Tensor] = _keep_values
    returns_probabilities: bool = False


PERTURBATIONS: dict[str, Perturbation] = {
    "softmax over queries": Perturbation(axis=-2),
    "softmax over heads": Perturbation(axis=-3),
    "softmax over batch": Perturbation(axis=-4),
    "keys not transposed": Perturbation(keys=lambda k: k.mT),
    "heads for keys": Perturbation(keys=lambda k: k.transpose(1, 2)),
    "probabilities transposed": Perturbation(probabilities=lambda p: p.transpose(-2, -1)),
    "values transposed": Perturbation(values=lambda v, s: v.mT),
    "scores rolled": Perturbation(scores=lambda s: s.roll(1, -1)),
    "scores flipped": Perturbation(scores=lambda s: s.flip(-1)),
    "scores accumulated": Perturbation(scores=lambda s: s.clamp(-4, 4).cumsum(-1)),
    "scores symmetric": Perturbation(scores=lambda s: s.clamp(-9, 9) + s.clamp(-9, 9).mT),
    "scores centred": Perturbation(scores=lambda s: s.clamp(-9, 9) - s.clamp(-9, 9).mean(-2, True)),
    "scores detached": Perturbation(scores=lambda s: s.detach()),
    "probabilities detached": Perturbation(probabilities=lambda p: p.detach()),
    "probabilities returned": Perturbation(returns_probabilities=True),
    "probabilities rolled": Perturbation(probabilities=lambda p: p.roll(2, -1)),
    "probabilities accumulated": Perturbation(probabilities=lambda p: p.cumsum(-1)),
    "probabilities squared": Perturbation(probabilities=lambda p: p * p),
    "softmax twice": Perturbation(probabilities=lambda p: p.softmax(-1)),
    "column sums": Perturbation(probabilities=lambda p: p / (p.sum(-2, keepdim=True) + 0.1)),
    "values from scores": Perturbation(values=lambda v, s: v + s.clamp(-9, 9).mean().to(v.dtype)),
}

NEEDS_EQUAL_SIZES = frozenset(
    {"keys not transposed", "heads for keys", "probabilities transposed", "values transposed",
     "scores symmetric"}
)  # fmt: skip
