"""Look-alikes whose scores or probabilities are not a pointwise program over one softmax."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import KV, SK, B, D, G, H, LookAlike, S, integers, lookalike, normal, qkv, take

PROGRAMS: list[LookAlike] = []
_lookalike = partial(lookalike, PROGRAMS)
_mixes = partial(_lookalike, take(*qkv(sk=SK)), "key positions")
_square = partial(_lookalike, take(*qkv()), "key positions")
_after = partial(_lookalike, take(*qkv(sk=SK)), "after the softmax")
_without = partial(_lookalike, take(*qkv(sk=SK)), "no softmax")
_depends = partial(_lookalike, take(*qkv(sk=SK)), "data-dependent")
_product = partial(_lookalike, take(*qkv(sk=SK)), "contraction")
_welcome = partial(_lookalike, take(*qkv(sk=SK)), "")
_random = partial(_lookalike, take(*qkv(sk=SK)), "random", random=True)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


@_mixes()
def scores_rolled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are shifted round before the softmax."""
    return _scores(q, k).roll(3, dims=-1).softmax(-1) @ v


@_mixes()
def probabilities_flipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are read backwards after the softmax."""
    return _scores(q, k).softmax(-1).flip(-1) @ v


@_mixes()
def scores_sorted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row in descending order."""
    return _scores(q, k).sort(dim=-1, descending=True).values.softmax(-1) @ v


@_mixes()
def scores_accumulated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A running sum over the keys."""
    return (_scores(q, k).cumsum(-1) / 9).softmax(-1) @ v


@_mixes()
def scores_smoothed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Neighbouring keys are averaged."""
    smooth = F.avg_pool1d(_scores(q, k).flatten(0, 2), 3, stride=1, padding=1)
    return smooth.view(B, H, S, SK).softmax(-1) @ v


@_mixes()
def scores_normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """layer_norm over the keys."""
    return F.layer_norm(_scores(q, k), (SK,)).softmax(-1) @ v


@_mixes()
def scores_relatively_shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A pad and two views move each row by its index."""
    b, h, s, t = (scores := _scores(q, k)).shape
    padded = F.pad(scores, (1, 0)).view(b, h, t + 1, s)[:, :, 1:].reshape(b, h, s, t)
    return (scores + padded).softmax(-1) @ v


@_mixes()
def keys_gathered_by_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are permuted by an index that was computed from them."""
    scores = _scores(q, k)
    return scores.gather(-1, scores.argsort(-1)).softmax(-1) @ v


