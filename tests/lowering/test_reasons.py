"""What a report says of a device is true of the device where the region runs."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch._inductor.virtualized import V

from fuser.lowering.attention import gpu
from fuser.options import LoweringChoice, Policy
from tests.compiled import compiled
from tests.lowering.on_gpu import planned


def softcapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.tanh(q @ k.mT / 50) * 50).softmax(-1) @ v


def squared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1).square() @ v


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.dropout((q @ k.mT).softmax(-1), 0.1) @ v


FUNCTIONS = [softcapped, squared, plain, dropped]
OF_A_GPU = re.compile(r"\b(GPU|CUDA|SDPA writes|launch)")


def inputs(grad: bool) -> list[Tensor]:
    return [torch.zeros(2, 4, 1024, 64, requires_grad=grad) for _ in range(3)]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("policy", list(Policy), ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_on_a_gpu(fn: object, policy: Policy, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_capability", lambda device: (9, 0))
    found = planned(fn, inputs(grad), grad=grad, policy=policy)  # type: ignore[arg-type]
    assert "CPU" not in (found if isinstance(found, str) else found.why)


def test_the_chunked_operator_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_capability", lambda device: (9, 0))
    found = planned(softcapped, inputs(False))
    assert not isinstance(found, str)
    told = "not aten.chunked: on a GPU the generated kernel keeps no scores either, in one launch"
    assert told in found.why


@pytest.mark.parametrize("policy", ["auto", "always"])
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_on_a_cpu(fn: object, policy: str) -> None:
    options = {"fuser.policy": policy, "fuser.inner": "eager"}
    record = compiled(fn, [x[:, :, :64] for x in inputs(False)], **options).record  # type: ignore[arg-type]
    told = [m.reason for m in record.near_misses] + [r.why for r in record.rewritten]
    assert told
    assert not any(OF_A_GPU.search(reason) for reason in told), told


def test_nothing_generated_is_packaged_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_capability", lambda device: (9, 0))
    with V.set_aot_compilation(True):
        found = planned(softcapped, inputs(False), lowering=LoweringChoice.TRITON)
    assert "AOTInductor packages none of its kernels yet" in found
