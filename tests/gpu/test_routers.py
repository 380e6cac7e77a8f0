"""Generated kernels of routers on a GPU: which experts they choose among equal ones.

`FUSER_DEVICE=cuda pytest tests/gpu`. On a CPU `topk` takes others of them.
"""

from __future__ import annotations

import pytest
import torch

from fuser.specs import Groups
from tests.lowering.generated import DEVICE
from tests.lowering.routers import limited, router

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cuda", reason="for a GPU, named by FUSER_DEVICE=cuda"
)


@pytest.mark.parametrize("experts", [8, 128, 256, 500])
@pytest.mark.parametrize("choices", [1, 4, 8])
def test_equal_scores_are_chosen_as_topk_does(experts: int, choices: int) -> None:
    """Both take the same; only the order among equals may differ."""
    spec = router(choices=choices, dtype=torch.float32)
    logits = torch.randn(4096, experts, device=DEVICE).bfloat16()
    _, indices = torch.ops.fuser.generated_router(logits, [], spec.to_text(), "a test")
    expected = logits.float().softmax(-1).topk(choices, -1).indices
    assert torch.equal(indices.sort(-1).values, expected.sort(-1).values)


def test_groups_are_chosen_as_topk_does() -> None:
    spec = limited(Groups(8, 2, 4, float("-inf")), 8)
    logits = torch.randn(4096, 256, device=DEVICE)
    captured = [torch.rand(256, device=DEVICE)]
    _, indices = torch.ops.fuser.generated_router(logits, captured, spec.to_text(), "a test")
    _, expected = torch.ops.fuser.router(logits, captured, spec.to_text())
    assert torch.equal(indices.sort(-1).values, expected.sort(-1).values)
