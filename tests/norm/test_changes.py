"""What changes between two runs: resolutions and frames compile no more graphs than without any
rewrite, and weights that were written to, merged or replaced are those that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuser.backend import listening
from fuser.events import Record
from tests.every import crossed, some

WIDTH, HEADS = 16, 2


class ResBlock(nn.Module):
    """A UNet's: norms around the embedding of the time step, which scales and shifts the second."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, WIDTH), nn.GroupNorm(4, WIDTH)
        self.conv1, self.conv2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.embed = nn.Linear(8, 2 * WIDTH)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        shift, scale = self.embed(F.silu(step))[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return (x + h) / 1.0


class DiTBlock(nn.Module):
    """A video transformer's: modulation, norms of queries and keys, their rotation, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6) for _ in range(2)
        )
        self.q_norm, self.k_norm = nn.RMSNorm(WIDTH // HEADS), nn.RMSNorm(WIDTH // HEADS)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.embed, self.mlp = nn.Linear(8, 6 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Of (batch, channels, frames, height, width)."""
        h = x.flatten(2).transpose(1, 2)
        mods = self.embed(step)[:, None].chunk(6, -1)
        attended = self.attention(self.norm1(h) * (1 + mods[0]) + mods[1])
        h = h + mods[2] * attended
        h = h + mods[5] * self.mlp(self.norm2(h) * (1 + mods[3]) + mods[4])
        return h.transpose(1, 2).unflatten(2, x.shape[2:])

    def attention(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        powers = 10 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
        angle = torch.arange(h.shape[1])[:, None] * torch.cat([powers, powers])
        q, k = (self.rotated(t, angle) for t in (self.q_norm(q), self.k_norm(k)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def rotated(t: Tensor, angle: Tensor) -> Tensor:
        first, second = t.chunk(2, -1)
        return t * angle.cos() + torch.cat((-second, first), -1) * angle.sin()


def unet(*sizes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, WIDTH, *sizes), torch.randn(2, 8)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "unet": (ResBlock, [(4, 4), (6, 8), (8, 6), (5, 7)]),
    "dit": (DiTBlock, [(2, 4, 4), (3, 4, 6), (5, 6, 4), (4, 5, 3)]),
}
COUNTS = {"unet": {"norm.native": 2}, "dit": {"norm.native": 4}}
ALWAYS: dict[str, Any] = {
    "fuser.policy": "always",
    "fuser.strict": True,
    "fuser.inner": "aot_eager",
}
NOTHING = {**ALWAYS, "fuser.patterns": ("-*",)}


def compiled(module: nn.Module, options: dict[str, Any], dynamic: bool | None) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="fuser", options=options, dynamic=dynamic)


def graphs(name: str, options: dict[str, Any], *, dynamic: bool | None, grad: bool) -> int:
    """How many are compiled for all sizes, in a run of each."""
    make, sizes = BLOCKS[name]
    torch.manual_seed(0)
    module = make()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    step, record = compiled(module, options, dynamic), Record()
    with torch.set_grad_enabled(grad), listening(record.extend):
        for size in sizes:
            x, t = unet(*size)
            torch.testing.assert_close(step(x, t), module(x, t), atol=2e-5, rtol=2e-5)
    found = {r.pattern for r in record.rewritten if r.pattern.startswith("norm.")}
    assert found == (set() if options is NOTHING else set(COUNTS[name]))
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


@pytest.mark.parametrize(
    ("dynamic", "grad"),
    some([(None, False), (True, False), (None, True), (True, True)], 4),
    ids=str,
)
@pytest.mark.parametrize("name", BLOCKS)
def test_no_more_graphs_than_without(name: str, dynamic: bool | None, grad: bool) -> None:
    ours, theirs = (graphs(name, o, dynamic=dynamic, grad=grad) for o in (ALWAYS, NOTHING))
    assert ours == theirs
    assert ours < len(BLOCKS[name][1])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_norm_is_a_region(name: str) -> None:
    make, sizes = BLOCKS[name]
    step, record = compiled(make(), ALWAYS, None), Record()
    with torch.no_grad(), listening(record.extend):
        step(*unet(*sizes[0]))
    found: dict[str, int] = {}
    for rewritten in record.rewritten:
        found[rewritten.pattern] = found.get(rewritten.pattern, 0) + rewritten.count
    assert {k: v for k, v in found.items() if k.startswith("norm.")} == COUNTS[name]


@torch.no_grad()
def _write(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def _merge(module: nn.Module) -> None:
    """LoRA: a product of low rank is added to every matrix."""
    for parameter in module.parameters():
        if parameter.ndim == 2:
            a, b = torch.randn(parameter.shape[0], 2), torch.randn(2, parameter.shape[1])
            parameter.data += 0.3 * a @ b


def _replace(module: nn.Module) -> None:
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            setattr(each, name, nn.Parameter(parameter.detach() * 1.5 + 0.2))


def _load(module: nn.Module) -> None:
    module.load_state_dict({k: v * 0.7 - 0.1 for k, v in module.state_dict().items()})


def _load_by_assigning(module: nn.Module) -> None:
    state = {k: v * 1.3 + 0.1 for k, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


CHANGES = [_write, _merge, _replace, _load, _load_by_assigning]


@pytest.mark.parametrize(("lowering", "grad"), crossed(["auto", "reference"], [False, True]))
@pytest.mark.parametrize("name", BLOCKS)
def test_changed_weights_count(name: str, lowering: str, grad: bool) -> None:
    """One compiled block through all changes, with the graphs that eager's would need."""
    make, sizes = BLOCKS[name]
    torch.manual_seed(0)
    module = make()
    step = compiled(module, {**ALWAYS, "fuser.lowering": lowering}, None)
    x, t = unet(*sizes[0])
    seen = []
    with torch.set_grad_enabled(grad):
        for change in (lambda _: None, *CHANGES):
            change(module)
            ours, theirs = step(x, t), module(x, t)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            seen.append(theirs.detach())
            if grad:
                parameters = list(module.parameters())
                pairs = (torch.autograd.grad(y.sin().sum(), parameters) for y in (ours, theirs))
                for a, b in zip(*pairs, strict=True):
                    torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)
    assert all(not torch.equal(a, b) for a, b in zip(seen[1:], seen[:-1], strict=True))


def test_writing_and_merging_compile_nothing() -> None:
    torch.manual_seed(0)
    module = DiTBlock()
    step = compiled(module, ALWAYS, None)
    x, t = unet(2, 4, 4)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for change in (lambda _: None, _write, _merge, _load):
            change(module)
            torch.testing.assert_close(step(x, t), module(x, t), atol=1e-4, rtol=1e-4)
