"""Every router is found as one region: weights, indices and gradients, in both lowerings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY

from .route import ALONE, EXPERTS, TOKENS, DeepSeekV3, Mixtral, Router
from .routers import ROUTERS

FACTOR = 2.0
CASES = [
    pytest.param(form, lowering, id=f"{form.__name__}-{lowering}")
    for i, form in enumerate(ALONE)
    for lowering in ("triton", "reference")
    if EVERY or lowering == "triton" or i % 4 == 0
]
FOUND = {"TopKThenSoftmax", "SoftmaxInSingle", "Sigmoid", "GroupLimited", "Top1ByMax", "WithZLoss"}
"""Routers of whole mixtures with a region; in the others nothing but a choice is left to fuse, or
weights are those of all experts."""


def logits(
    tokens: int = TOKENS, experts: int = EXPERTS, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Of which no two of a token are equal, in any dtype."""
    generator = torch.Generator().manual_seed(tokens)
    order = torch.rand(tokens, experts, generator=generator).argsort(-1)
    return ((order - experts / 2) / 8).to(dtype).requires_grad_()


def check(module: Router, x: Tensor, lowering: str) -> Run:
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("router") == 1, ours.reasons()
    assert_near(
        ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True), factor=FACTOR
    )
    return ours


@pytest.mark.parametrize(("form", "lowering"), CASES)
def test_routers(form: type[Router], lowering: str) -> None:
    ours = check(form(), logits(), lowering)
    own = [n.reason for n in ours.record.near_misses if n.pattern == "router.top_k"]
    assert own == []


@pytest.mark.parametrize("form", ROUTERS, ids=lambda form: form.__name__)
def test_routers_of_mixtures(form: type) -> None:
    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(10, 16, requires_grad=True)
    module.correction.data.abs_()  # no group is as bad as what stands in place of the others
    options = {"fuser.lowering": "triton", "fuser.patterns": ("router.top_k",)}
    grad = form.__name__ in FOUND
    ours = compiled(module, (x,), grad=grad, **options)
    assert ours.rewrites("router") == grad, ours.reasons()
    assert_near(ours, run(module, (x,), grad=grad), run(wide(module), wide((x,)), grad=grad))


def test_any_number_of_tokens() -> None:
    x = logits(5)
    torch._dynamo.mark_dynamic(x, 0)
    ours = check(Mixtral(), x, "triton")
    assert any("generated_router" in line for r in ours.record.rewritten for line in r.added)


def test_one_compilation_serves_all_numbers_of_tokens() -> None:
    torch._dynamo.reset()
    options = {"fuser.lowering": "triton", "fuser.policy": "always", "fuser.inner": "eager"}
    module = torch.compile(Mixtral(), backend="fuser", options=options)
    for tokens in (5, 8, 70):
        x = logits(tokens).detach()
        torch._dynamo.mark_dynamic(x, 0)
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            found = module(x)
        torch.testing.assert_close(found, Mixtral()(x))


@pytest.mark.parametrize(("form", "tokens"), [(Mixtral, 0), (DeepSeekV3, 1)])
def test_few_tokens(form: type[Router], tokens: int) -> None:
    check(form(), logits(tokens), "triton")


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, (torch.bfloat16, torch.float16)[i % 2]) for i, form in enumerate(ALONE[:5])],
)
def test_half_precision(form: type[Router], dtype: torch.dtype) -> None:
    check(form().to(dtype), logits(dtype=dtype), "triton")


def test_the_default_leaves_routers() -> None:
    ours = compiled(Mixtral(), (logits(),), policy="auto")
    assert ours.rewrites("router") == 0
    assert "it runs the operators of the region one by one" in ours.reasons()
    assert "the interpreter is for checking numbers" in ours.reasons()
    assert len(ours.record.near_misses) == 1


def test_a_correction_alone_wants_no_gradient() -> None:
    torch._dynamo.reset()
    options = {"fuser.lowering": "triton", "fuser.policy": "always", "fuser.inner": "aot_eager"}
    options["fuser.strict"] = True
    module = torch.compile(DeepSeekV3(), backend="fuser", options=options)
    x = logits().detach()
    weights, chosen = module(x)
    assert not weights.requires_grad
    torch.testing.assert_close((weights, chosen), DeepSeekV3()(x))


def test_choices_of_all_experts() -> None:
    check(Mixtral(6, 6), logits(experts=6), "triton")
