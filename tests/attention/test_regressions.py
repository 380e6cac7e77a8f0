"""Cases that once gave wrong numbers or crashed; each stands for a kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.compiled import TOLERANCES, assert_near, compiled, run, wide


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.4).softmax(-1) @ v


def _inputs(*lengths: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(1, 2, n, 8, generator=generator).to(dtype) for n in lengths]
    return [t.requires_grad_(grad) for t in tensors]


def test_result_overwritten_in_place_in_training() -> None:
    """A flash kernel keeps its result for the backward; the original product did not."""

    def overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _attend(q, k, v)
        out += q
        return out

    inputs = _inputs(5, 5, 5, grad=True)
    ours = compiled(overwritten, inputs, grad=True)
    assert ours.rewrites() == 0
    assert "mutated" in ours.reasons()
    exact = run(overwritten, wide(inputs), grad=True)
    assert_near(ours, run(overwritten, inputs, grad=True), exact)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 3e38])
def test_overwritten_scores_that_are_no_numbers(garbage: float) -> None:
    """Unwritten slots of a key cache, behind a mask that is filled in."""

    def cached(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v

    q, k, v = _inputs(5, 7, 7)
    k[:, :, 6] = garbage
    hidden = torch.zeros(1, 1, 1, 7, dtype=torch.bool)
    hidden[..., 6] = True
    ours, eager = compiled(cached, [q, k, v, hidden]), run(cached, [q, k, v, hidden])
    assert ours.rewrites() == 1
    torch.testing.assert_close(ours.outputs, eager.outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole_row", [False, True])
def test_two_finite_masks_that_meet(dtype: torch.dtype, whole_row: bool) -> None:
    """Twice finfo.min is -inf where both are added, and finfo.min where one is filled in."""
    lowest = torch.finfo(dtype).min

    def filled_then_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        later = torch.full((6, 6), lowest, dtype=dtype).triu(1)
        return ((q @ k.mT).masked_fill(~keep, lowest) + later).softmax(-1) @ v

    def chosen_then_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        scores = torch.where(torch.ones(6, 6).tril() > 0, q @ k.mT, lowest)
        return (scores + (1 - keep.to(dtype)) * lowest).softmax(-1) @ v

    keep = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    keep[..., :2] = False
    keep[0, 0, 3] = keep[0, 0, 3] & (not whole_row)
    inputs = [*_inputs(6, 6, 6, dtype=dtype), keep]
    for fn in (filled_then_added, chosen_then_added):
        ours, eager = compiled(fn, inputs), run(fn, inputs)
        atol = TOLERANCES[dtype] * 2  # two roundings of results of size one
        torch.testing.assert_close(ours.outputs, eager.outputs, rtol=0, atol=atol, equal_nan=True)


def test_padded_operand_with_odd_strides() -> None:
    """One feature, one query: eager's pad keeps a last stride that is not one."""

    def folded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        p = (torch.einsum("asd,dat->tsa", q, k) + bias).softmax(0)
        return torch.einsum("tsa,eta->ase", p, v)

    generator = torch.Generator().manual_seed(6)
    q = torch.empty_strided((2, 1, 1), (1, 1, 2)).normal_(generator=generator)
    shapes = [(1, 2, 9), (3, 9, 2), (2,)]
    inputs = [q, *(torch.randn(s, generator=generator) for s in shapes)]
    ours = compiled(folded, inputs, inner="eager")
    assert ours.rewrites() == 1
    torch.testing.assert_close(ours.outputs, run(folded, inputs).outputs)


def test_checkpoint_without_gradients() -> None:
    """A frozen block under non-reentrant checkpointing, in grad mode."""

    def frozen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(_attend, q, k, v, use_reentrant=False)  # type: ignore[no-any-return]

    inputs = _inputs(5, 5, 5)
    torch._dynamo.reset()
    found = torch.compile(frozen, backend="fuser", options={"fuser.inner": "aot_eager"})(*inputs)
    torch.testing.assert_close(found, frozen(*inputs))


