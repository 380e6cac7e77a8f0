"""torch's one-node attentions: opened exactly, counted once, declined with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.compiled import Run, assert_near, compiled, run, wide

from .cases import B, E, H, Inputs, S, Spelling, fixed, kept_keys, normal, take
from .spellings_composites import COMPOSITES

SK, KDIM, VDIM = 28, 72, 40
DTYPES = [torch.float32, torch.bfloat16]
_NAMES = ("mha_", "attention_module", "encoder_layer", "decoder_layer")
MODULES = [s for s in COMPOSITES if s.name.startswith(_NAMES)]


def _attentions() -> int:
    return sum(n for name, n in counters["fuser"].items() if name.startswith("attention."))


def _check(fn: Any, inputs: tuple[Tensor, ...], *, grad: bool, count: int, **options: Any) -> Run:
    before = _attentions()
    ours = compiled(fn, inputs, grad=grad, **options)
    assert ours.rewrites() == count, ours.reasons()
    assert _attentions() - before == count
    assert_near(ours, run(fn, inputs, grad=grad), run(wide(fn), wide(inputs), grad=grad))
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", MODULES, ids=lambda s: s.name)
def test_spelling(case: Spelling, grad: bool, dtype: torch.dtype) -> None:
    _check(case.program(dtype), case.inputs(dtype), grad=grad, count=case.attentions)


@dataclass(frozen=True)
class Variant:
    """A call of `F.multi_head_attention_forward`; `lowering` is a word of the last event's."""

    name: str
    tensors: Inputs
    call: Callable[..., Tensor]
    lowering: str = "replacement"
    flags: dict[str, Any] = field(default_factory=dict)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, wi: Tensor | None, bi: Tensor | None, wo: Tensor,
    bo: Tensor | None, **flags: Any,
) -> Tensor:  # fmt: skip
    settings: dict[str, Any] = {"training": False, "need_weights": False, **flags}
    return F.multi_head_attention_forward(
        q, k, v, E, H, wi, bi, None, None, False, 0.0, wo, bo, **settings
    )[0]


_WEIGHTS = (normal(3 * E, E, std=0.2), normal(3 * E, std=0.1), normal(E, E, std=0.1), normal(E))
_SELF = take(normal(S, B, E), *_WEIGHTS)
_ALONE = take(normal(S, E), *_WEIGHTS)
_CROSS = take(normal(S, B, E), normal(SK, B, E), *_WEIGHTS)
_THREE = take(normal(S, B, E), normal(SK, B, E), normal(SK, B, E), *_WEIGHTS)
_WIDTHS = take(
    normal(S, B, E), normal(SK, B, KDIM), normal(SK, B, VDIM), normal(E, E, std=0.2),
    normal(E, KDIM, std=0.2), normal(E, VDIM, std=0.2), *_WEIGHTS[1:],
)  # fmt: skip


def _itself(x: Tensor, *weights: Tensor, **flags: Any) -> Tensor:
    return _attend(x, x, x, *weights, **flags)


def _cross(x: Tensor, y: Tensor, *weights: Tensor, **flags: Any) -> Tensor:
    return _attend(x, y, y, *weights, **flags)


def _separate(q: Tensor, k: Tensor, v: Tensor, *w: Tensor, bias: bool = True) -> Tensor:
    wq, wk, wv, bi, wo, bo = w
    return _attend(
        q, k, v, None, bi if bias else None, wo, bo, use_separate_proj_weight=True,
        q_proj_weight=wq, k_proj_weight=wk, v_proj_weight=wv,
    )  # fmt: skip


def _no_biases(x: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor) -> Tensor:
    return _attend(x, x, x, wi, None, wo, None)


def _future(x: Tensor) -> Tensor:
    return torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1)


def _causal(x: Tensor, *w: Tensor, **flags: Any) -> Tensor:
    return _itself(x, *w, attn_mask=_future(x), **flags)


