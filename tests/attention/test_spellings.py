"""Every spelling of attention is rewritten, trains, and stays as near to fp64 as eager."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import some
from tests.inner import CATCH, caught, operators

from .cases import SK, B, S, Spelling
from .spellings import SPELLINGS

KNOWN_DYNAMIC_MISSES = {"needless_copies", "trained_table_by_offset"}
"""With symbolic sizes these are left alone: a stride, or an index, cannot be proved."""

TEMPERATURES = {"scale_learned_per_head", "scale_cosine", "window_cosine"}
"""An exponential of a trained number makes the scale."""
PROJECTIONS = {
    "fused_projection_split": 2,
    "decomposed_axes": 2,
    "disentangled": 2,
    "latent_naive": 2,
    "latent_absorbed": 2,
}
"""Products besides those of the attention: projections, and positions that make a bias."""
PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "mm")

TRAINED = [s for s in SPELLINGS if s.trains]
INFERRED = [*(s for s in SPELLINGS if not s.trains), *some(TRAINED, 3)]
MODES = [*((s, True) for s in TRAINED), *((s, False) for s in INFERRED)]
"""Most that train are trained alone; `FUSER_EVERY=1` has all infer as well."""
IDS = [f"{s.name}-{'training' if grad else 'inference'}" for s, grad in MODES]


def _name(spelling: Spelling) -> str:
    return spelling.name


def _check(
    case: Spelling,
    dtype: torch.dtype,
    grad: bool,
    *,
    inner: str | None = None,
    inputs: tuple[Tensor, ...] | None = None,
) -> Run:
    """The compiled run, compared with eager in `dtype` and in fp64; rewrites are not counted."""
    inputs = case.inputs(dtype) if inputs is None else inputs
    program = case.program(dtype)
    eager = run(program, inputs, grad=grad)
    exact = run(wide(program), wide(inputs), grad=grad)
    ours = compiled(program, inputs, grad=grad, inner=inner)
    assert_near(ours, eager, exact)
    return ours


@pytest.mark.parametrize(("case", "grad"), MODES, ids=IDS)
def test_rewritten(case: Spelling, grad: bool) -> None:
    """The exact number of rewrites; neither the softmax nor its two products stay behind."""
    graphs = caught()
    ours = _check(case, torch.float32, grad, inner=CATCH)
    assert ours.rewrites() == case.attentions, ours.reasons()
    assert ours.record.failures == []
    left = sum((operators(graph) for graph in graphs), Counter())
    assert left["softmax"] == left["log_softmax"] == 0
    assert left["exp"] == (case.name in TEMPERATURES)
    assert sum(left[name] for name in PRODUCTS) == PROJECTIONS.get(case.name, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", some(SPELLINGS, 5), ids=_name)
def test_half_precision(case: Spelling, dtype: torch.dtype) -> None:
    """Inference in 16 bits."""
    ours = _check(case, dtype, False)
    assert ours.rewrites() == case.attentions, ours.reasons()


@pytest.mark.parametrize("case", some(SPELLINGS, 4), ids=_name)
def test_dynamic(case: Spelling) -> None:
    """Batch and sequence lengths are symbolic."""
    inputs = case.inputs(torch.float32)
    for tensor in inputs:
        for dim, size in enumerate(tensor.shape):
            if size in (B, S, SK):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
    ours = _check(case, torch.float32, case.trains, inputs=inputs)
    if case.name not in KNOWN_DYNAMIC_MISSES:
        assert ours.rewrites() == case.attentions, ours.reasons()
