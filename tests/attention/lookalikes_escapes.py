"""Look-alikes whose intermediates are used elsewhere, written to, or cut off from autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import NO_ANCHOR, SK, B, D, E, H, LookAlike, S, fixed, lookalike, normal, qkv, take

ESCAPES: list[LookAlike] = []
_lookalike = partial(lookalike, ESCAPES)
_escapes = partial(_lookalike, take(*qkv(sk=SK)), reason="used elsewhere")
_square = partial(_lookalike, take(*qkv()), reason="used elsewhere")
_written = partial(_lookalike, take(*qkv(sk=SK)), reason="mutated")
_detached = partial(_lookalike, take(*qkv(sk=SK)))
Pair = tuple[Tensor, Tensor]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


@_escapes()
def probabilities_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """output_attentions=True."""
    p = _scores(q, k).softmax(-1)
    return p @ v, p


@_escapes()
def scores_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Raw scores leave beside the output."""
    scores = q @ k.mT
    return (scores * D**-0.5).softmax(-1) @ v, scores


@_escapes()
def capped_scores_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Scores leave from the middle of the score program."""
    capped = torch.tanh(_scores(q, k) / 5) * 5
    mask = torch.ones(S, SK, dtype=torch.bool, device=q.device).triu(SK - S + 1)
    return capped.masked_fill(mask, -1e4).softmax(-1) @ v, capped


@_escapes()
def probabilities_used_twice(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """One softmax meets two sets of values."""
    p = _scores(q, k).softmax(-1)
    return p @ v, p @ k


@_square()
def probabilities_used_both_ways(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """p and its transpose meet the values."""
    p = _scores(q, k).softmax(-1)
    return p @ v + p.mT @ v


@_escapes()
def entropy_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """A statistic of the probabilities."""
    p = _scores(q, k).softmax(-1)
    return p @ v, -(p * torch.log(p + 1e-6)).sum(-1).mean()


@_escapes()
def largest_probability_gates(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The peak of each row multiplies its output."""
    p = _scores(q, k).softmax(-1)
    return (p @ v) * p.amax(-1, keepdim=True)


