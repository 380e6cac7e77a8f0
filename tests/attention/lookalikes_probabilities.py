"""Look-alikes that change, slice or rearrange the probabilities, or have no softmax at all."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import NO_ANCHOR, SK, B, D, H, LookAlike, S, lookalike, normal, qkv, take

PROBABILITIES: list[LookAlike] = []
_lookalike = partial(lookalike, PROBABILITIES)
_case = partial(_lookalike, take(*qkv(sk=SK)))
_welcome = partial(_lookalike, take(*qkv(sk=SK)), reason="")


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


@_case(reason="combined with each other", trains=False)
def small_probabilities_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities under a threshold become zero, the rest is not renormalised."""
    p = _scores(q, k).softmax(-1)
    return torch.where(p < 0.05, 0.0, p) @ v


@_case(reason="used elsewhere")
def probabilities_renormalised_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slot attention: the softmax is divided by its column sums."""
    p = _scores(q, k).softmax(-1)
    return (p / (p.sum(-2, keepdim=True) + 1e-6)) @ v


@_case(reason=NO_ANCHOR)
def probabilities_accumulated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Monotonic attention: a running sum of the probabilities."""
    return _scores(q, k).softmax(-1).cumsum(-1) @ v


@_case(reason="used elsewhere")
def probabilities_sharpened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Squared and normalised again."""
    p = _scores(q, k).softmax(-1).square()
    return (p / p.sum(-1, keepdim=True)) @ v


@_case(reason="`softmax`")
def softmax_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax of a softmax."""
    return (_scores(q, k).softmax(-1).softmax(-1) * 3) @ v


@_case(reason="", trains=False)
def probabilities_rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fake quantisation of the probabilities."""
    p = _scores(q, k).softmax(-1)
    return ((p * 255).floor() / 255) @ v


@_case(reason="")
def probabilities_masked_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden keys still take their share of the sum."""
    mask = torch.ones(S, SK, dtype=q.dtype, device=q.device).tril(SK - S)
    return (_scores(q, k).softmax(-1) * mask) @ v


