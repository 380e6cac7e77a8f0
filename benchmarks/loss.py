"""The cross-entropy of a language model's head, with a vocabulary of 128k.

2048 tokens of 256 features, so that the logits (1 GiB in fp32) and their gradient are what fills
memory, as they do at the sizes of real models. Three spellings:

    plain       linear, float, cross_entropy
    softcap     with Gemma 2's tanh in between
    shift       transformers': a slice of the logits, labels that are ignored
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks import limits
from benchmarks.cases import Case, Workload
from benchmarks.providers import Function

Tensor = torch.Tensor

IGNORED = -100


@dataclass(frozen=True)
class Sizes:
    """Sequences, tokens of each, features, and classes."""

    b: int
    t: int
    d: int
    v: int


SIZE = Sizes(b=2, t=1024, d=256, v=131072)
SMALL = Sizes(b=2, t=16, d=32, v=512)
"""For `--quick`."""


def plain(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))


def softcap(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = torch.tanh(F.linear(x, weight) / 30.0) * 30.0
    return F.cross_entropy(logits.float().view(-1, logits.size(-1)), labels.view(-1))


def shift(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(x, weight).float()
    logits, labels = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    flat = logits.view(-1, logits.size(-1))
    return F.cross_entropy(flat, labels.view(-1), ignore_index=IGNORED)


SPELLINGS: dict[str, Function] = {"plain": plain, "softcap": softcap, "shift": shift}


def build(fn: Function, of: Sizes, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random hidden states and a head as it is initialised; a tenth of the labels are ignored."""
    x = torch.randn(of.b, of.t, of.d, device=device).to(dtype)
    weight = (torch.randn(of.v, of.d, device=device) * of.d**-0.5).to(dtype)
    labels = torch.randint(of.v, (of.b, of.t), device=device)
    labels = labels.masked_fill(torch.rand(of.b, of.t, device=device) < 0.1, IGNORED)
    full = mode == "full"
    args = (x.requires_grad_(full), weight.requires_grad_(full), labels)
    return Case(fn, args, (torch.ones((), device=device),) if full else ())


def work(of: Sizes, dtype: torch.dtype, mode: str) -> limits.Work:
    """Products of every row with every class, three times with gradients."""
    times = 3 if mode == "full" else 1
    numbers = of.v * of.d + of.b * of.t * of.d
    return limits.Work(2.0 * of.b * of.t * of.d * of.v * times, numbers * dtype.itemsize * times)


def workloads(quick: bool) -> list[Workload]:
    """All spellings, forward, and forward and backward."""
    of = SMALL if quick else SIZE

    def one(name: str, fn: Function) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(fn, of, dtype, device, mode)

        def least(dtype: torch.dtype, mode: str) -> limits.Work:
            return work(of, dtype, mode)

        config = {"D": of.d, "V": of.v}
        return Workload("loss", name, case, ("full", "forward"), ("T", of.b * of.t), config, least)

    return [one(name, fn) for name, fn in SPELLINGS.items()]
