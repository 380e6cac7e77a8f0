"""What the plan chooses on a GPU, by rule. No GPU is needed: nothing runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.program import Program
from fuser.lowering import Emission
from fuser.lowering.attention import gpu
from fuser.lowering.attention.generated.catalogue import CAUSAL, WINDOW
from fuser.options import LoweringChoice, Policy
from tests.lowering.on_gpu import planned, replacement

HALF = torch.bfloat16
SDPA, CAUSAL_SDPA, TRITON, LEFT = "aten.sdpa", "aten.sdpa, causal", "triton", "left"


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_capability", lambda device: (9, 0))


def _causal(scores: Tensor) -> Tensor:
    rows, keys = (torch.arange(n, device=scores.device) for n in scores.shape[-2:])
    return scores.masked_fill(rows[:, None] < keys, -torch.inf)


def _padded(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.masked_fill(~keep, torch.finfo(scores.dtype).min)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.125).softmax(-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _causal(q @ k.mT * 0.125).softmax(-1) @ v


def softcapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _causal(torch.tanh(q @ k.mT / 50) * 50).softmax(-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = torch.arange(q.shape[2], device=q.device)
    slopes = torch.tensor([2.0 ** -(i + 1) for i in range(q.shape[1])], device=q.device)
    distance = (rows - rows[:, None]) * slopes[:, None, None]
    return _causal(q @ k.mT * 0.125 + distance.to(q.dtype)).softmax(-1) @ v


def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT * 0.125 + bias).softmax(-1) @ v


def padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return _padded(q @ k.mT * 0.125, keep).softmax(-1) @ v


def padded_call(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, keep)


def sunk(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    scores = _causal(q @ k.mT * 0.125)
    column = sink[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout((q @ k.mT * 0.125).softmax(-1), 0.1) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return causal(q, k, v)


def grouped_and_padded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return padded(q, k, v, keep)


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = torch.arange(q.shape[2], device=q.device)
    keep = (rows[:, None] >= rows) & (rows[:, None] // 256 == rows // 256)
    return (q @ k.mT * 0.125).masked_fill(~keep, -torch.inf).softmax(-1) @ v


@dataclass(frozen=True)
class Sizes:
    """Of q, k and v."""

    batch: int = 2
    heads: int = 8
    key_heads: int = 8
    rows: int = 1024
    keys: int = 1024
    features: int = 64
    values: int = 64
    dtype: torch.dtype = HALF

    def inputs(self, more: tuple[Tensor, ...], grad: bool) -> tuple[Tensor, ...]:
        q = torch.empty(self.batch, self.heads, self.rows, self.features, dtype=self.dtype)
        k = torch.empty(self.batch, self.key_heads, self.keys, self.features, dtype=self.dtype)
        v = torch.empty(self.batch, self.key_heads, self.keys, self.values, dtype=self.dtype)
        return (*(x.requires_grad_(grad) for x in (q, k, v)), *more)


KEPT = torch.ones(2, 1, 1, 1024, dtype=torch.bool)
BIAS = torch.zeros(1, 8, 1024, 1024, dtype=HALF)
DECODING = Sizes(batch=16, heads=32, key_heads=32, rows=1, keys=8192, features=128, values=128)

CASES: list[tuple[str, Callable[..., Any], Sizes, tuple[Tensor, ...], str]] = [
    ("plain", plain, Sizes(), (), SDPA),
    ("plain, fp16", plain, Sizes(dtype=torch.float16), (), SDPA),
    ("plain, 256 features", plain, Sizes(features=256, values=256), (), SDPA),
    ("plain, 512 features", plain, Sizes(features=512, values=512), (), TRITON),
    ("plain, fp32", plain, Sizes(dtype=torch.float32), (), TRITON),
    ("plain, MLA", plain, Sizes(features=192, values=128), (), TRITON),
    ("plain, decoding", plain, DECODING, (), SDPA),
    ("plain, tiny", plain, Sizes(rows=16, keys=16), (), SDPA),
    ("causal", causal, Sizes(), (), CAUSAL_SDPA),
    ("causal, GQA", grouped, Sizes(key_heads=2), (), CAUSAL_SDPA),
    ("causal, chunks", chunked, Sizes(), (), "aten.sdpa, chunked 256"),
    ("causal, softcap", softcapped, Sizes(), (), TRITON),
    ("causal, softcap, tiny", softcapped, Sizes(rows=128, keys=128), (), LEFT),
    ("causal, ALiBi", alibi, Sizes(), (), TRITON),
    ("causal, ALiBi, tiny", alibi, Sizes(rows=128, keys=128), (), LEFT),
    ("causal, sink", sunk, Sizes(), (torch.zeros(8, dtype=HALF),), TRITON),
    ("bias", biased, Sizes(), (BIAS,), TRITON),
    ("padding", padded, Sizes(), (KEPT,), TRITON),
    ("padding, call", padded_call, Sizes(), (KEPT,), TRITON),
    ("padding, GQA", grouped_and_padded, Sizes(key_heads=2), (KEPT,), TRITON),
    ("padding, tiny", padded, Sizes(rows=16, keys=16), (KEPT[..., :16],), LEFT),
    ("dropout", dropped, Sizes(), (), TRITON),
]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("fn", "sizes", "more", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_rules(
    fn: Callable[..., Any], sizes: Sizes, more: tuple[Tensor, ...], expected: str, grad: bool
) -> None:
    found = planned(fn, sizes.inputs(more, grad), grad=grad)
    if expected == LEFT:
        assert isinstance(found, str), found.name
        assert "costs no more than to launch a kernel" in found
    else:
        assert isinstance(found, Emission), found
        assert found.name == expected


def _name(found: Emission | str) -> str:
    assert isinstance(found, Emission), found
    return found.name


def test_the_losers_are_named() -> None:
    found = planned(causal, Sizes().inputs((), False))
    assert isinstance(found, Emission)
    why = r"SDPA's flash kernels take it; not triton: \d\.\d times the work"
    assert re.fullmatch(why, found.why)


def test_why_nothing_else_took_it() -> None:
    found = planned(softcapped, Sizes().inputs((), False))
    assert isinstance(found, Emission)
    assert found.why.startswith("the program is printed into a kernel; not library kernel: `tanh`")
    assert "not FlexAttention: on a GPU the generated kernel is the same algorithm" in found.why


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0)])
def test_less_shared_memory(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their flash kernels have no backward beyond 192 features."""
    monkeypatch.setattr(gpu, "_capability", lambda device: capability)
    wide = Sizes(features=256, values=256)
    assert _name(planned(plain, wide.inputs((), False))) == SDPA
    assert _name(planned(plain, wide.inputs((), True), grad=True)) == TRITON
    assert _name(planned(plain, Sizes().inputs((), True), grad=True)) == SDPA


