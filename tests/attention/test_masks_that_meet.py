"""A bias that is known to nobody while compiling, and a mask that is filled in afterwards.

The bias may hide a query's last key, and what is filled in passes no gradient where what is added
does: only the operator that is told both apart may take them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.compiled import Run, assert_near, compiled, run, wide

H, S, D = 4, 12, 8
LOWEST = torch.finfo(torch.float32).min
LATER = torch.ones(S, S, dtype=torch.bool).triu(1)


class Biased(nn.Module):
    """Attention with a registered bias, and scores of later keys overwritten.

    Attributes:
        known: the mask is made while the model runs; else it is another buffer.
        fill: what later keys get.
    """

    bias: Tensor
    later: Tensor

    def __init__(self, bias: Tensor, *, known: bool, fill: float) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.register_buffer("later", LATER)
        self.known, self.fill = known, fill

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        later = torch.ones(S, S, dtype=torch.bool).triu(1) if self.known else self.later
        scores = q @ k.mT * D**-0.5 + self.bias
        return scores.masked_fill(later, self.fill).softmax(-1) @ v


def alibi() -> Tensor:
    distance = torch.arange(S) - torch.arange(S)[:, None]
    return 2.0 ** -torch.arange(1, H + 1)[:, None, None] * distance


def hidden(fill: float) -> Tensor:
    """The same, but the fourth query sees none of the keys up to it."""
    return alibi().index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(fill))


def garbage(number: float) -> Tensor:
    """The same, but with no numbers where the mask is filled in."""
    return alibi().masked_fill(LATER, number)


BIASES: dict[str, Callable[[], Tensor]] = {
    "alibi": alibi,
    "infinity hides a query's keys": lambda: hidden(-torch.inf),
    "the lowest number hides a query's keys": lambda: hidden(LOWEST),
    "large": lambda: alibi() + 1000.0,
    "NaN where it is overwritten": lambda: garbage(torch.nan),
    "infinite where it is overwritten": lambda: garbage(torch.inf),
}


def inputs(*, grad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, H, S, D, generator=generator).requires_grad_(grad) for _ in range(3)]


def check(model: Biased, grad: bool) -> Run:
    args = inputs(grad=grad)
    ours, eager = compiled(model, args, grad=grad), run(model, args, grad=grad)
    exact = run(wide(model), wide(args), grad=grad)
    if bool((model.bias == LOWEST).any()):  # in fp64 a score does not vanish beside it
        exact = Run(wide(eager.outputs), wide(eager.grads))
    assert_near(ours, eager, exact)
    return ours


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("known", [False, True], ids=["from data", "causal"])
@pytest.mark.parametrize("name", BIASES)
def test_a_bias_and_a_mask_of_infinity(name: str, known: bool, grad: bool) -> None:
    """One kernel takes both, and the causal one is its own where that is known."""
    model = Biased(BIASES[name](), known=known, fill=-torch.inf)
    (made,) = check(model, grad).record.rewritten
    assert made.lowering == f"guarded.flash{', causal' if known else ''}, bias"


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["alibi", "the lowest number hides a query's keys"])
def test_a_bias_and_a_mask_of_the_lowest_number(name: str, grad: bool) -> None:
    """A query without other keys is uniform over all that are as low: the mask stays a bias."""
    model = Biased(BIASES[name](), known=True, fill=LOWEST)
    (made,) = check(model, grad).record.rewritten
    assert made.lowering == "guarded.flash, bias"


UNEVEN = "masks leave several finite numbers where a query may have no other scores"


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("fill", [-65504.0, -1e31])
def test_a_number_that_is_not_the_lowest(fill: float, grad: bool) -> None:
    """A query whose other keys are hidden by a lower number looks at those that are filled in."""
    model = Biased(hidden(LOWEST), known=True, fill=fill)
    (made,) = check(model, grad).record.rewritten
    assert not made.lowering.startswith(("guarded", "aten.flash", "aten.sdpa"))
    assert UNEVEN in made.why


def test_two_numbers_that_are_filled_in() -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor, first: Tensor, second: Tensor) -> Tensor:
        scores = (q @ k.mT).masked_fill(first, -1e31).masked_fill(second, -1e33)
        return scores.softmax(-1) @ v

    first, second = torch.zeros(2, 1, 1, S, S, dtype=torch.bool)
    first[..., 5, :4] = True
    second[..., 5, 4:] = True
    args = [*inputs(grad=False), first, second]
    ours, eager = compiled(twice, args), run(twice, args)
    torch.testing.assert_close(ours.outputs, eager.outputs)
    (made,) = ours.record.rewritten
    assert UNEVEN in made.why
