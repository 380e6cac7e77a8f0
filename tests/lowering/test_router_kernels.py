"""Kernels of routers: numbers in Triton's interpreter or on the device of `FUSER_DEVICE`, their
text, and what they take of a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fuser.lowering.moe.router.catalogue import Entry, builtin, recording
from fuser.lowering.moe.router.layout import layout_of
from fuser.lowering.triton.aot import Resources
from fuser.lowering.triton.pool import compile_all
from fuser.specs import Groups, RouterSpec
from tests import accepted
from tests.compiled import Run, assert_near
from tests.lowering.generated import DEVICE
from tests.lowering.routers import KINDS, limited, lowest_first, operands, router

FOLDER = "triton/router"
FACTOR = 2.0
FP32 = torch.float32
PLAIN: dict[str, Any] = {
    "softmax": None, "compared": lambda x: x, "taken": lambda x: x, "total": None,
    "weights": lambda g: g,
}  # fmt: skip


def generated(logits: Tensor, captured: list[Tensor], spec: str) -> tuple[Tensor, Tensor]:
    return torch.ops.fuser.generated_router(logits, captured, spec, "a test")


def outcome(operator: Any, spec: RouterSpec, logits: Tensor, captured: list[Tensor]) -> Run:
    """Weights, indices and the gradient of the logits."""
    weights, indices = operator(logits, captured, spec.to_text())
    cotangent = torch.linspace(0.5, 1.5, weights.numel(), device=weights.device)
    (grad,) = torch.autograd.grad(weights, logits, cotangent.reshape(weights.shape).to(weights))
    return Run([weights.detach(), indices], [grad])


def check(spec: RouterSpec, logits: Tensor, captured: list[Tensor]) -> None:
    """As near to fp64 as the reference."""
    ours = outcome(generated, spec, logits, captured)
    eager = outcome(torch.ops.fuser.router, spec, logits, captured)
    assert torch.equal(ours.outputs[1], eager.outputs[1])
    assert_near(ours, eager, exactly(spec, logits, captured), factor=FACTOR)


def exactly(spec: RouterSpec, logits: Tensor, captured: list[Tensor]) -> Run:
    """The same in fp64: every cast to another dtype left out."""
    text = spec.to_text().replace('"float32"', '"float64"').replace('"bfloat16"', '"float64"')
    wide = logits.detach().double().requires_grad_()
    return outcome(torch.ops.fuser.router, RouterSpec.from_text(text), wide, captured)


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    spec, experts, _ = KINDS[name]
    logits, captured = operands(spec, experts, FP32)
    check(RouterSpec.from_text(spec.to_text().replace("bfloat16", "float32")), logits, captured)


@pytest.mark.parametrize(
    ("tokens", "experts", "choices"), [(0, 7, 2), (1, 2, 1), (70, 7, 7), (5, 60, 6), (2, 130, 32)]
)
def test_sizes(tokens: int, experts: int, choices: int) -> None:
    spec = router(choices=choices)
    check(spec, *operands(spec, experts, FP32, tokens))


@pytest.mark.parametrize(
    ("groups", "experts"),
    [
        (Groups(8, 2, 4, -math.inf), 64), (Groups(5, 1, 2, -math.inf), 15),
        (Groups(3, 2, 3, -math.inf), 21), (Groups(2, 2, 1, 0.0), 6),
    ],
)  # fmt: skip
def test_groups(groups: Groups, experts: int) -> None:
    spec = limited(groups, 3, weights=lambda g, t: g / (t + 1e-20) * 2.5)
    check(spec, *operands(spec, experts, FP32))


def test_strides() -> None:
    spec, experts, _ = KINDS["groups"]
    logits, captured = operands(spec, experts, FP32, 6)
    turned = logits.detach().t().contiguous().t().requires_grad_()
    check(spec, turned, [b.repeat_interleave(2)[::2] for b in captured])


def test_one_number_for_all_experts() -> None:
    spec, experts, _ = KINDS["groups"]
    logits, _ = operands(spec, experts, FP32)
    check(spec, logits, [torch.full((1,), 0.25, device=DEVICE)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    spec = router(choices=4, softmax=dtype, total=dtype, dtype=dtype)
    logits, captured = operands(spec, 32, dtype, 40)
    ours, eager = (outcome(o, spec, logits, captured) for o in (generated, torch.ops.fuser.router))
    rows = (ours.outputs[1] == eager.outputs[1]).all(-1)  # the others have equal scores
    assert rows.float().mean() > 0.5
    near = {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for a, b in ((ours.outputs[0], eager.outputs[0]), (ours.grads[0], eager.grads[0])):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a[rows], b[rows], atol=near, rtol=near)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP32], ids=str)
def test_of_equals_the_lowest_index_comes_first(dtype: torch.dtype) -> None:
    """Scores are the same for every choice that `topk` could have made."""
    spec = router(choices=8, dtype=dtype, **PLAIN)
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).bfloat16().to(dtype)
    weights, indices = generated(logits.to(DEVICE), [], spec.to_text())
    assert torch.equal(indices.cpu(), lowest_first(logits, 8))
    assert torch.equal(weights.cpu(), logits.topk(8, -1).values)


def test_nan_is_the_largest_and_infinities_are_numbers() -> None:
    rows = [
        [1.0, math.nan, 3.0, 2.0], [-math.inf, -math.inf, -math.inf, -math.inf],
        [math.inf, 1.0, math.nan, math.nan], [-math.inf, -1.0, math.inf, -2.0],
        [-0.0, 0.0, -0.0, -1e-45], [math.nan] * 4,
    ]  # fmt: skip
    logits = torch.tensor(rows)
    spec = router(choices=3, **PLAIN)
    weights, indices = generated(logits.to(DEVICE), [], spec.to_text())
    assert torch.equal(indices.cpu(), lowest_first(logits, 3))
    torch.testing.assert_close(weights.cpu(), logits.topk(3, -1).values, equal_nan=True)


def test_a_softmax_without_numbers_is_that_of_eager() -> None:
    logits = torch.tensor([[-math.inf] * 3, [math.nan, 1.0, 2.0], [math.inf, 0.0, 1.0]])
    logits = logits.to(DEVICE).requires_grad_()
    spec = router()
    ours, eager = (outcome(o, spec, logits, []) for o in (generated, torch.ops.fuser.router))
    assert ours.outputs[0].isnan().all()
    assert eager.outputs[0].isnan().all()
    assert torch.equal(ours.grads[0].isnan(), eager.grads[0].isnan())  # type: ignore[union-attr]


def test_what_has_no_kernels() -> None:
    for spec, experts, reason in (
        (router(), 513, "more than 512 experts"),
        (router(choices=33), 64, "more than 32 experts are chosen"),
        (router(dtype=torch.float64), 8, "float64"),
    ):
        with pytest.raises(match=reason):
            layout_of(spec, experts, FP32, ())


def test_operators() -> None:
    spec, experts, dtype = KINDS["groups"]
    logits, captured = operands(spec, experts, dtype, 3)
    arguments = (logits, captured, spec.to_text())
    opcheck(torch.ops.fuser.router.default, arguments)
    opcheck(torch.ops.fuser.generated_router.default, (*arguments, "a test"))


def launched(name: str) -> list[Entry]:
    """The kernels of a step of training."""
    spec, experts, dtype = KINDS[name]
    with recording() as found:
        outcome(generated, spec, *operands(spec, experts, dtype))
    return list(found.values())


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_golden_file(name: str) -> None:
    modules = [f"# -- {e.stage}\n\n{e.kernels('sm_90')[0].source}" for e in launched(name)]
    assert len(modules) == 2
    accepted.check(f"{FOLDER}/{name}.txt", "\n\n".join(modules))


def test_golden_files_are_of_the_kinds() -> None:
    assert {path.stem for path in (accepted.GOLDEN / FOLDER).iterdir()} == set(KINDS)


def test_entries_have_a_text_form() -> None:
    for entry in (*builtin(), *launched("groups")):
        again = Entry.from_json(entry.to_json())
        assert again == entry
        assert again.kernels("sm_90") == entry.kernels("sm_90")


def test_the_largest_kernels_have_room() -> None:
    found = {e.stage: e for e in builtin() if e.label.startswith("groups, 32 of 480")}
    wanted = (("forward", "gfx942"), ("backward", "sm_90"))
    kernels = [(found[stage].kernels(arch)[0], arch) for stage, arch in wanted]
    for taken in compile_all(kernels, 2):
        assert isinstance(taken, Resources), taken.message
        assert (taken.spills, taken.launchable) == (0, True)