@_case(reason="")
def probabilities_plus_uniform(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A constant is added to each probability."""
    return (_scores(q, k).softmax(-1) + 0.01) @ v


@_lookalike(take(*qkv(sk=SK), normal(B, 1, 1, SK)), "")
def probabilities_weighed_per_key(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """A weight for each key after the softmax."""
    return (_scores(q, k).softmax(-1) * weight) @ v


@_lookalike(take(*qkv(sk=SK), normal(B, H, S, 1)), "")
def probabilities_weighed_per_query(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """A weight for each query after the softmax."""
    return (_scores(q, k).softmax(-1) * weight) @ v


@_case(reason="not a sink")
def last_key_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A slice like a sink's, but the column was a key."""
    return _scores(q, k).softmax(-1)[..., :-1] @ v[:, :, :-1]


@_case(reason="not a sink")
def first_key_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first key takes its share and gives nothing."""
    return _scores(q, k).softmax(-1)[..., 1:] @ v[..., 1:, :]


@_case(reason="not a sink")
def other_values_for_kept_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values are sliced at opposite ends."""
    return _scores(q, k).softmax(-1)[..., :-1] @ v[:, :, 1:]


@_case(reason="axis")
def values_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each probability meets two neighbouring values."""
    p = _scores(q, k[:, :, ::2]).softmax(-1)
    return p.repeat_interleave(2, dim=-1) @ v


@_case(reason="cut out")
def probabilities_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key's probability stands for all keys."""
    p = _scores(q, k).softmax(-1)[..., :1]
    return p.expand(-1, -1, -1, SK) @ v


@_case(reason=NO_ANCHOR)
def probabilities_summed_in_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Neighbouring probabilities are summed before the values."""
    p = _scores(q, k).softmax(-1).unflatten(-1, (-1, 2)).sum(-1)
    return p @ v[:, :, : SK // 2]


_sinks = partial(_lookalike, take(*qkv(sk=SK), normal(H, std=2.0)))


@_sinks(reason="sink")
def sink_first_last_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink is joined in front, a key is dropped at the end."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    return torch.cat([column, _scores(q, k)], dim=-1).softmax(-1)[..., :-1] @ v


@_sinks(reason="sink")
def sink_last_first_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink is joined at the end, a key is dropped in front."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    return torch.cat([_scores(q, k), column], dim=-1).softmax(-1)[..., 1:] @ v


@_sinks(reason="no product")
def sink_never_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink's share meets a value made of ones."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    p = torch.cat([_scores(q, k), column], dim=-1).softmax(-1)
    return p @ torch.cat([v, torch.ones_like(v[:, :, :1])], dim=2)


@_case(reason="cut out")
def joined_with_other_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first half of a softmax over two different sets of scores."""
    joined = torch.cat([_scores(q, k), (q + 1) @ k.mT * 0.2], dim=-1)
    return joined.softmax(-1)[..., :SK] @ v


@_case(reason="")
def two_contractions_multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A product of two products."""
    return (_scores(q, k) * (q @ v.mT) * 0.2).softmax(-1) @ v


@_case(reason="`cdist`")
def distances_for_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Negated distances instead of a product."""
    return (-torch.cdist(q.float(), k.float())).softmax(-1).to(q.dtype) @ v


@_case(reason="`sum`")
def additive_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A tanh of sums, reduced over the depth."""
    return torch.tanh(q[:, :, :, None] + k[:, :, None]).sum(-1).softmax(-1) @ v


@_case(reason="`mean`")
def scores_are_an_input(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax of something that is no product of q and k."""
    scores = q.mean(-1, keepdim=True) + k.mean(-1).unsqueeze(-2)
    return (scores * 3).softmax(-1) @ v


@_case(reason=NO_ANCHOR)
def probabilities_never_meet_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A maximum over the keys in place of the second product."""
    p = _scores(q, k).softmax(-1)
    return (p.unsqueeze(-1) * v.unsqueeze(-3)).amax(-2)


@_case(reason=NO_ANCHOR)
def sigmoid_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sigmoid attention."""
    return torch.sigmoid(_scores(q, k) - 3) @ v


@_case(reason=NO_ANCHOR)
def rectified_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Squared ReLU attention."""
    return (F.relu(_scores(q, k)).square() / SK) @ v


@_case(reason=NO_ANCHOR)
def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Feature maps and the products in the other order."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(-2, keepdim=True).mT)


@_case(reason="no product")
def normalised_operands(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Efficient attention: softmaxes of q and k, none of their product."""
    return (q.softmax(-1) @ k.softmax(-2).mT) @ v


@_case(reason=NO_ANCHOR)
def logarithms_of_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """log_softmax without exp."""
    return F.log_softmax(_scores(q, k), dim=-1) @ v


@_welcome()
def softmin(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmin is a softmax of negated scores, easily read as a softmax of scores."""
    return F.softmin(_scores(q, k), dim=-1) @ v


@_case(reason=NO_ANCHOR)
def absolute_normalisation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores over the sum of their absolute values."""
    scores = _scores(q, k)
    return (scores / scores.abs().sum(-1, keepdim=True)) @ v


@_welcome()
def powers_of_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp2 over its sum is a softmax at another temperature."""
    scores = _scores(q, k)
    e = torch.exp2(scores - scores.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@_case(reason="denominator")
def small_denominator_guard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A constant in the denominator that is no sink, the maximum being taken away."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return (e / (e.sum(-1, keepdim=True) + 0.5)) @ v


@_case(reason="denominator")
def one_under_a_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x - max) / (1 + sum): the one is not shifted along, so this is not softmax-plus-one."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


@_case(reason="combined with each other")
def numerator_and_denominator_differ(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sum runs over unmasked exponentials."""
    scores = _scores(q, k)
    mask = torch.ones(S, SK, dtype=torch.bool, device=q.device).tril(SK - S)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e.masked_fill(~mask, 0.0) / e.sum(-1, keepdim=True)) @ v


@_welcome()
def normalised_after_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Division by the sum comes after the second product."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@_case(reason=NO_ANCHOR, trains=False)
def sparse_projection(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sparsemax: sorted, accumulated and clipped."""
    scores = _scores(q, k).float()
    ordered = scores.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, SK + 1, device=q.device)
    total = ordered.cumsum(-1)
    support = (1 + ranks * ordered > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (scores - threshold).clamp(min=0).to(q.dtype) @ v


@_lookalike(take(normal(B, H, S, D, std=60.0), *qkv(sk=SK)[1:]), "", trains=False)
def exponentials_overflow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp without a maximum: eager overflows to NaN."""
    e = torch.exp(_scores(q, k))
    return (e / e.sum(-1, keepdim=True)) @ v


@_case(reason="combined with each other")
def exponentials_of_two_temperatures(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sum is one of other exponentials than those that it divides."""
    scores = _scores(q, k)
    return torch.exp(scores) / torch.exp(scores * 1.1).sum(-1, keepdim=True) @ v


@_case(reason="combined with each other", trains=False)
def exponentials_of_which_one_is_written_to(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Taken twice, but they are not the same any more."""
    scores = _scores(q, k)
    above, below = torch.exp(scores), torch.exp(scores)
    below.mul_(2.0)
    return above / below.sum(-1, keepdim=True) @ v