@_square()
def scores_plus_transpose(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Square scores are made symmetric."""
    scores = _scores(q, k)
    return (scores + scores.transpose(-2, -1)).softmax(-1) @ v


@_square()
def scores_minus_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row loses the score of another key."""
    scores = _scores(q, k)
    return (scores - scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).softmax(-1) @ v


@_lookalike(take(*qkv(sk=SK), normal(H, H, std=0.4)), "heads")
def heads_mixed_before(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Talking heads: scores are mixed over the heads."""
    return torch.einsum("bhqk,hg->bgqk", _scores(q, k), mix).softmax(-1) @ v


@_lookalike(take(*qkv(sk=SK), normal(H, H, std=0.4)), "heads")
def heads_mixed_after(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Talking heads: probabilities are mixed over the heads."""
    p = _scores(q, k).softmax(-1)
    return (p.permute(0, 2, 3, 1) @ mix).permute(0, 3, 1, 2) @ v


@_lookalike(take(*qkv(sk=SK)), "heads")
def heads_compared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean over the heads is taken from every score."""
    scores = _scores(q, k)
    return (scores - scores.mean(1, keepdim=True)).softmax(-1) @ v


@_depends()
def scale_from_largest_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are divided by their maximum."""
    scores = q @ k.mT
    return (scores / scores.amax()).softmax(-1) @ v


@_depends()
def scale_from_row_deviation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row is divided by its standard deviation."""
    scores = q @ k.mT
    return (scores / scores.std(-1, keepdim=True)).softmax(-1) @ v


@_depends(captures=False, trains=False)
def scale_from_item(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scale is a Python number read from the scores."""
    scores = q @ k.mT
    return (scores / scores.abs().max().item()).softmax(-1) @ v


@_depends(trains=False)
def threshold_by_kth_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Only the five best keys of each query are kept."""
    scores = _scores(q, k)
    kth = scores.topk(5, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < kth, -torch.inf).softmax(-1) @ v


@_depends(trains=False)
def best_scores_scattered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The best scores are scattered into a row of -inf."""
    scores = _scores(q, k)
    best, index = scores.topk(5, dim=-1)
    return torch.full_like(scores, -torch.inf).scatter(-1, index, best).softmax(-1) @ v


@_after(trains=False)
def small_probabilities_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities under a threshold become zero, the rest is not renormalised."""
    p = _scores(q, k).softmax(-1)
    return torch.where(p < 0.05, 0.0, p) @ v


@_after()
def probabilities_renormalised_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slot attention: the softmax is divided by its column sums."""
    p = _scores(q, k).softmax(-1)
    return (p / (p.sum(-2, keepdim=True) + 1e-6)) @ v


@_after()
def probabilities_accumulated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Monotonic attention: a running sum of the probabilities."""
    return _scores(q, k).softmax(-1).cumsum(-1) @ v


@_after()
def probabilities_sharpened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Squared and normalised again."""
    p = _scores(q, k).softmax(-1).square()
    return (p / p.sum(-1, keepdim=True)) @ v


@_after()
def softmax_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax of a softmax."""
    return (_scores(q, k).softmax(-1).softmax(-1) * 3) @ v


@_after(trains=False)
def probabilities_rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fake quantisation of the probabilities."""
    p = _scores(q, k).softmax(-1)
    return ((p * 255).floor() / 255) @ v


@_after()
def probabilities_masked_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden keys still take their share of the sum."""
    mask = torch.ones(S, SK, dtype=q.dtype, device=q.device).tril(SK - S)
    return (_scores(q, k).softmax(-1) * mask) @ v


@_after()
def probabilities_plus_uniform(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A constant is added to each probability."""
    return (_scores(q, k).softmax(-1) + 0.01) @ v


@_lookalike(take(*qkv(sk=SK), normal(B, 1, 1, SK)), "after the softmax")
def probabilities_weighed_per_key(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """A weight for each key after the softmax."""
    return (_scores(q, k).softmax(-1) * weight) @ v


@_lookalike(take(*qkv(sk=SK), normal(B, H, S, 1)), "after the softmax")
def probabilities_weighed_per_query(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """A weight for each query after the softmax."""
    return (_scores(q, k).softmax(-1) * weight) @ v


@_after()
def last_key_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A slice like a sink's, but the column was a key."""
    return _scores(q, k).softmax(-1)[..., :-1] @ v[:, :, :-1]


@_after()
def first_key_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first key takes its share and gives nothing."""
    return _scores(q, k).softmax(-1)[..., 1:] @ v[..., 1:, :]


@_after()
def other_values_for_kept_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values are sliced at opposite ends."""
    return _scores(q, k).softmax(-1)[..., :-1] @ v[:, :, 1:]


@_after()
def values_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each probability meets two neighbouring values."""
    p = _scores(q, k[:, :, ::2]).softmax(-1)
    return p.repeat_interleave(2, dim=-1) @ v


@_after()
def probabilities_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key's probability stands for all keys."""
    p = _scores(q, k).softmax(-1)[..., :1]
    return p.expand(-1, -1, -1, SK) @ v


@_after()
def probabilities_summed_in_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Neighbouring probabilities are summed before the values."""
    p = _scores(q, k).softmax(-1).unflatten(-1, (-1, 2)).sum(-1)
    return p @ v[:, :, : SK // 2]


_sinks = partial(_lookalike, take(*qkv(sk=SK), normal(H, std=2.0)), "after the softmax")


@_sinks()
def sink_first_last_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink is joined in front, a key is dropped at the end."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    return torch.cat([column, _scores(q, k)], dim=-1).softmax(-1)[..., :-1] @ v


@_sinks()
def sink_last_first_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink is joined at the end, a key is dropped in front."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    return torch.cat([_scores(q, k), column], dim=-1).softmax(-1)[..., 1:] @ v


@_sinks()
def sink_never_dropped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink's share meets a value made of ones."""
    column = sinks.view(1, H, 1, 1).expand(B, H, S, 1)
    p = torch.cat([_scores(q, k), column], dim=-1).softmax(-1)
    return p @ torch.cat([v, torch.ones_like(v[:, :, :1])], dim=2)


@_after()
def joined_with_other_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first half of a softmax over two different sets of scores."""
    joined = torch.cat([_scores(q, k), (q + 1) @ k.mT * 0.2], dim=-1)
    return joined.softmax(-1)[..., :SK] @ v


@_welcome()
def two_key_sets_joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of two sets of keys share a softmax, values are joined alike."""
    joined = torch.cat([_scores(q, k), _scores(q, k * 0.3)], dim=-1)
    return joined.softmax(-1) @ torch.cat([v, v.flip(2)], dim=2)


@_welcome()
def part_of_the_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are sliced before the softmax: attention over fewer keys."""
    return _scores(q, k)[..., 3:17].softmax(-1) @ v[:, :, 3:17]


@_welcome()
def part_of_the_keys_misaligned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores and values are sliced at different places."""
    return _scores(q, k)[..., 3:17].softmax(-1) @ v[:, :, 5:19]


@_welcome()
def part_of_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every other query's row is kept."""
    return _scores(q, k)[:, :, ::2].softmax(-1) @ v


@_welcome()
def every_other_key_strided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """as_strided picks rows of the keys, the values are sliced."""
    batch, head, row, column = k.stride()
    keys = k.as_strided((B, H, SK // 2, D), (batch, head, 2 * row, column))
    return _scores(q, keys).softmax(-1) @ v[:, :, ::2]


@_welcome(trains=False)
def overlapping_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """as_strided reads the scores through overlapping windows."""
    scores = _scores(q, k).contiguous()
    windows = scores.as_strided((B, H, S, 9), (H * S * SK, S * SK, SK, 2))
    return windows.softmax(-1) @ v[:, :, :9]


@_lookalike(take(*qkv(kv=KV, sk=SK)), "")
def heads_in_the_other_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are tiled, values interleaved: the two disagree on who shares what."""
    return _scores(q, k.repeat(1, G, 1, 1)).softmax(-1) @ v.repeat_interleave(G, dim=1)


@_lookalike(take(*qkv(kv=KV, sk=SK)), "")
def heads_repeated_over_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Groups are expanded on the wrong side of the key axis."""
    keys = k.transpose(1, 2).repeat(1, 1, G, 1).transpose(1, 2)
    values = v.unsqueeze(1).expand(-1, G, -1, -1, -1).reshape(B, H, SK, D)
    return _scores(q, keys).softmax(-1) @ values.roll(1, dims=1)


@_product()
def two_contractions_multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A product of two products."""
    return (_scores(q, k) * (q @ v.mT) * 0.2).softmax(-1) @ v


@_product()
def distances_for_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Negated distances instead of a product."""
    return (-torch.cdist(q.float(), k.float())).softmax(-1).to(q.dtype) @ v


@_product()
def additive_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A tanh of sums, reduced over the depth."""
    return torch.tanh(q[:, :, :, None] + k[:, :, None]).sum(-1).softmax(-1) @ v


@_product()
def scores_are_an_input(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax of something that is no product of q and k."""
    scores = q.mean(-1, keepdim=True) + k.mean(-1).unsqueeze(-2)
    return (scores * 3).softmax(-1) @ v


@_product()
def probabilities_never_meet_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A maximum over the keys in place of the second product."""
    p = _scores(q, k).softmax(-1)
    return (p.unsqueeze(-1) * v.unsqueeze(-3)).amax(-2)


@_without()
def sigmoid_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sigmoid attention."""
    return torch.sigmoid(_scores(q, k) - 3) @ v


@_without()
def rectified_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Squared ReLU attention."""
    return (F.relu(_scores(q, k)).square() / SK) @ v


@_without()
def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Feature maps and the products in the other order."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(-2, keepdim=True).mT)


@_without()
def normalised_operands(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Efficient attention: softmaxes of q and k, none of their product."""
    return (q.softmax(-1) @ k.softmax(-2).mT) @ v


@_without()
def logarithms_of_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """log_softmax without exp."""
    return F.log_softmax(_scores(q, k), dim=-1) @ v


@_without()
def softmin(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmin is a softmax of negated scores, easily read as a softmax of scores."""
    return F.softmin(_scores(q, k), dim=-1) @ v


@_without()
def absolute_normalisation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores over the sum of their absolute values."""
    scores = _scores(q, k)
    return (scores / scores.abs().sum(-1, keepdim=True)) @ v


@_without()
def powers_of_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp2 over its sum is a softmax at another temperature."""
    scores = _scores(q, k)
    e = torch.exp2(scores - scores.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@_without()
def small_denominator_guard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A constant in the denominator that is no sink, the maximum being taken away."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return (e / (e.sum(-1, keepdim=True) + 0.5)) @ v


@_without()
def one_under_a_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x - max) / (1 + sum): the one is not shifted along, so this is not softmax-plus-one."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


@_without()
def numerator_and_denominator_differ(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sum runs over unmasked exponentials."""
    scores = _scores(q, k)
    mask = torch.ones(S, SK, dtype=torch.bool, device=q.device).tril(SK - S)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e.masked_fill(~mask, 0.0) / e.sum(-1, keepdim=True)) @ v


@_without()
def normalised_after_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Division by the sum comes after the second product."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@_without(trains=False)
def sparse_projection(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sparsemax: sorted, accumulated and clipped."""
    scores = _scores(q, k).float()
    ordered = scores.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, SK + 1, device=q.device)
    total = ordered.cumsum(-1)
    support = (1 + ranks * ordered > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (scores - threshold).clamp(min=0).to(q.dtype) @ v


@_lookalike(take(normal(B, H, S, D, std=60.0), *qkv(sk=SK)[1:]), "no softmax", trains=False)
def exponentials_overflow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp without a maximum: eager overflows to NaN."""
    e = torch.exp(_scores(q, k))
    return (e / e.sum(-1, keepdim=True)) @ v


@_random()
def dropout_on_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Training dropout after the softmax."""
    return F.dropout(_scores(q, k).softmax(-1), 0.3, training=True) @ v


@_random()
def dropout_on_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Training dropout before the softmax."""
    return F.dropout(_scores(q, k), 0.3, training=True).softmax(-1) @ v


@_random()
def random_keys_hidden(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A random mask of the keys, drawn between the contractions."""
    scores = _scores(q, k)
    return scores.masked_fill(torch.rand_like(scores) < 0.2, -1e4).softmax(-1) @ v


@_random()
def gumbel_noise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """F.gumbel_softmax over the keys."""
    return F.gumbel_softmax(_scores(q, k), tau=0.7, dim=-1) @ v


@_lookalike(take(*qkv(sk=SK)), "")
def everything_dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dropout with probability one leaves zeros."""
    return F.dropout(_scores(q, k).softmax(-1), 1.0, training=True) @ v + q


@_lookalike(take(*qkv(sk=SK), integers(SK, high=SK)), "")
def values_permuted_by_input(q: Tensor, k: Tensor, v: Tensor, order: Tensor) -> Tensor:
    """Values are looked up in an order that repeats some."""
    return _scores(q, k).softmax(-1) @ v[:, :, order]


@_lookalike(take(*qkv(sk=SK), integers(SK, high=SK)), "key positions")
def scores_permuted_by_input(q: Tensor, k: Tensor, v: Tensor, order: Tensor) -> Tensor:
    """Scores are looked up in an order that repeats some."""
    return _scores(q, k)[..., order].softmax(-1) @ v