def test_before_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_capability", lambda device: (7, 5))
    assert _name(planned(plain, Sizes().inputs((), False))) == TRITON


def test_switched_off() -> None:
    flash, cudnn = torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_cudnn_sdp
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        flash(False)
        cudnn(False)
        assert _name(planned(plain, Sizes().inputs((), False))) == TRITON
    finally:
        flash(before[0])
        cudnn(before[1])


def test_fewer_queries_than_keys_under_a_causal_mask() -> None:
    """Aligned at the first key, which FlashAttention's mask is not: half of the work in an older
    kernel."""
    inputs = Sizes(rows=1024, keys=2048).inputs((), False)
    found = planned(causal, inputs, lowering=LoweringChoice.ATEN)
    assert isinstance(found, Emission)
    assert (found.name, found.work) == (CAUSAL_SDPA, 0.5 * gpu.EFFICIENT)


def test_policy_and_lowering_force() -> None:
    few = Sizes(rows=16, keys=16).inputs((), False)
    assert isinstance(planned(softcapped, few), str)
    assert _name(planned(softcapped, few, policy=Policy.ALWAYS)) == TRITON
    assert _name(planned(plain, few, lowering=LoweringChoice.TRITON)) == TRITON
    assert _name(planned(softcapped, few, lowering=LoweringChoice.REFERENCE)) == "reference"
    refused = planned(softcapped, few, lowering=LoweringChoice.ATEN)
    assert isinstance(refused, str)
    assert "`tanh` is not linear" in refused


def test_heads_that_share_keys_are_no_matter_for_a_mask_in_sdpa() -> None:
    keep = torch.ones(2, 1, 1, 1024, dtype=torch.bool)
    inputs = Sizes(key_heads=2).inputs((keep,), False)

    def call(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(4, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, keep)

    found = planned(call, inputs)
    assert isinstance(found, Emission)
    assert found.name == TRITON
    assert "SDPA writes every score" in found.why


@pytest.mark.parametrize(
    ("mask", "rows", "keys", "low", "high"),
    [
        (None, 4096, 4096, 1.0, 1.0),
        (CAUSAL, 4096, 4096, 0.5, 0.52),
        (CAUSAL, 100, 100, 1.0, 1.0),
        (WINDOW, 16384, 16384, 0.0625, 0.07),
    ],
)
def test_share_of_the_scores(
    mask: Program | None, rows: int, keys: int, low: float, high: float
) -> None:
    assert low <= gpu.share(mask, rows, keys) <= high


def test_share_of_unknown_sizes() -> None:
    assert gpu.share(CAUSAL, None, 4096) == 1.0


@pytest.mark.parametrize(
    ("fn", "sizes", "keywords"),
    [
        (plain, Sizes(), {"scale": 0.125}),
        (causal, Sizes(), {"scale": 0.125, "is_causal": True}),
        (grouped, Sizes(key_heads=2), {"scale": 0.125, "is_causal": True, "enable_gqa": True}),
        (chunked, Sizes(), {"scale": 0.125, "is_causal": True}),
    ],
)
def test_what_is_put_there(fn: Callable[..., Any], sizes: Sizes, keywords: dict[str, Any]) -> None:
    """SDPA under its own causal mask; no tensor for it, and no key head is repeated."""
    graph = replacement(fn, sizes.inputs((), False))
    (call,) = (n for n in graph.nodes if n.target is F.scaled_dot_product_attention)
    assert dict(call.kwargs) == keywords
    assert not {"arange", "where", "expand"} & {n.name for n in graph.nodes}