def _with(make: Callable[[], Tensor], name: str, inputs: Inputs, fn: Any, **flags: Any) -> Variant:
    """A variant with one more input, a mask that is known only when it runs."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (*inputs(dtype), *take(fixed(make))(dtype))

    def call(*args: Tensor) -> Tensor:
        return fn(*args[:-1], **{name.split()[0]: args[-1]}, **flags)

    return Variant(name, build, call, "")


def _dead_row() -> Tensor:
    mask = torch.zeros(S, S, dtype=torch.bool)
    mask[3] = True
    return mask


def _bias(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    Variant("cross", _CROSS, _cross),
    Variant("three inputs", _THREE, _attend),
    Variant("separate weights", _WIDTHS, _separate),
    Variant("separate without bias", _WIDTHS, lambda *a: _separate(*a, bias=False)),
    Variant("no biases", _SELF, _no_biases),
    Variant("unbatched", _ALONE, _itself),
    Variant("causal", _SELF, _causal, "causal"),
    Variant("causal with weights", _SELF, lambda *a: _causal(*a, need_weights=True), "causal"),
    Variant("causal hint", _SELF, lambda *a: _causal(*a, is_causal=True)),
    Variant("unbatched causal", _ALONE, _causal, "causal"),
    Variant(
        "causal hint with weights",
        _SELF,
        lambda *a: _causal(*a, is_causal=True, need_weights=True, average_attn_weights=False),
        "causal",
    ),
    _with(lambda: ~kept_keys(B, SK), "key_padding_mask", _CROSS, _cross),
    _with(lambda: ~kept_keys(B, SK), "key_padding_mask weights", _CROSS, _cross, need_weights=True),
    _with(lambda: ~kept_keys(), "key_padding_mask causal", _SELF, _causal),
    _with(lambda: ~kept_keys(), "key_padding_mask hint", _SELF, _causal, is_causal=True),
    _with(lambda: ~kept_keys(1)[0], "key_padding_mask unbatched", _ALONE, _itself),
    _with(_bias(B, S), "key_padding_mask float", _SELF, _itself),
    _with(_bias(B, S), "key_padding_mask float and bool", _SELF, _causal),
    _with(_bias(S, SK), "attn_mask float", _CROSS, _cross),
    _with(_bias(B * H, S, SK), "attn_mask float 3-D", _CROSS, _cross),
    _with(_bias(B * H, S, SK), "attn_mask 3-D weights", _CROSS, _cross, need_weights=True),
    _with(_bias(H, S, S), "attn_mask float 3-D unbatched", _ALONE, _itself),
    _with(lambda: _bias(B * H, S, S)() > 0.5, "attn_mask bool 3-D", _SELF, _itself),
    _with(_dead_row, "attn_mask dead row", _SELF, _itself),
    _with(_dead_row, "attn_mask dead row weights", _SELF, _itself, need_weights=True),
]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", VARIANTS, ids=lambda v: v.name)
def test_variant(case: Variant, grad: bool, dtype: torch.dtype) -> None:
    ours = _check(case.call, case.tensors(dtype), grad=grad, count=1)
    assert case.lowering in ours.record.rewritten[-1].lowering


def test_dynamic_shapes() -> None:
    """AOTAutograd is who has Dynamo look at numbers, like the epsilon of a norm, as constants."""

    def padded(*args: Tensor) -> Tensor:
        return _cross(*args[:-1], key_padding_mask=args[-1], need_weights=False)

    inputs = take(normal(S, B, E), normal(SK, B, E), *_WEIGHTS, fixed(lambda: ~kept_keys(B, SK)))
    _check(padded, inputs(torch.float32), grad=True, count=1, dynamic=True)
    _check(_itself, _SELF(torch.float32), grad=True, count=1, dynamic=True)
    layer = next(s for s in MODULES if s.name == "encoder_layer")
    _check(layer.program(torch.float32), layer.inputs(torch.float32), grad=False, count=1,
           inner="aot_eager", dynamic=True)  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
def test_inductor(masked: bool) -> None:
    _check(_causal if masked else _itself, _SELF(torch.float32), grad=True, count=1,
           inner="inductor", policy="auto" if not masked else "always")  # fmt: skip


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_autocast(inside: bool, need_weights: bool) -> None:
    """Casts happen at the same places, whether autocast is on before or switched on within."""

    def cast(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return _causal(*args, need_weights=need_weights)

    def plain(*args: Tensor) -> Tensor:
        return _causal(*args, need_weights=need_weights)

    inputs = _SELF(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        fn = cast if inside else plain
        ours, eager = compiled(fn, inputs, grad=True), run(fn, inputs, grad=True)
    assert_near(ours, eager, run(plain, wide(inputs), grad=True))
    assert ours.record.rewritten[0].pattern == "attention.multi_head"


def test_opened_and_counted() -> None:
    """An opening is an event that counts nothing; the attention inside counts one."""
    record = compiled(_causal, _SELF(torch.float32)).record
    events = [(r.pattern, r.count) for r in record.rewritten]
    assert events == [("attention.multi_head", 0), ("attention.sdpa", 1)]
    assert record.rewritten[0].lowering == "opened"
    record = compiled(_itself, _SELF(torch.float32)).record
    assert [(r.pattern, r.count) for r in record.rewritten] == [("attention.multi_head", 1)]


def test_near_misses_are_told_once() -> None:
    def both(*args: Tensor) -> tuple[Tensor, Tensor]:
        weights = _forward(*args, need_weights=True)[1]
        return _causal(*args), weights

    ours = _check(both, _SELF(torch.float32), grad=False, count=1)
    assert len(ours.record.near_misses) == 1


def test_patterns_can_be_excluded() -> None:
    options = {"fuser.patterns": "-attention.multi_head"}
    _check(_itself, _SELF(torch.float32), grad=False, count=0, **options)


def _forward(x: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor, **flags: Any) -> Any:
    settings: dict[str, Any] = {"training": False, "need_weights": False, "bias_k": None}
    settings |= {"bias_v": None, "add_zero_attn": False, "dropout_p": 0.0, **flags}
    return F.multi_head_attention_forward(
        x, x, x, E, H, wi, bi, out_proj_weight=wo, out_proj_bias=bo, **settings
    )


def _bias_kv(x: Tensor, *w: Tensor) -> Tensor:
    key = torch.ones(1, 1, E, dtype=x.dtype)
    return _forward(x, *w, bias_k=key, bias_v=key)[0]


def _static(x: Tensor, *w: Tensor) -> Tensor:
    return _forward(x, *w, static_k=torch.ones(B * H, S, E // H, dtype=x.dtype))[0]


def _weights(*a: Tensor) -> Tensor:
    out, weights = _forward(*a, need_weights=True)
    return out.sum() + weights.square().sum()


DECLINED = [
    ("weights", _weights, "used elsewhere"),
    ("weights alone", lambda *a: _forward(*a, need_weights=True)[1] * 2, "used elsewhere"),
    ("both results", lambda *a: _forward(*a, need_weights=True), "used elsewhere"),
    ("learned keys", _bias_kv, "bias_k"),
    ("zero key", lambda *a: _forward(*a, add_zero_attn=True)[0], "add_zero_attn"),
    ("static keys", _static, "static_k"),
]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("name", "fn", "reason"), DECLINED, ids=[d[0] for d in DECLINED])
def test_declines(name: str, fn: Any, reason: str, grad: bool) -> None:
    ours = _check(fn, _SELF(torch.float32), grad=grad, count=0)
    assert reason in ours.reasons()
    if "weights" in name:
        assert ours.record.near_misses[0].hint == "need_weights=False"


def test_declines_dropout() -> None:
    fn = lambda *a: _forward(*a, training=True, dropout_p=0.5)[0]  # noqa: E731
    inputs = _SELF(torch.float32)
    ours, eager = compiled(fn, inputs, grad=True), run(fn, inputs, grad=True)
    assert ours.rewrites() == 0
    assert "drops probabilities" in ours.reasons()
    assert_near(ours, eager, eager)


def test_declines_float64() -> None:
    ours = compiled(_itself, wide(_SELF(torch.float32)))
    assert ours.rewrites() == 0
    assert "float64" in ours.reasons()


def _native(*a: Any, **flags: Any) -> Tensor:
    x, wi, bi, wo, bo = a[:5]
    settings: dict[str, Any] = {"need_weights": False, **flags}
    return torch._native_multi_head_attention(x, x, x, E, H, wi, bi, wo, bo, *a[5:], **settings)[0]


class Native(nn.Module):
    """The native composite under a mask; `wide` brings the explicit form, which has fp64."""

    def __init__(self, mask: Tensor | None, kind: int | None, **flags: Any) -> None:
        super().__init__()
        self.mask, self.kind, self.flags = mask, kind, flags

    def forward(self, x: Tensor, *w: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        return _native(x, *w, mask=self.mask, mask_type=self.kind, **self.flags)


def _padding() -> Tensor:
    mask = ~kept_keys()
    mask[1] = True  # every key: the kernel gives NaN
    return mask


NATIVE = {
    "open": Native(None, None),
    "weights": Native(None, None, need_weights=True),
    "padding": Native(_padding(), 1),
    "padding float": Native(torch.zeros(B, S).masked_fill(_padding(), -torch.inf), 1),
    "square": Native(_dead_row(), 0),
    "square bias": Native(torch.zeros(S, S).masked_fill(_dead_row(), 0.5), 0),
    "full": Native((_bias(B, H, S, S)() > 0.5), 2),
    "full without type": Native((_bias(B, H, S, S)() > 0.5), None),
}
_NATIVE_INPUTS = take(normal(B, S, E), *_WEIGHTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_native(name: str, dtype: torch.dtype) -> None:
    _check(NATIVE[name], _NATIVE_INPUTS(dtype), grad=False, count=1)


def test_native_declines() -> None:
    x, *w = (t.detach() for t in _NATIVE_INPUTS(torch.float32))

    def weights(x: Tensor, *w: Tensor) -> Tensor:
        return torch._native_multi_head_attention(x, x, x, E, H, *w, None, True, True, None)[1]

    ours = _check(weights, (x, *w), grad=False, count=0)
    assert "used elsewhere" in ours.reasons()


class Layer(nn.Module):
    """An encoder layer with random norms, an eps that shows, and a mask of some kind."""

    def __init__(self, activation: str, norm_first: bool, mask: Tensor | None, pad: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.TransformerEncoderLayer(
            E, H, 112, activation=activation, norm_first=norm_first, batch_first=True,
            layer_norm_eps=0.1,
        )  # fmt: skip
        for norm in (self.layer.norm1, self.layer.norm2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        self.mask, self.pad = mask, pad
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        padding = ~kept_keys() if self.pad else None
        return self.layer(x, src_mask=self.mask, src_key_padding_mask=padding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pad", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("mask", [None, _future(torch.empty(0)), _dead_row()],
                         ids=["open", "causal", "dead row"])  # fmt: skip
@pytest.mark.parametrize("norm_first", [False, True], ids=["", "norm first"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer(
    activation: str, norm_first: bool, mask: Tensor | None, pad: bool, dtype: torch.dtype
) -> None:
    module = Layer(activation, norm_first, mask, pad).to(dtype)
    ours = _check(module, take(normal(B, S, E))(dtype), grad=False, count=1)
    assert ours.record.rewritten[0].pattern == "attention.encoder_layer"


def test_stacked_layers() -> None:
    """Two layers under a causal mask that is made within count two."""
    layer = Layer("gelu", True, None, False).layer

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([copy.deepcopy(layer), copy.deepcopy(layer)])

        def forward(self, x: Tensor) -> Tensor:
            mask = _future(x)
            for layer in self.layers:
                x = layer(x, src_mask=mask)
            return x

    ours = _check(Model(), take(normal(B, S, E))(torch.float32), grad=False, count=2)
    attentions = [r for r in ours.record.rewritten if r.pattern.startswith("attention.")]
    assert attentions[-1].lowering.endswith("causal")