@pytest.mark.parametrize("policy", ["auto", "always"])
@pytest.mark.parametrize(
    ("inner", "dtype"),
    [("aot_eager", torch.float32), ("aot_eager", torch.float16), ("inductor", torch.float32)],
)
def test_trained_bias_hides_whole_rows(dtype: torch.dtype, policy: str, inner: str) -> None:
    """SDPA gives zeros for a row without keys, and no NaN to any gradient."""

    def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu()
        mask = bias.masked_fill(hidden, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    bias = torch.linspace(-1, 1, 6 * 6).reshape(6, 6).to(dtype).requires_grad_()
    inputs = [*_inputs(6, 6, 6, dtype=dtype, grad=True), bias]
    ours = compiled(biased, inputs, grad=True, policy=policy, inner=inner)
    eager, exact = run(biased, inputs, grad=True), run(biased, wide(inputs), grad=True)
    assert not any(g is None or g.isnan().any() for g in ours.grads)
    assert_near(ours, eager, exact)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("where", ["scores", "probabilities"])
def test_eight_bits(where: str, name: str) -> None:
    """Rounding to eight bits is no detail that another order of operations may lose."""

    def rounded(x: Tensor) -> Tensor:
        return x.to(getattr(torch, name)).to(x.dtype)

    def quantised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = q @ k.mT * 0.4
        return rounded(s).softmax(-1) @ v if where == "scores" else rounded(s.softmax(-1)) @ v

    inputs = _inputs(5, 7, 7)
    ours = compiled(quantised, inputs)
    torch.testing.assert_close(ours.outputs, run(quantised, inputs).outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,)])
@pytest.mark.parametrize("grad", [False, True])
def test_lerp_in_half_precision(shape: tuple[int, ...], dtype: torch.dtype, grad: bool) -> None:
    """It takes operands of one dtype only, so all or none are widened."""

    def mixed(q: Tensor, k: Tensor, v: Tensor, end: Tensor) -> Tensor:
        return (q @ k.mT * 0.4).lerp(end, 0.3).softmax(-1) @ v

    end = torch.ones(shape).to(dtype).requires_grad_(bool(shape))
    inputs = [*_inputs(5, 7, 7, dtype=dtype, grad=True), end]
    ours, eager = compiled(mixed, inputs, grad=grad), run(mixed, inputs, grad=grad)
    assert ours.rewrites() == 1
    assert_near(ours, eager, run(mixed, wide(inputs), grad=grad))


def test_operator_of_another_name() -> None:
    """`F.logsigmoid` is a builtin called `log_sigmoid`, which no module has."""

    def squashed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.logsigmoid(q @ k.mT).softmax(-1) @ v

    inputs = _inputs(5, 7, 7, grad=True)
    ours, eager = compiled(squashed, inputs, grad=True), run(squashed, inputs, grad=True)
    assert ours.rewrites() == 1
    assert "sigmoid(s0)" in ours.record.rewritten[0].facts["program"]
    assert_near(ours, eager, run(squashed, wide(inputs), grad=True))


def _whole(x: Tensor) -> Tensor:
    return (x * 4).int().to(x.dtype)


@pytest.mark.parametrize(
    "weigh",
    [
        lambda s, b: _whole(s).softmax(-1),
        lambda s, b: _whole(s.softmax(-1)),
        lambda s, b: (_whole(s) + b).softmax(-1),
        lambda s, b: (s + _whole(s * b)).softmax(-1),
        lambda s, b: s.masked_fill(s > b, -1e4).softmax(-1),
    ],
    ids=["scores", "probabilities", "scores_beside_a_bias", "bias", "threshold"],
)
def test_no_gradient_is_none(weigh: Callable[..., Tensor]) -> None:
    """What is rounded to integers, or compared, has no gradient; zeros would be another one."""

    def rounded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return weigh(q @ k.mT, bias) @ v

    inputs = [*_inputs(5, 7, 7, grad=True), torch.ones(5, 7).requires_grad_()]
    eager, exact = run(rounded, inputs, grad=True), run(rounded, wide(inputs), grad=True)
    assert any(g is None for g in eager.grads)
    ours = compiled(rounded, inputs, grad=True)
    assert "passes no gradient to a tensor that wants one" in ours.reasons()
    assert_near(ours, eager, exact)
    assert compiled(rounded, inputs).rewrites() == 1


