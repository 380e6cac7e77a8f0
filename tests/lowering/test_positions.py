"""Every spelling keeps its numbers when masks and biases become functions of positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.attention.absorption import follow
from tests.attention.cases import SK, B, H, S, Spelling
from tests.attention.spellings import SPELLINGS
from tests.attention.spellings_forms import FORMS
from tests.compiled import assert_near, compiled, run, wide
from tests.every import some
from tests.lowering.absorbing import REFERENCE, Absorbed, absorbed, elements

BY_NAME = {case.name: case for case in SPELLINGS}
CAPTURING = [case for case in SPELLINGS if case not in FORMS]
TRAINED = [case for case in CAPTURING if case.trains]


def _dynamic(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    for tensor in inputs:
        for dim, size in enumerate(tensor.shape):
            if size in (B, S, SK):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return inputs


@cache
def _check(
    case: Spelling, *, grad: bool, dynamic: bool = False, dtype: torch.dtype = torch.float32
) -> list[Absorbed]:
    make: Callable[[Any], Any] = _dynamic if dynamic else lambda inputs: inputs
    program, inputs = case.program(dtype), make(case.inputs(dtype))
    ours, found = absorbed(program, inputs, grad=grad)
    assert_near(ours, run(program, inputs, grad=grad), run(wide(program), wide(inputs), grad=grad))
    if not grad and not all(a.same for a in found):
        # the same operators on the same dtypes: not a bit differs
        plain = compiled(program, make(case.inputs(dtype)), **REFERENCE)
        for a, b in zip(ours.outputs, plain.outputs, strict=True):
            assert torch.equal(a, b)
    return found


def _id(case: Spelling) -> str:
    return case.name


@pytest.mark.parametrize("case", some(CAPTURING, 2), ids=_id)
def test_inference(case: Spelling) -> None:
    for found in _check(case, grad=False):
        assert found.spec.captured <= 2 * found.before.captured


@pytest.mark.parametrize("case", some(TRAINED, 4), ids=_id)
def test_training(case: Spelling) -> None:
    _check(case, grad=True)


@pytest.mark.parametrize("case", some(CAPTURING, 5), ids=_id)
def test_dynamic(case: Spelling) -> None:
    _check(case, grad=False, dynamic=True)


@pytest.mark.parametrize("case", some(TRAINED, 9), ids=_id)
def test_dynamic_training(case: Spelling) -> None:
    _check(case, grad=True, dynamic=True)


@pytest.mark.parametrize("case", some(CAPTURING, 6, 1), ids=_id)
def test_half_precision(case: Spelling) -> None:
    _check(case, grad=False, dtype=torch.bfloat16)


# -- what becomes of them

CAUSAL = "(iq >= ik)"
MASKS: dict[str, str] = {
    **dict.fromkeys(
        (
            "mask_added_on_the_right", "mask_added_on_the_left", "mask_added_twice", "mask_iadd",
            "masked_fill_infinity", "masked_fill_lowest", "masked_fill_in_place",
            "masked_fill_by_a_tensor", "where_scores_first", "where_scores_last", "where_method",
            "where_made_bias", "one_mask_two_layers", "softcap_and_mask", "groups_and_causal",
            "sdpa_causal_by_arange", "sdpa_causal_by_tril", "sdpa_causal_by_triu", "decoder",
            "sdpa_causal_lowest", "encoder_layer_causal", "alibi_keys", "alibi_in_baddbmm",
            "alibi_then_scale",
        ),
        CAUSAL,
    ),
    "sliding_window": f"({CAUSAL} & ((ik + 6) >= iq))",
    "chunked": f"({CAUSAL} & (floordiv(iq, 8) == floordiv(ik, 8)))",
    "prefix": f"((ik <= 4) | {CAUSAL})",
    "sdpa_prefix": f"({CAUSAL} | (ik < 5))",
    "two_fills": f"({CAUSAL} & (mod((iq - ik), 3) != 2))",
    "sdpa_causal_from_the_end": "((iq + 8) >= ik)",
    "sink_causal": "((iq + 9) > ik)",
    "packed_documents": f"((c0 == c1) & {CAUSAL})",
    "padding_filled": "c0",
    "decode_static_mask": "(ik <= c0)",
}  # fmt: skip
"""Sizes are constants."""


@pytest.mark.parametrize("name", MASKS)
def test_masks_leave_the_score(name: str) -> None:
    for found in _check(BY_NAME[name], grad=False):
        assert found.mask == MASKS[name]
        assert "inf" not in found.score
        assert "e+38" not in found.score
        whole = [shape for shape in found.shapes if shape[-1] > 1 and elements(shape) >= S * S]
        assert whole == []


@pytest.mark.parametrize("name", some([n for n, mask in MASKS.items() if mask == CAUSAL], 4))
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_masks_of_symbolic_sizes(name: str, grad: bool) -> None:
    for found in _check(BY_NAME[name], grad=grad, dynamic=True):
        assert found.mask == CAUSAL


SCORES: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "alibi_distances": (
        "((s0 * 0.353553) - (c0 * to(abs((ik - iq)), float32)))", [(1, H, 1, 1)],
    ),
    "alibi_keys": ("((s0 * 0.353553) + (c0 * ik))", [(H, 1, 1)]),
    "trained_table_by_offset": (
        "((s0 * 0.353553) + gather(c0, ((iq + 19) - ik), ih))", [(2 * S - 1, H)],
    ),
    "shifted_windows": (
        "(((s0 * 0.353553) + gather(c0, mod(ib, 5), iq, ik)) + gather(c0, mod(ib, 5), iq, ik))",
        [(5, 9, 9)],
    ),
    "mask_subtracted": ("((s0 * 0.353553) - where((iq >= ik), 0, 30000))", []),
    "scale_full_tensor": ("(s0 / scalar_tensor(4, float32))", []),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_biases_are_computed(name: str) -> None:
    for found in _check(BY_NAME[name], grad=False):
        assert (found.score, found.shapes) == SCORES[name]


@pytest.mark.parametrize("name", ["bucketed_bias", "decomposed_axes"])
def test_biases_are_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that a gradient flows to."""
    monkeypatch.setattr(follow, "READING", 100)
    for grad in (False, True):
        for found in absorbed_of(BY_NAME[name], grad=grad):
            assert ("gather" in found.score) is not grad


@pytest.mark.parametrize("largest", [0, follow.LARGEST])
def test_what_takes_longer_to_compute_than_to_read_is_read(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it would fill the memory."""
    monkeypatch.setattr(follow, "LARGEST", largest)
    for found in absorbed_of(BY_NAME["bucketed_bias"], grad=False):
        assert ("gather" in found.score) == (largest == 0)


def absorbed_of(case: Spelling, *, grad: bool) -> list[Absorbed]:
    return absorbed(case.program(torch.float32), case.inputs(torch.float32), grad=grad)[1]


def test_padding_that_may_hide_whole_rows_stays_a_number() -> None:
    (found,) = _check(BY_NAME["padding_and_causal"], grad=True)
    assert found.mask == ""
    assert found.shapes == [(B, S)]


@pytest.mark.parametrize(
    "name", ["scale_per_key", "padding_bias_input", "trained_bias_per_head", "disentangled"]
)
def test_nothing_to_gain(name: str) -> None:
    (found,) = _check(BY_NAME[name], grad=False)
    assert found.same
