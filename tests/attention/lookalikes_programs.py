"""Look-alikes whose score program mixes keys or heads, reads its own data, or is random."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import (
    KV,
    NO_ANCHOR,
    SK,
    B,
    D,
    G,
    H,
    LookAlike,
    S,
    integers,
    lookalike,
    normal,
    qkv,
    take,
)

PROGRAMS: list[LookAlike] = []
_lookalike = partial(lookalike, PROGRAMS)
_case = partial(_lookalike, take(*qkv(sk=SK)))
_square = partial(_lookalike, take(*qkv()))
_welcome = partial(_lookalike, take(*qkv(sk=SK)), reason="")
_random = partial(_lookalike, take(*qkv(sk=SK)), random=True)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


@_case(reason="`roll`")
def scores_rolled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are shifted round before the softmax."""
    return _scores(q, k).roll(3, dims=-1).softmax(-1) @ v


@_case(reason=NO_ANCHOR)
def probabilities_flipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are read backwards after the softmax."""
    return _scores(q, k).softmax(-1).flip(-1) @ v


@_case(reason="no product")
def scores_sorted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row in descending order."""
    return _scores(q, k).sort(dim=-1, descending=True).values.softmax(-1) @ v


@_case(reason="`cumsum`")
def scores_accumulated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A running sum over the keys."""
    return (_scores(q, k).cumsum(-1) / 9).softmax(-1) @ v


@_case(reason="`avg_pool1d`")
def scores_smoothed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Neighbouring keys are averaged."""
    smooth = F.avg_pool1d(_scores(q, k).flatten(0, 2), 3, stride=1, padding=1)
    return smooth.view(B, H, S, SK).softmax(-1) @ v


@_case(reason="`layer_norm`")
def scores_normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """layer_norm over the keys."""
    return F.layer_norm(_scores(q, k), (SK,)).softmax(-1) @ v


@_case(reason="used elsewhere")
def scores_relatively_shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A pad and two views move each row by its index."""
    b, h, s, t = (scores := _scores(q, k)).shape
    padded = F.pad(scores, (1, 0)).view(b, h, t + 1, s)[:, :, 1:].reshape(b, h, s, t)
    return (scores + padded).softmax(-1) @ v


@_case(reason="`gather`")
def keys_gathered_by_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are permuted by an index that was computed from them."""
    scores = _scores(q, k)
    return scores.gather(-1, scores.argsort(-1)).softmax(-1) @ v


@_square(reason="rearranged copy")
def scores_plus_transpose(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Square scores are made symmetric."""
    scores = _scores(q, k)
    return (scores + scores.transpose(-2, -1)).softmax(-1) @ v


@_square(reason="used elsewhere")
def scores_minus_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row loses the score of another key."""
    scores = _scores(q, k)
    return (scores - scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).softmax(-1) @ v


@_lookalike(take(*qkv(sk=SK), normal(H, H, std=0.4)), "")
def heads_mixed_before(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Talking heads: scores are mixed over the heads."""
    return torch.einsum("bhqk,hg->bgqk", _scores(q, k), mix).softmax(-1) @ v


@_lookalike(take(*qkv(sk=SK), normal(H, H, std=0.4)), "axis")
def heads_mixed_after(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Talking heads: probabilities are mixed over the heads."""
    p = _scores(q, k).softmax(-1)
    return (p.permute(0, 2, 3, 1) @ mix).permute(0, 3, 1, 2) @ v


@_lookalike(take(*qkv(sk=SK)), "used elsewhere")
def heads_compared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean over the heads is taken from every score."""
    scores = _scores(q, k)
    return (scores - scores.mean(1, keepdim=True)).softmax(-1) @ v


@_case(reason="used elsewhere")
def scale_from_largest_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are divided by their maximum."""
    scores = q @ k.mT
    return (scores / scores.amax()).softmax(-1) @ v


@_case(reason="used elsewhere")
def scale_from_row_deviation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each row is divided by its standard deviation."""
    scores = q @ k.mT
    return (scores / scores.std(-1, keepdim=True)).softmax(-1) @ v


@_case(reason="no product", captures=False, trains=False)
def scale_from_item(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scale is a Python number read from the scores."""
    scores = q @ k.mT
    return (scores / scores.abs().max().item()).softmax(-1) @ v


@_case(reason="used elsewhere", trains=False)
def threshold_by_kth_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Only the five best keys of each query are kept."""
    scores = _scores(q, k)
    kth = scores.topk(5, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < kth, -torch.inf).softmax(-1) @ v


@_case(reason="`scatter`", trains=False)
def best_scores_scattered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The best scores are scattered into a row of -inf."""
    scores = _scores(q, k)
    best, index = scores.topk(5, dim=-1)
    return torch.full_like(scores, -torch.inf).scatter(-1, index, best).softmax(-1) @ v


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


@_welcome(random=True)
def dropout_on_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Training dropout after the softmax."""
    return F.dropout(_scores(q, k).softmax(-1), 0.3, training=True) @ v


@_random(reason="`dropout` comes first")
def dropout_on_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Training dropout before the softmax."""
    return F.dropout(_scores(q, k), 0.3, training=True).softmax(-1) @ v


@_random(reason="used elsewhere")
def random_keys_hidden(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A random mask of the keys, drawn between the contractions."""
    scores = _scores(q, k)
    return scores.masked_fill(torch.rand_like(scores) < 0.2, -1e4).softmax(-1) @ v


@_random(reason=NO_ANCHOR)
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


@_lookalike(take(*qkv(sk=SK), integers(SK, high=SK)), "no product")
def scores_permuted_by_input(q: Tensor, k: Tensor, v: Tensor, order: Tensor) -> Tensor:
    """Scores are looked up in an order that repeats some."""
    return _scores(q, k)[..., order].softmax(-1) @ v
