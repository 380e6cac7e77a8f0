"""Tiles that the hardware loads, by tensor descriptors: numbers, when it may, what compiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuser.lowering.attention.generated import problem
from fuser.lowering.attention.generated.catalogue import Entry, builtin
from fuser.lowering.attention.generated.config import Config, choose
from fuser.lowering.triton.aot import Resources
from fuser.lowering.triton.launch import TARGETS, describable
from fuser.lowering.triton.pool import compile_all
from tests.lowering.compiling import noted
from tests.lowering.generated import check, operands, spec

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grouped, causal": ({}, {"mask": lambda iq, ik: ik <= iq}),
    "padded features": ({"features": 72, "values": 40}, {}),
    "decoding": ({"rows": 1, "keys": 100}, {}),
    "several products": ({"products": 2}, {"score": lambda s0, s1: (s0 + s1) * 0.2}),
    "one head": ({"heads": 1, "kv": 1}, {"sink": "0"}),
}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every kernel asks for descriptors; gives the texts of what is launched."""
    monkeypatch.setattr(problem, "choose", lambda *a, **k: Config(16, 16, tma=True))
    return noted(monkeypatch, problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", sorted(CASES))
def test_numbers(case: str, dtype: torch.dtype, texts: list[str]) -> None:
    shapes, fields = CASES[case]
    check(spec(dtype=dtype, **fields), operands(dtype=dtype, **shapes))
    loading = [text for text in texts if "def combine_kernel" not in text]
    assert all("v_tiles_" in text for text in loading)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.detach().transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.nn.functional.pad(x.detach(), (0, 1))[..., :-1],
        lambda x: torch.cat([x.new_zeros(1), x.detach().flatten()])[1:].view(x.shape),
    ],
    ids=["features apart", "rows at odd places", "at an odd place"],
)
def test_what_the_hardware_does_not_take(arrange: Any, texts: list[str]) -> None:
    x = operands()
    x.v = arrange(x.v).requires_grad_()
    check(spec(), x)
    assert texts
    assert not any("make_tensor_descriptor" in text for text in texts)


def entries() -> list[Entry]:
    kept = ("causal, 64 bfloat16", "bias, 128 float16", "latent, 192/128 bfloat16")
    return [e for e in builtin() if e.label in kept and e.stage in ("forward", "rows", "keys")]


@pytest.mark.parametrize(("arch", "specialised"), [("sm_90", False), ("sm_100", True)])
def test_it_compiles(arch: str, specialised: bool) -> None:
    """Not all can be specialised; what can is said by a process of its own."""
    tasks = []
    for entry in entries()[: 3 if specialised else None]:
        layout = replace(entry.layout, interpreted=False)
        rule = choose(entry.stage, layout, TARGETS[arch], rows=entry.rows)
        tasks.append((entry.cut(replace(rule, tma=True, warp_specialize=specialised)), arch))
    found = compile_all(tasks)
    assert all(isinstance(f, Resources) and f.launchable for f in found), found
    for kernel, _ in tasks:
        assert "tl.make_tensor_descriptor(" in kernel.source
        assert ("warp_specialize=True" in kernel.source) == specialised


def test_only_aligned_tensors_have_descriptors() -> None:
    x = torch.zeros(2, 4, 20, 64, dtype=torch.bfloat16)

    assert describable(x)
    assert describable(x.transpose(1, 2))
    assert not describable(x[..., 1:])
    assert not describable(x.transpose(2, 3))
    assert describable(x[..., 8:])