@_escapes()
def scores_regularised(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """logsumexp of the scores is a loss."""
    scores = _scores(q, k)
    return scores.softmax(-1) @ v, scores.logsumexp(-1).square().mean()


@_escapes()
def scores_gate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same scores pass through a softmax and a sigmoid."""
    scores = _scores(q, k)
    return (scores.softmax(-1) * scores.sigmoid()) @ v


@_escapes()
def values_depend_on_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A path leaves the region and comes back through the values."""
    scores = _scores(q, k)
    return scores.softmax(-1) @ (v + scores.mean(dim=(-2, -1))[..., None, None])


@_escapes()
def values_depend_on_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The values are weighed by what each key receives."""
    p = _scores(q, k).softmax(-1)
    return p @ (v * p.sum(-2).unsqueeze(-1))


@_escapes()
def bias_depends_on_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A second softmax starts from the scores and the first one's result."""
    scores = _scores(q, k)
    return (scores + scores.softmax(-1)).softmax(-1) @ v


@_lookalike(
    take(normal(S, B, E), normal(3 * E, E, std=0.2), normal(3 * E), normal(E, E), normal(E)),
    "used elsewhere",
)
def mha_weights_returned(x: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor) -> Any:
    """The composite returns averaged weights, and they are used."""
    return F.multi_head_attention_forward(
        x, x, x, E, H, wi, bi, None, None, False, 0.0, wo, bo, training=False
    )


class Recorder(nn.Module):
    """The probabilities are kept on the module."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(S, SK))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Pair:
        """(B, H, S, D) operands; the buffer is returned."""
        p = _scores(q, k).softmax(-1)
        self.seen.copy_(p.detach().mean(dim=(0, 1)))
        return p @ v, self.seen * 1


_escapes()(Recorder)


@_escapes()
def alias_of_scores_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """A view of the scores is made before the softmax and returned."""
    scores = _scores(q, k)
    corner = scores[:, :, :3, :4]
    return scores.softmax(-1) @ v, corner


@_written(reason="used elsewhere", trains=False)
def scores_zeroed_after_softmax(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """The scores' memory is reused after the softmax."""
    scores = q @ k.mT
    p = scores.softmax(-1)
    scores.zero_()
    return p @ v, scores


@_written(reason="used elsewhere")
def scores_changed_between_uses(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax sees scores that were later doubled in place."""
    scores = _scores(q, k)
    first = scores.softmax(-1)
    scores.mul_(2)
    return first @ v + scores.softmax(-1) @ k


@_written(reason="used elsewhere")
def scores_changed_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A view of the scores is filled before the softmax."""
    scores = _scores(q, k)
    scores[..., 5:9].fill_(-3.0)
    return scores.softmax(-1) @ v


@_written(reason="used elsewhere")
def scores_assigned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first key's score is assigned from elsewhere."""
    scores = _scores(q, k)
    scores[:, :, :, 0] = q.mean(-1)
    return scores.softmax(-1) @ v


@_written(reason="used elsewhere", trains=False)
def probabilities_scaled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax's result is written to before it meets the values."""
    p = _scores(q, k).softmax(-1)
    p[..., 0] = 0
    p *= torch.linspace(0.5, 1.5, S, dtype=q.dtype, device=q.device)[:, None]
    return p @ v


@_written(trains=False)
def queries_changed_after_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The input q is written to once the scores are made."""
    scores = _scores(q, k)
    q.add_(1)
    return scores.softmax(-1) @ v


@_written(trains=False)
def keys_changed_after_use(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """The input k is written to between the contractions."""
    p = _scores(q, k).softmax(-1)
    k.mul_(-1)
    return p @ v, k + 0


@_written(reason="", trains=False)
def values_changed_before_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The input v is written to between the contractions."""
    p = _scores(q, k).softmax(-1)
    v.mul_(2).add_(q.mean())
    return p @ v


@_written()
def copied_values_changed_before_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A copy of the values is written to between the contractions."""
    v = v.clone()
    p = _scores(q, k).softmax(-1)
    v[:, :, ::2] = 0
    return p @ v


@_written(reason="")
def copied_keys_changed_after_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys double as values, written to in between."""
    rows = k * 1.0
    p = (q.detach() @ rows.detach().clone().mT).softmax(-1)
    rows.add_(v)
    return p @ rows


@_written(trains=False)
def cache_changed_between_contractions(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Keys are a view of the tensor that the new values are written into."""
    cache = torch.stack([k, v])
    p = _scores(q, cache[0]).softmax(-1)
    cache[:, :, :, 3] = 1.5
    return p @ cache[1], cache[0]


@_lookalike(take(*qkv(), fixed(lambda: torch.zeros(S, S))), "mutated", trains=False)
def mask_changed_after_use(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The mask is an input that is filled once it was added."""
    scores = _scores(q, k) + mask
    mask.fill_(-torch.inf)
    return scores.softmax(-1) @ v


_masked = partial(_lookalike, take(*qkv(), fixed(lambda: torch.zeros(S, S))))


@_masked("mutated", only_training=True)
def mask_changed_afterwards(q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
    """A mask that nobody needs for the backward is changed in place after its use."""
    mask = start.clone()
    x = (_scores(q, k) + mask).softmax(-1) @ v
    mask.add_(torch.linspace(-2, 2, S, dtype=q.dtype, device=q.device))
    return x + mask.sum()


@_masked("")
def mask_built_late(q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
    """One mask tensor is changed in place between two layers."""
    mask = start.clone()
    x = (_scores(q, k) + mask).softmax(-1) @ v
    mask.add_(torch.linspace(-2, 2, S, dtype=q.dtype, device=q.device))
    return (_scores(x, k) + mask).softmax(-1) @ v


@_detached(reason="`detach`")
def scores_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No gradient through the scores."""
    return _scores(q, k).detach().softmax(-1) @ v


@_detached(reason=NO_ANCHOR)
def probabilities_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No gradient through the probabilities."""
    return _scores(q, k).softmax(-1).detach() @ v + 0 * q


@_detached(reason="no gradient passes through the scores", only_training=True)
def scores_without_grad_mode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities are made under no_grad, the output is not."""
    with torch.no_grad():
        p = _scores(q, k).softmax(-1)
    return p @ v


@_lookalike(take(*qkv(sk=SK), normal(1)), reason="`lt` passes no gradient", only_training=True)
def trained_threshold(q: Tensor, k: Tensor, v: Tensor, limit: Tensor) -> Tensor:
    """What hides scores wants a gradient, and a comparison gives none."""
    scores = _scores(q, k)
    return scores.masked_fill(scores < limit, -1e4).softmax(-1) @ v


@_detached(reason="used elsewhere")
def straight_through(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hard choices forward, soft ones backward."""
    p = _scores(q, k).softmax(-1)
    hard = F.one_hot(p.argmax(-1), SK).to(p.dtype)
    return (hard + p - p.detach()) @ v


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The identity."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Twice the gradient."""
        return grad * 2


@_lookalike(take(*qkv(sk=SK)), "no product", only_training=True)
def custom_function_on_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An autograd.Function with a gradient of its own sits before the softmax."""
    return _Doubled.apply(_scores(q, k)).softmax(-1) @ v


@_lookalike(take(*qkv(sk=SK)), NO_ANCHOR, only_training=True)
def custom_function_on_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same after the softmax."""
    return _Doubled.apply(_scores(q, k).softmax(-1)) @ v


@_lookalike(take(*qkv(sk=SK)), "")
def written_only_before(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Copies are changed in place before anything reads them: no obstacle, but order matters."""
    k, v = k.clone(), v.clone()
    k.mul_(0.5)
    v += 1
    return _scores(q, k).softmax(-1) @ v, k