def test_block_without_gradients() -> None:
    """Nothing is wanted within `no_grad`, whatever the inputs are."""

    def partly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            out = _attend(q, k, v)
        return out * q.sum()

    inputs = _inputs(5, 7, 7, grad=True)
    ours, eager = compiled(partly, inputs, grad=True), run(partly, inputs, grad=True)
    assert ours.rewrites() == 1
    assert_near(ours, eager, run(partly, wide(inputs), grad=True))


_SIZES = {"batch": 2, "queries": 5, "keys": 7, "features": 8, "values": 4}


def _native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("fn", [_attend, _native])
@pytest.mark.parametrize("empty", ["batch", "queries", "keys", "features", "values"])
def test_empty_tensors(fn: Callable[..., Tensor], empty: str) -> None:
    batch, sq, sk, d, dv = (0 if empty == n else s for n, s in _SIZES.items())
    shapes = [(batch, 2, sq, d), (batch, 2, sk, d), (batch, 2, sk, dv)]
    inputs = [torch.ones(s, requires_grad=True) for s in shapes]
    ours, eager = compiled(fn, inputs, grad=True), run(fn, inputs, grad=True)
    assert ours.rewrites() == 0
    assert "a tensor is empty" in ours.reasons()
    torch.testing.assert_close(ours.outputs, eager.outputs)
    torch.testing.assert_close(ours.grads, eager.grads)


