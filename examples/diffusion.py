"""Residual blocks and attention of a diffusion model's decoder: what is found, and what pays where.

With `policy="always"` every chain around a normalisation, and the attention, is rewritten, which
shows what is proved. By default what pays on this machine is: on a CPU, group norms between
convolutions, since Inductor keeps their images with channels last, where PyTorch's own kernel is
faster than the opened one.

    python -m examples.diffusion
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuser

CHANNELS, GROUPS, SIDE = 32, 8, 16


class Residual(nn.Module):
    """Norm, silu, convolution, twice; an embedding of time shifts what is between."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, CHANNELS) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2)
        )
        self.time = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.convolutions[0](F.silu(self.norms[0](x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        return x + self.convolutions[1](F.silu(self.norms[1](h)))


class Attention(nn.Module):
    """Of all positions of an image, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(GROUPS, CHANNELS), nn.Conv2d(CHANNELS, 3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weights = torch.einsum("bcq,bck->bqk", q, k) * CHANNELS**-0.5
        return x + torch.einsum("bqk,bck->bcq", weights.softmax(-1), v).view_as(x)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = Residual(), Attention(), Residual()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.attention(self.first(x, time))
        return self.last(F.interpolate(x, scale_factor=2.0), time)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model, x, time = Decoder(), torch.randn(1, CHANNELS, SIDE, SIDE), torch.randn(1, CHANNELS)
    every = fuser.explain(model, x, time, options={"fuser.policy": "always"})
    every.expect(norm=5, attention=1)
    print(f"proved: {every.count('norm')} norms, {every.count('attention')} attention")
    paying = fuser.explain(model, x, time)
    print(f"rewritten by default here: {paying.count()}, of which norms {paying.count('norm')}")
    for rewrite in paying.rewritten:
        print(f"  {rewrite.where}: {rewrite.lowering}")
    step = torch.compile(model, backend="fuser", options={"fuser.inner": "aot_eager"})
    torch.testing.assert_close(step(x, time), model(x, time))


if __name__ == "__main__":
    main()
