"""`fuser::flash_attention`: the CPU flash kernel, safe for rows whose keys are all masked.

The library kernel's forward is right for such rows except that it gives zeros (and an lse of zero)
where softmax gives NaN; its backward recomputes p as exp(s - lse), where adding log(n) to a huge
lse is lost to rounding, and is wrong by a factor of n. Both cases are told by the lse, which costs
nothing to look at; only then are they treated exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .affine import HUGE

LIMIT = 256.0
"""Beyond it, adding log(n) to an fp32 lse is no longer exact enough: 3e-5 is lost at 256."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@torch.library.custom_op("fuser::flash_attention", mutates_args=(), device_types="cpu")
def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    filled: bool,
    overwritten: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with an additive bias, and NaN for queries without any key.

    Args:
        q: `(B, H, Sq, D)`.
        k, v: `(B, Hkv, Sk, D)`.
        bias: broadcasts against `(B, H, Sq, Sk)`; None for none. Gets no gradient.
        is_causal: query i sees keys 0..i.
        scale: of q kᵀ.
        filled: scores that masks take out were overwritten, not lowered, so that no gradient passes
            there: those of the causal mask, and of huge negative biases.
        overwritten: where a score was, `(B, H, Sq, Sk)` or what broadcasts against it, if not all
            huge negative biases stand for such a one.

    Returns:
        the result `(B, H, Sq, D)` and the log-sum-exp of the scores `(B, H, Sq)` in fp32.
    """
    out, lse = _forward(q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale)
    if filled and bias is not None and bool(out.isnan().any()):
        # a score that is no number and was overwritten must not count: unwritten cache slots
        gone = _overwritten(bias, overwritten)
        out = _dense_forward(q, k, v, bias, is_causal, scale, gone).to(q.dtype)
    elif bias is not None and bool((lse == 0).any()):
        # in place on a copy: masked_fill chooses strides of its own, the fake kernel's are these
        out = out.clone().masked_fill_(_dead(bias, q, k, is_causal), torch.nan)
    return _owned(out), lse.contiguous()


def _owned(out: Tensor) -> Tensor:
    """The same memory, where torch calls a tensor a view of one that nobody holds."""
    memory = out.untyped_storage()
    return out.new_empty(0).set_(memory, out.storage_offset(), out.shape, out.stride())


@flash_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    filled: bool,
    overwritten: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    out, lse = _forward(q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale)
    return out, lse.new_empty(lse.shape, dtype=torch.float32)


@torch.library.custom_op("fuser::flash_attention_backward", mutates_args=(), device_types="cpu")
def flash_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    filled: bool,
    overwritten: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; dense and exact where a row's log-sum-exp is out of range, or no
    number, as where a score was none and was overwritten."""
    if not bool((lse.abs() <= LIMIT).all()) or bool(out[..., 0].isnan().any()):
        gone = _overwritten(bias, overwritten) if filled else None
        return _dense_backward(grad, q, k, v, bias, is_causal, scale, gone, filled=filled)
    grads = _backward(grad, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale)
    return tuple(g.contiguous() for g in grads)  # type: ignore[return-value]


@flash_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    filled: bool,
    overwritten: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _dead(bias: Tensor, q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Queries all of whose keys are at -inf, as (B, H, Sq, 1)."""
    gone = bias == -torch.inf
    if causal:
        gone = gone | _later(q, k)
    return gone.all(-1, keepdim=True)


def _overwritten(bias: Tensor | None, known: Tensor | None) -> Tensor | None:
    """Where a bias stands for a score that was overwritten."""
    return known if known is not None or bias is None else bias <= -HUGE


def _later(q: Tensor, k: Tensor) -> Tensor:
    """Keys that a causal mask hides, `(Sq, Sk)`."""
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)


def _dense_scores(
    q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float, gone: Tensor | None
) -> Tensor:
    """Scores in fp32, with k repeated to q's heads; what is `gone` is the bias alone."""
    score = q.float() @ _repeated(k, q.shape[1]).mT * scale
    if bias is not None:
        lowered = score + bias
        score = lowered if gone is None else torch.where(gone, bias.float(), lowered)
    return score.masked_fill(_later(q, k), -torch.inf) if causal else score


def _repeated(x: Tensor, heads: int) -> Tensor:
    return x.float().repeat_interleave(heads // x.shape[1], 1)


def _dense_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    causal: bool,
    scale: float,
    gone: Tensor | None,
) -> Tensor:
    p = torch.softmax(_dense_scores(q, k, bias, causal, scale, gone), -1)
    return (p @ _repeated(v, q.shape[1])).contiguous()


def _dense_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    gone: Tensor | None,
    *,
    filled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads = q.shape[1], k.shape[1]
    dy, qf = grad.float(), q.float()
    kf, vf = _repeated(k, heads), _repeated(v, heads)
    score = _dense_scores(q, k, bias, causal, scale, gone)
    p = torch.softmax(score, -1)
    dp = dy @ vf.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    if gone is not None:
        ds = ds.masked_fill(gone, 0)
    if filled and causal:
        ds = ds.masked_fill(_later(q, k), 0)

    def fold(x: Tensor) -> Tensor:
        return x if heads == kv_heads else x.unflatten(1, (kv_heads, -1)).sum(2)

    dq, dk, dv = ds @ kf, fold(ds.mT @ qf), fold(p.mT @ dy)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, ctx.is_causal, ctx.scale, ctx.filled, overwritten = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, bias, out, lse, overwritten)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, k, v, bias, out, lse, overwritten = ctx.saved_tensors
    grads = flash_attention_backward(
        grad, q, k, v, out, lse, bias, ctx.is_causal, ctx.scale, ctx.filled, overwritten
    )
    return (*grads, None, None, None, None, None)


flash_attention.register_autograd(_differentiate, setup_context=_save)
