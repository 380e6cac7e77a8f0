"""A pattern of one's own: what to find and what to put there, as two plain PyTorch functions.

ArcFace-like heads often normalise both sides of a matmul by hand. The logits are the same if the
small side alone is normalised and the scores are divided by the other side's norms, and that saves
a pass over the large matrix.

    python -m examples.custom_pattern
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fuser
from fuser.outlets import rewrites

ID = "mine.cosine_logits"


def find(x: Tensor, w: Tensor) -> Tensor:
    """Cosine similarities of the rows of x (N, D) and of w (C, D)."""
    unit_x = x / x.norm(dim=-1, keepdim=True)
    unit_w = w / w.norm(dim=-1, keepdim=True)
    return unit_x @ unit_w.transpose(-2, -1)


def replace(x: Tensor, w: Tensor) -> Tensor:
    """The same with w untouched: x · w / (|x| |w|)."""
    unit_x = x / x.norm(dim=-1, keepdim=True)
    return unit_x @ w.transpose(-2, -1) / w.norm(dim=-1)


def model(x: Tensor, w: Tensor) -> Tensor:
    """A user's code; it need not be spelled as `find` is."""
    unit_x = torch.div(x, x.norm(dim=-1, keepdim=True))
    unit_w = torch.div(w, w.norm(dim=-1, keepdim=True))
    return torch.matmul(unit_x, unit_w.mT) * 64.0


def main() -> None:
    """Compiles with the pattern in scope, compares with eager, and shows that it was found."""
    x, w = torch.randn(32, 128), torch.randn(10_000, 128)
    example_inputs = (torch.randn(4, 8), torch.randn(6, 8))
    counters["fuser"].clear()
    with fuser.register_pattern(find, replace, example_inputs, id=ID), torch.no_grad():
        compiled = torch.compile(model, backend="fuser")
        torch.testing.assert_close(compiled(x, w), model(x, w))
    print("rewrites:", rewrites())
    assert counters["fuser"][ID] == 1


if __name__ == "__main__":
    main()