def _kept_keys(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    index = keep.nonzero()[:, 0]
    return _attend(q, k[:, :, index], v[:, :, index])


def _kept_queries(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return _attend(q[:, :, keep.nonzero()[:, 0]], k, v)


def _kept_features(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    index = keep.nonzero()[:, 0]
    return _attend(q[..., index], k[..., index], v)


def _counted_heads(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    times = keep.nonzero().shape[0]
    return _attend(
        q.repeat(1, times, 1, 1), k.repeat_interleave(times, 1), v.repeat(1, times, 1, 1)
    )


@pytest.mark.parametrize("fn", [_kept_keys, _kept_queries, _kept_features, _counted_heads])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_size_that_depends_on_data(fn: Callable[..., Tensor], count: int) -> None:
    """It may be zero, or one, which broadcasts."""
    inputs = [*_inputs(8, 8, 8), torch.arange(8) < count]
    with dynamo_config.patch(capture_dynamic_output_shape_ops=True):
        ours = compiled(fn, inputs)
    assert ours.rewrites() == 0
    assert "a size depends on data" in ours.reasons()
    torch.testing.assert_close(ours.outputs, run(fn, inputs).outputs)


@pytest.mark.parametrize("by_option", [False, True])
def test_random_numbers_of_eager(by_option: bool) -> None:
    """`fallback_random` asks for the numbers that eager draws, in its order."""

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout((q @ k.mT).softmax(-1), 0.3, training=True) @ v

    inputs = _inputs(5, 7, 7)
    assert compiled(dropped, inputs).rewrites() == 1
    options = {"fallback_random": True} if by_option else {}
    with inductor_config.patch(fallback_random=not by_option):
        ours = compiled(dropped, inputs, inner="inductor", **options)
    assert ours.rewrites() == 0
    assert "fallback_random" in ours.reasons()
    torch.testing.assert_close(ours.outputs, run(dropped, inputs).outputs)
    assert not inductor_config.fallback_random


# torch compiles some of its own formulas with what it deprecates itself
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_derivatives() -> None:
    """The operators have none."""
    q, k, v = _inputs(5, 7, 7)
    torch._dynamo.reset()
    settings = {"fuser.inner": "eager", "fuser.policy": "always", "fuser.lowering": "reference"}
    target = torch.compile(_attend, backend="fuser", options=settings)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        found = forward_ad.unpack_dual(target(dual, k, v)).tangent
        expected = forward_ad.unpack_dual(_attend(dual, k, v)).tangent
    torch.testing.assert_close(found, expected)


def _one_number(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q @ k.mT * 0.25 + b).softmax(-1) @ v


def _one_switch(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q @ k.mT * 0.25).masked_fill(b < 0, -torch.inf).softmax(-1) @ v


def _large_factor(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q @ (k * 1e-4).mT * (b * 1e5)).softmax(-1) @ v


@pytest.mark.parametrize("fn", [_one_number, _one_switch, _large_factor])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 2, 1, 1)])
def test_one_number_for_all_scores(
    fn: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Biases and masks without dimensions; a factor that would overflow q."""
    inputs = [*_inputs(6, 6, 6, dtype=dtype), torch.full(shape, 0.5, dtype=dtype)]
    ours = compiled(fn, inputs)
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, inputs), run(fn, wide(inputs)))


def test_a_trained_temperature_in_half_precision() -> None:
    """Its gradient is a sum over q times the gradient of q, which is not rounded before."""

    def tempered(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        return ((q @ k.mT).float() * scale).to(q.dtype).softmax(-1) @ v

    inputs = _inputs(40, 40, 40, dtype=torch.bfloat16, grad=True)
    inputs.append(torch.full((2, 1, 1), 0.3, requires_grad=True))
    ours = compiled(tempered, inputs, grad=True)
    assert ours.rewrites() == 1
    assert_near(ours, run(tempered, inputs, grad=True), run(tempered, wide(inputs), grad=True))


def _gated_column(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    joined = torch.cat([q @ k.mT, sink], -1).float()
    return joined.softmax(-1)[..., :-1].to(q.dtype) @ v


def _column_after_shift(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    joined = torch.cat([q @ k.mT, sink], -1)
    joined = (joined - joined.amax(-1, keepdim=True)).float()
    return joined.softmax(-1)[..., :-1].to(q.dtype) @ v


@pytest.mark.parametrize("fn", [_gated_column, _column_after_shift])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_a_sink_for_each_query_joined_before_a_cast(
    fn: Callable[..., Tensor], dtype: torch.dtype, grad: bool
) -> None:
    inputs = _inputs(6, 7, 7, dtype=dtype, grad=grad)
    inputs.append(torch.randn(1, 2, 6, 1).to(dtype).requires_grad_(grad))
    ours = compiled(fn, inputs, grad=grad)
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, inputs, grad=grad), run(fn, wide(inputs), grad=grad))


@pytest.mark.parametrize("least", [None, 1])
def test_a_length_that_is_read_from_a_tensor(least: int | None) -> None:
    """A library kernel asks whether it is zero, which nobody knows while compiling."""

    def shortened(q: Tensor, k: Tensor, v: Tensor, length: Tensor) -> Tensor:
        n = int(length.item())
        if least is not None:
            torch._check(n >= least)
        return _attend(q, k[:, :, :n], v[:, :, :n])

    inputs = [*_inputs(6, 7, 7), torch.tensor(5)]
    with dynamo_config.patch(capture_scalar_outputs=True):
        ours = compiled(shortened, inputs)
    assert ours.rewrites() == 0
    assert "a size depends on data" in ours.reasons()
    assert_near(ours, run(shortened, inputs), run(shortened, wide(inputs)))


def test_the_axis_is_not_blamed_where_it_is_the_last() -> None:
    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhij,hk->bkij", (q @ k.mT).softmax(-1), v[0, :, 0, :2])

    ours = compiled(mixed, _inputs(6, 7, 7))
    assert ours.rewrites() == 0
    (miss,) = ours.record.near_misses
    assert "another axis" in miss.reason
    assert miss.hint == ""


@pytest.mark.parametrize("lowering", ["auto", "aten"])
def test_a_maximum_halves_the_gradient_where_it_is_tied(lowering: str) -> None:
    """OPT's old spelling: of a query without keys, `s + finfo.min` is rounded to the bound."""
    lowest = torch.finfo(torch.float32).min

    def bounded(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        scores = q @ k.mT * 0.4 + torch.where(kept, 0.0, lowest)
        return torch.max(scores, torch.tensor(lowest)).softmax(-1) @ v

    inputs = _inputs(5, 5, 5, grad=True)
    kept = torch.ones(5, 5, dtype=torch.bool).tril()
    kept[2] = False
    ours = compiled(bounded, (*inputs, kept), grad=True, **{"fuser.lowering": lowering})
    eager = run(bounded, (*inputs, kept), grad=True)
    torch.testing.assert_close(ours.grads, eager.grads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.outputs, eager.outputs)


def _checkpointed(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: checkpoint(fn, *args, use_reentrant=False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_reads_that_nobody_uses_in_a_checkpoint(dynamic: bool) -> None:
    """Dynamo leaves them in bodies: indices beside a maximum, a shape that was unpacked."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / 4
        _, _, queries, _ = scores.shape
        keep = torch.ones(queries, scores.size(-1), dtype=torch.bool).tril()
        scores = scores.masked_fill(~keep, -torch.inf)
        peak, _ = scores.max(-1, keepdim=True)
        weights = (scores - peak.detach()).exp()
        return weights / weights.sum(-1, keepdim=True) @ v

    inputs = [torch.randn(2, 3, 20, 16, requires_grad=True) for _ in range(3)]
    found = compiled(_checkpointed(attention), inputs, grad=True, dynamic=dynamic)
    assert found.rewrites() == 1, found.reasons()
    eager = run(attention, inputs, grad=True)
    exact = run(attention, wide(inputs), grad=True)
    assert_near(found, eager, exact)


def test_a_shape_that_is_kept_whole_is_read() -> None:
    """`torch.Size` itself, not its elements: that stays a use of the scores, or is spelled out."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / 4
        return scores.softmax(-1) @ v + torch.zeros(scores.shape).sum()

    inputs = [torch.randn(2, 3, 20, 16, requires_grad=True) for _ in range(3)]
    found = compiled(_checkpointed(attention), inputs, grad=True, dynamic=True)
    eager = run(attention, inputs, grad=True)
    assert_near(found, eager, run(attention, wide(inputs), grad=True))


def test_a_rate_of_dropout_is_of_no_use_without_training() -> None:
    """With symbols everywhere a module's rate is one; in eval mode nobody reads it."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(32, 4, dropout=0.25, batch_first=True).eval()

    def attention(x: Tensor) -> Tensor:
        return model(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 20, 32, requires_grad=True)
    found = compiled(_checkpointed(attention), (x,), grad=True, dynamic=True)
    assert found.rewrites() == 1, found.reasons()


def test_random_numbers_that_are_drawn_twice_differ() -> None:
    """Gumbel's noise in both exponentials of a fraction: they are written alike."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        above = torch.exp(scores + torch.rand_like(scores))
        below = torch.exp(scores + torch.rand_like(scores))
        return above / below.sum(-1, keepdim=True) @ v

    args = [torch.randn(1, 2, 21, 8) for _ in range(3)]
    torch.manual_seed(0)
    ours = compiled(fn, args)
    assert ours.rewrites() == 0
    assert "combined with each other" in ours.reasons()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_probabilities_that_are_rounded_more_coarsely_than_the_result(
    dtype: torch.dtype, grad: bool
) -> None:
    """Library kernels would not round them."""

    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * 0.4).softmax(-1).to(dtype).to(v.dtype) @ v

    inputs = _inputs(12, 12, 12, grad=grad)
    ours, eager = compiled(program, inputs, grad=grad), run(program, inputs, grad=grad)
    assert ours.rewrites() == 1
    torch.testing.assert_close(ours.outputs[0], eager.outputs[0], rtol=1e-5, atol=1e-6)
