"""The zoo itself: every case builds, repeats, trains as it infers and holds its attentions."""

from __future__ import annotations

import pytest
import torch

from tests.every import EVERY
from tests.models import CASES
from tests.models.capture import attentions, captures

FORMS = [(name, form) for name, case in CASES.items() for form in case.implementations]
LAST = [(name, case.implementations[-1]) for name, case in CASES.items()]


# Dynamo instantiates BLOOM's autograd.Function, which torch itself deprecates
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("name", "implementation"), FORMS if EVERY else LAST[1::2])
def test_capture_holds_the_stated_attentions(name: str, implementation: str) -> None:
    case = CASES[name]
    graphs = captures(case, implementation)
    assert attentions(graphs) == case.attentions
    assert (len(graphs) == 1) == case.one_graph


@pytest.mark.parametrize(("name", "implementation"), FORMS)
def test_build_repeats_and_trains_as_it_infers(name: str, implementation: str) -> None:
    case = CASES[name]
    model = case.build(implementation)
    assert not model.training
    expected = case.output(model(**case.inputs()))
    assert all(tensor.isfinite().all() and tensor.std() > 1e-2 for tensor in expected)

    again = case.output(case.build(implementation)(**case.inputs()))
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    model.train()
    trained = case.output(model(**case.inputs()))
    if not case.random_in_training:
        torch.testing.assert_close(trained, expected)

    torch.stack([tensor.square().mean() for tensor in trained]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.forms_agree])
def test_every_implementation_computes_the_same(name: str) -> None:
    case = CASES[name]
    first, *others = (
        case.output(case.build(implementation)(**case.inputs()))
        for implementation in case.implementations
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-4)
