"""Choices sorted by expert, and each product one grouped product of PyTorch's library.

    order  = argsort(experts)            rows = x[order // K]
    h_p    = grouped_mm(rows, M_pᵀ)      y    = grouped_mm(activation(h), Mᵀ)
    out_t  = Σ_k weights[t, k] y[place of (t, k)]

`fuser::library_moe` is a composite: autograd and the inner backend see what it is made of, and
nobody waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec

from ..base import Context, Emission, Lowering, Refusal, register_lowering, size
from ..triton.launch import target_of
from .composite import Places, compose
from .cost import LIBRARY, uncounted
from .experts import accumulating, is_choice, owners, spec_of
from .operators import OPERANDS, emit

ALIGNED = 16
"""Bytes of which the library wants rows to be multiples."""


def library_moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
) -> Tensor:
    """A mixture as a spec says; see `fuser.specs.MoeSpec` for the operands.

    A choice of no expert is dropped, or, where indexing by it would stop, gives NaN.
    """
    of = spec_of(spec)
    if of.runs:
        chosen = owners(indices, x.shape[0]).squeeze(1)
        places = Places.of_runs(indices.int(), x.shape[0])
    else:
        chosen, places = _sorted(indices, of)
    owner = chosen.clamp(0, of.experts - 1)

    def kept(rows: Tensor) -> Tensor:
        """Behind the last run the library leaves anything, in results and in gradients."""
        return places.kept(rows) if of.dropping else rows

    def product(rows: Tensor, p: int) -> Tensor:
        dtype = rows.dtype
        matrix = matrices[p].to(dtype).transpose(-1, -2)
        made = kept(F.grouped_mm(kept(rows), matrix, offs=places.ends))
        if not of.biases[p]:
            return made
        bias = biases[sum(of.biases[:p])].to(accumulating(dtype))  # so is its gradient added up
        return kept((made + bias[owner]).to(dtype))

    return compose(of, x, weights, places, product, 0.0 if of.dropping else torch.nan)


def _sorted(indices: Tensor, of: MoeSpec) -> tuple[Tensor, Places]:
    """The expert at each place, E for choices of none, which come last; and the places."""
    experts, known = indices.long(), is_choice(indices, of)
    experts = torch.where(experts < 0, experts + of.experts, experts)
    flat = torch.where(known, experts, of.experts).reshape(-1)
    order = flat.argsort(stable=True)
    chosen = flat[order]
    numbers = torch.arange(of.experts, dtype=chosen.dtype, device=chosen.device)
    ends = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
    return chosen, Places(order, order.argsort(), ends, known)


torch.library.define(
    "fuser::library_moe", f"({OPERANDS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
torch.library.impl("fuser::library_moe", "CompositeImplicitAutograd", library_moe)


@register_lowering(MoeSpec, order=7)
class Library(Lowering):
    """PyTorch's grouped product, where its kernel is made for the GPU."""

    name: ClassVar[str] = "grouped product"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        refusal = _unavailable(call, context)
        if refusal:
            return Refusal(refusal)

        def put(builder: Builder) -> Node:
            return emit(builder, call, torch.ops.fuser.library_moe.default)

        why = "rows that are sorted by expert go through PyTorch's grouped product"
        slower = "rows are sorted and multiplied in groups already" if context.native else ""
        slower = slower or uncounted(call)
        return Emission(put, "aten.grouped_mm", why, slower, {}, LIBRARY)


def _unavailable(call: Call, context: Context) -> str:
    spec: MoeSpec = call.spec
    if not hasattr(F, "grouped_mm"):
        return "this version of PyTorch has no grouped product"
    if context.device.type != "cuda" or target_of(context.device).arch not in ("sm_90", "sm_100"):
        return "its kernel is for Hopper and Blackwell GPUs"
    if spec.product_dtype is not torch.bfloat16:
        return "its kernel is for bfloat16"
    if spec.separate:
        return "matrices of experts are tensors of their own, and it wants one"
    for name in spec.matrices:
        for dim in (1, 2):
            number = size(call, name, dim)
            if number is None or number * spec.product_dtype.itemsize % ALIGNED:
                return f"a matrix has rows or columns that are no multiples of {ALIGNED} bytes"
    return ""
