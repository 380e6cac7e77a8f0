"""Real models, in small: every attention is rewritten, and numbers stay near to fp64.

Every second one is trained, with the first of its ways to compute attention; the others infer, with
the last one.
Triton's interpreter is slow: by generated kernels, one of a kind. `FUSER_EVERY=1` takes all models
in all ways, in both modes and in bf16. What is found is what `docs/models.md` says.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuser.graph.view import GraphView
from fuser.transform import bodies
from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY, some
from tests.inner import CATCH, caught
from tests.lowering.generated import FACTOR
from tests.models import CASES, ModelCase, experts, table
from tests.models.case import Outputs, logits

FORMS = [(name, form) for name, case in CASES.items() for form in case.implementations]
TRAINED = [(name, form) for name, form in FORMS if not CASES[name].random_in_training]
FIRST = [(name, form) for name, form in TRAINED if form == CASES[name].implementations[0]]
LAST = [(name, case.implementations[-1]) for name, case in CASES.items()]
# Routing is a step function: in bf16 the rounding of one attention sends a token to another expert,
# in eager too (Mixtral: 0.04 from fp64 with `eager` attention, 0.57 with `sdpa`).
SMOOTH = [(name, form) for name, form in FORMS if CASES[name] not in experts.CASES]
LOSSY = [name for name, case in CASES.items() if case.output is logits]
TRITON = {"fuser.lowering": "triton"}
REFERENCE = {"fuser.lowering": "reference"}
OF_A_KIND = {
    False: ("llama-left-padded", "whisper", "dit"),
    True: ("gemma2",),
}
"""By whether they are trained."""
GENERATED = [
    (name, form, dtype, grad)
    for forms, dtype, grad in (
        (FORMS, torch.float32, False), (TRAINED, torch.float32, True),
        (SMOOTH, torch.bfloat16, False),
    )
    for name, form in forms
    if EVERY or (form == "eager" and dtype is torch.float32 and name in OF_A_KIND[grad])
]  # fmt: skip
pytestmark = [
    # what Dynamo says of the libraries' own code: BLOOM's autograd.Function, cached helpers, and
    # Switch, whose gradients are looked at where the graph breaks
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def _exact(case: ModelCase, model: nn.Module) -> nn.Module:
    """In fp64; grouped experts know no fp64, so that they run one by one."""
    model = wide(model)
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(Exception):  # not every model has experts
            model.set_experts_implementation("eager")
    return Outputs(case, model)


def _inputs(case: ModelCase, dtype: torch.dtype) -> dict[str, Any]:
    return {
        key: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in case.inputs().items()
    }


def _check(name: str, form: str, dtype: torch.dtype, grad: bool) -> Run:
    case = CASES[name]
    model, inputs = case.build(form).to(dtype).train(grad), _inputs(case, dtype)
    eager = run(Outputs(case, model), (), inputs, grad=grad)
    exact = run(_exact(case, model), (), wide(inputs), grad=grad)
    graphs = caught()
    ours = compiled(Outputs(case, model), (), inputs, grad=grad, inner=CATCH)
    assert_near(ours, eager, exact)
    left = sum(_library_calls(graph) for graph in graphs) - _emitted(ours)
    assert left == 0 or form == "sdpa"
    assert ours.rewrites() + left == case.attentions, ours.reasons()
    assert ours.rewrites("moe") == case.mixtures, ours.reasons()
    assert ours.record.failures == []
    if dtype is torch.float32:
        assert table.found(ours.record) == table.recorded(name, form, grad)
    return ours


def _library_calls(module: torch.fx.GraphModule) -> int:
    """SDPA calls that have no explicit mask: there is nothing to improve in the user's."""
    view = GraphView(module)
    calls = [
        view.op(n).args for n in view.nodes if view.op(n).name == "scaled_dot_product_attention"
    ]
    here = sum(args.get("attn_mask") is None for args in calls)
    return here + sum(_library_calls(body) for body in bodies(module))


def _emitted(ours: Run) -> int:
    """Of these, the ones that rewrites put there."""
    lines = [line for r in ours.record.rewritten for line in r.added]
    return sum("scaled_dot_product_attention(" in x and "attn_mask" not in x for x in lines)


@pytest.mark.parametrize(("name", "form"), FORMS if EVERY else LAST[::3])
def test_inference(name: str, form: str) -> None:
    _check(name, form, torch.float32, False)


@pytest.mark.parametrize(("name", "form"), TRAINED if EVERY else FIRST[1::3])
def test_training(name: str, form: str) -> None:
    _check(name, form, torch.float32, True)


@pytest.mark.parametrize(("name", "form"), some(SMOOTH, 4))
def test_inference_in_half_precision(name: str, form: str) -> None:
    _check(name, form, torch.bfloat16, False)


@pytest.mark.parametrize(
    ("name", "form", "dtype", "grad"),
    GENERATED,
    ids=["-".join((n, f, "training" if g else "inference", str(d))) for n, f, d, g in GENERATED],
)
def test_generated_kernels(name: str, form: str, dtype: torch.dtype, grad: bool) -> None:
    """All attentions by them, in Triton's interpreter, beside the reference."""
    case = CASES[name]
    model, inputs = case.build(form).to(dtype).train(grad), _inputs(case, dtype)
    exact = run(_exact(case, model), (), wide(inputs), grad=grad)
    ours = compiled(Outputs(case, model), (), inputs, grad=grad, **TRITON)
    theirs = compiled(Outputs(case, model), (), inputs, grad=grad, **REFERENCE)
    assert_near(ours, theirs, exact, factor=FACTOR)
    assert ours.rewrites() == theirs.rewrites()
    assert ours.rewrites() == case.attentions or form == "sdpa"
    assert {r.lowering for r in ours.record.rewritten} <= {"triton, interpreted"}
    assert ours.record.failures == []


@pytest.mark.parametrize("name", some(LOSSY, 7))
def test_losses(name: str) -> None:
    """What `docs/models.md` says of a model's own loss."""
    assert table.losses(name) == table.recorded_losses(name)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.one_graph])
def test_compiled_whole(name: str) -> None:
    """What it says of `fuser.compile` where loops break the graph."""
    assert table.whole(name) == table.recorded_whole(name)


def test_the_page_of_models_is_up_to_date() -> None:
    """If not: `python -m tests.models.table`, or with `--record` where models have changed."""
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.page(text) == text
    forms = {name: model["forms"] for name, model in table.record()["models"].items()}
    assert {name: tuple(found) for name, found in forms.items()} == {
        name: case.implementations for name, case in CASES.items()
    }
