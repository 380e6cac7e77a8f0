"""Fusion as a test: a change to a model that costs it a fused attention fails the test-suite.

`fuser.explain` shows what would be rewritten, without timing anything. Where the count differs,
`expect` raises with the report: what was found, and of what nearly was found, the line and reason.

    python -m examples.coverage            or            pytest examples/coverage.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fuser

WIDTH, HEADS = 64, 4


class SelfAttention(nn.Module):
    """Attention as many repositories have it; `leaky` also returns the probabilities' maximum."""

    def __init__(self, leaky: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.leaky = leaky

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        probabilities = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        out = (probabilities @ v).transpose(1, 2).reshape(b, s, WIDTH)
        return out, probabilities.amax() if self.leaky else None


class Encoder(nn.Module):
    """Two layers of attention; the second may leak."""

    def __init__(self, leaky: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SelfAttention(), SelfAttention(leaky)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        peaks: list[Tensor] = []
        for layer in self.layers:
            out, peak = layer(x)
            x = x + out
            if peak is not None:
                peaks.append(peak)
        return x, peaks


def test_every_attention_is_fused() -> None:
    """Both attentions of the encoder are rewritten."""
    with torch.no_grad():
        report = fuser.explain(Encoder().eval(), torch.randn(1, 512, WIDTH))
    report.expect(attention=2)


def leaky_report() -> str:
    """What the test above says once someone uses a layer's probabilities elsewhere."""
    with torch.no_grad():
        report = fuser.explain(Encoder(leaky=True).eval(), torch.randn(1, 512, WIDTH))
    try:
        report.expect(attention=2)
    except AssertionError as error:
        return str(error)
    raise RuntimeError("the second attention leaks its probabilities and must be left alone")


def main() -> None:
    """Passes the test, then shows how it fails."""
    test_every_attention_is_fused()
    print("two attentions, both fused\n\nwith the probabilities used elsewhere:\n")
    print(leaky_report())


if __name__ == "__main__":
    main()
