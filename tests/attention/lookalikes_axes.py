"""Look-alikes whose contractions, softmax or broadcasts run over the wrong axis."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import SK, B, D, H, LookAlike, S, fixed, lookalike, normal, qkv, take

AXES: list[LookAlike] = []
_lookalike = partial(lookalike, AXES)
_square = partial(_lookalike, take(*qkv()), reason="axis")
_oblong = partial(_lookalike, take(*qkv(sk=SK)), reason="axis")
_cube = partial(_lookalike, take(*qkv(batch=D, heads=D, sq=D, sk=D)), reason="axis")


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


@_square()
def softmax_over_queries_square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dim=-2 where both axes have one size."""
    return _scores(q, k).softmax(dim=-2) @ v


@_oblong()
def softmax_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dim=2 of four."""
    return F.softmax(_scores(q, k), dim=2) @ v


@_oblong()
def softmax_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dim=1, upcast and cast back like the real thing."""
    return F.softmax(_scores(q, k), dim=1, dtype=torch.float32).to(q.dtype) @ v


@_oblong()
def softmax_over_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dim=0."""
    return torch.softmax(_scores(q, k), 0) @ v


@_cube()
def softmax_over_heads_all_sizes_equal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dim=-3 where no size tells the axes apart."""
    return _scores(q, k).softmax(dim=-3) @ v


@_oblong()
def softmax_over_everything(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries and keys are normalised together."""
    scores = _scores(q, k)
    return scores.flatten(-2).softmax(-1).view_as(scores) @ v


@_oblong()
def softmax_over_heads_and_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads and keys are normalised together."""
    joined = _scores(q, k).transpose(1, 2).flatten(-2).softmax(-1)
    return joined.unflatten(-1, (H, SK)).transpose(1, 2) @ v


@_oblong(reason="mixes two axes")
def softmax_after_reinterpretation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A view exchanges the two sizes without exchanging the axes."""
    scores = _scores(q, k)
    return scores.reshape(B, H, SK, S).softmax(-1).reshape(B, H, S, SK) @ v


@_oblong()
def softmax_within_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are split in two axes and only one of them is normalised."""
    scores = _scores(q, k)
    return scores.unflatten(-1, (4, 7)).softmax(-1).flatten(-2) @ v


@_oblong()
def softmax_across_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys are split in two axes and only the outer one is normalised."""
    scores = _scores(q, k)
    return scores.view(B, H, S, 4, 7).softmax(-2).view(B, H, S, SK) @ v


@_oblong()
def softmax_default_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Folded heads normalised over the folded axis."""
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    return torch.bmm(scores.softmax(dim=0), v.flatten(0, 1)).unflatten(0, (B, H))


@_lookalike(take(*qkv(sq=D, sk=D)), "cannot be told apart")
def keys_not_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q @ k contracts over the keys, sizes permitting."""
    return ((q @ k) * D**-0.5).softmax(dim=-1) @ v


@_lookalike(take(*qkv(sq=D, sk=D)), "cannot be told apart")
def keys_transposed_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two transpositions undo each other."""
    return ((q @ k.mT.transpose(2, 3)) * D**-0.5).softmax(dim=-1) @ v


@_cube(reason="")
def keys_transposed_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads and depth change places instead of keys and depth."""
    return ((q @ k.transpose(1, 3)) * D**-0.5).softmax(dim=-1) @ v


@_lookalike(take(*qkv(sq=D, sk=D)), "")
def values_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """p @ v^T contracts over the depth of the values."""
    return _scores(q, k).softmax(dim=-1) @ v.mT


@_square()
def probabilities_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """p^T @ v contracts over the queries."""
    return _scores(q, k).softmax(dim=-1).transpose(-2, -1) @ v


@_square()
def einsum_contracts_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The second equation keeps the keys and sums over the queries."""
    p = (torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5).softmax(-1)
    return torch.einsum("bhqk,bhqd->bhkd", p, v)


@_square(reason="")
def einsum_swaps_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first equation puts the queries last."""
    p = (torch.einsum("bhqd,bhkd->bhkq", q, k) * D**-0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", p, v)


@_oblong(reason="no product")
def einsum_sums_key_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An index of the keys is summed away before the softmax."""
    p = (torch.einsum("bhqd,bgkd->bhqk", q, k) * 0.1).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", p, v)


@_square(reason="no product")
def einsum_takes_the_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query meets one key only."""
    p = (torch.einsum("bhsd,bhsd->bhs", q, k) * D**-0.5).softmax(-1)
    return torch.einsum("bhs,bhsd->bhd", p, v)


@_oblong(reason="sums an index of one operand")
def einsum_spreads_over_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The second equation keeps the keys beside the depth."""
    p = _scores(q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhkd", p, v)


@_oblong(reason="sums an index of one operand")
def einsum_mixes_value_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The heads of the probabilities are summed over in the second equation."""
    p = _scores(q, k).softmax(-1)
    return torch.einsum("bhqk,bgkd->bgqd", p, v)


@_cube(reason="")
def heads_for_queries_in_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities are permuted so that heads stand where queries stood."""
    return _scores(q, k).softmax(-1).transpose(1, 2) @ v


@_cube()
def heads_for_keys_in_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The second contraction runs over the heads."""
    return _scores(q, k).softmax(-1).permute(0, 3, 2, 1) @ v


@_square(reason="denominator")
def sum_without_keepdim(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The denominators broadcast along the keys of a square."""
    e = _scores(q[:1, :1], k[:1, :1])[0, 0].exp()
    return (e / e.sum(-1)) @ v


@_square()
def sum_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp over the sum of a column."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax())
    return (e / e.sum(dim=-2, keepdim=True)) @ v


@_square(reason="used elsewhere")
def maximum_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The wrong maximum does not cancel in the sum."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(dim=-2, keepdim=True))
    return (e / e.sum(dim=-1, keepdim=True)) @ v


@_square()
def logsumexp_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x - logsumexp(x)) down the columns."""
    scores = _scores(q, k)
    return torch.exp(scores - scores.logsumexp(-2, keepdim=True)) @ v


@_square(reason="denominator")
def logsumexp_without_keepdim(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Row normalisers broadcast along the keys."""
    scores = _scores(q, k)
    return torch.exp(scores - scores.logsumexp(-1).unsqueeze(-2)) @ v


@_lookalike(take(*qkv(), fixed(lambda: torch.linspace(0.1, 2.0, S))), "")
def scale_per_query_in_a_square(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """A weight meant for queries broadcasts along the keys after the softmax."""
    return (_scores(q, k).softmax(-1) * weight) @ v


@_lookalike(take(*qkv(), normal(H)), "cut out")
def sink_per_query(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """A sink row is joined along the queries and dropped again."""
    row = sinks.view(1, H, 1, 1).expand(B, H, 1, S)
    return torch.cat([_scores(q, k), row], dim=-2).softmax(-2)[:, :, :-1] @ v


@_cube()
def window_softmax_after_wrong_permute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are permuted back one step too far before the second contraction."""
    return _scores(q, k).permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2) @ v
