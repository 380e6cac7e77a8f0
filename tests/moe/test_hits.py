"""`fuser.compile`: what is done only for experts with tokens is captured for all of them, where
that is proved to be the same, and run as always where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import fuser
from fuser.capture import failures_of
from tests.compiled import Run, assert_near, run, wide
from tests.every import EVERY, crossed

from . import added_runs, conditions, counted, hits, listed, returns
from .added_runs import ADDED, Added
from .conditions import CONDITIONS, IfAny, IfNone, IfTwo
from .counted import COUNTED, Counted, CountedHot
from .flat import FLAT_HITS
from .forms import EXPERTS, Mixture
from .hits import HITS, Hit, HitStacked, Popular, Used
from .listed import LISTED, Listed, ListedAll, ListedFew
from .returns import RETURNS, KeepsOther, ReturnsRows
from .test_compile import OPTIONS, ours, tokens

ANY = [*HITS, *CONDITIONS, *RETURNS, *COUNTED, *LISTED, *ADDED, *FLAT_HITS]
LOOK_ALIKES = [
    *hits.LOOK_ALIKES,
    *conditions.LOOK_ALIKES,
    *returns.LOOK_ALIKES,
    *counted.LOOK_ALIKES,
    *listed.LOOK_ALIKES,
    *added_runs.LOOK_ALIKES,
]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def skewed(module: Mixture) -> Mixture:
    """With experts that no token chooses."""
    module = module.eval()
    with torch.no_grad():
        module.gate.weight[2:] = -1.0
    return module


def regions() -> int:
    return sum(counters["fuser"][name] for name in ("moe.loop", "moe.mixture"))


def filled(found: Run, module: Mixture, x: Tensor) -> Run:
    """With zeros for parameters of experts that no token chose: they were in no graph of eager's,
    which has no gradient for them."""
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    for i, leaf in enumerate(leaves):
        if found.grads and found.grads[i] is None:
            found.grads[i] = torch.zeros_like(leaf)
    return found


@pytest.mark.parametrize(("form", "grad"), crossed(ANY, (False, True)))
def test_hits(form: type[Mixture], grad: bool) -> None:
    module, x = skewed(form()), tokens().abs().requires_grad_(grad)
    assert module.route(x)[1].unique().numel() < EXPERTS
    found = filled(ours(module, x, grad=grad), module, x)
    assert (found.rewrites("moe"), found.record.graphs) == (1, 1), found.reasons()
    eager, exact = run(module, (x,), grad=grad), run(wide(module), wide((x,)), grad=grad)
    assert_near(found, filled(eager, module, x), filled(exact, module, x))


@pytest.mark.parametrize(("form", "reason"), LOOK_ALIKES, ids=lambda f: getattr(f, "__name__", ""))
def test_lookalikes(form: type[Mixture], reason: str) -> None:
    """Where no graph may break there is no other to take, and what comes is Dynamo's error."""
    compiled = fuser.compile(form().eval(), fullgraph=True, options=OPTIONS)
    with pytest.raises((TorchDynamoException, GuardOnDataDependentSymNode)):
        compiled(tokens())
    assert regions() == 0
    (line,) = failures_of(compiled) or ()
    assert reason in line
    assert f"{form.__module__.rpartition('.')[-1]}.py" in line


@pytest.mark.parametrize(
    "form",
    [f for f, _ in LOOK_ALIKES] if EVERY else [Popular, Used, KeepsOther, ListedFew],
)
def test_lookalikes_run_as_always(form: type[Mixture]) -> None:
    module, x = skewed(form()), tokens().abs()
    compiled = fuser.compile(copy.deepcopy(module), options=OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    assert regions() == 0


@pytest.mark.parametrize("form", ANY if EVERY else [ReturnsRows, CountedHot, ListedAll])
def test_no_tokens(form: type[Mixture]) -> None:
    """There is a graph for them alone, in which no turn is supposed to have some."""
    module = form().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            fuser.compile(module, options=OPTIONS)(tokens(0)), module(tokens(0))
        )


def test_fullgraph() -> None:
    module, x = Hit().eval(), tokens()
    compiled = fuser.compile(module, fullgraph=True, options=OPTIONS)
    torch.testing.assert_close(compiled(x), module(x))
    assert regions() == 1


@pytest.mark.parametrize(
    "form",
    ANY if EVERY else [HitStacked, IfAny, IfNone, ReturnsRows, Counted, Listed, Added],
    ids=lambda f: f.__name__,
)
def test_no_recompile_from_one_routing_to_the_next(form: type[Mixture]) -> None:
    module = form().eval()
    compiled = fuser.compile(module, options=OPTIONS, dynamic=True)
    compiled(tokens(7))
    assert regions() == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for expert in range(EXPERTS):
            with torch.no_grad():  # all tokens to one expert and the next
                module.gate.weight.fill_(-1.0)
                module.gate.weight[[expert, (expert + 1) % EXPERTS]] = torch.tensor([[2.0], [1.0]])
            x = tokens(5 + expert).abs()
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


def test_constants_of_users_are_read_as_always() -> None:
    """`x[torch.tensor(2)]` is a copy, and `x[2]` is a view."""

    def call(x: Tensor) -> Tensor:
        part = x[torch.tensor(2)]
        part.add_(1.0)
        return x.sum() + part

    x = tokens()
    torch.testing.assert_close(fuser.compile(call, options=OPTIONS)(x.clone()), call(x.clone()))


def test_explain() -> None:
    x = tokens()
    (line,) = [line for line in fuser.explain(Hit().eval(), x).breaks if "runs in eager" in line]
    assert line.endswith("by fuser.compile(model)")
    options = {"fuser.policy": "always"}
    report = fuser.explain(fuser.compile(Hit().eval()), x, options=options)
    assert not report.expect(moe=1).breaks
    lines = fuser.explain(fuser.compile(Popular().eval()), x, options=options).breaks
    (line,) = [line for line in lines if "not captured whole" in line]
    assert "hits.py" in line
    assert "`for e in hit:`" in line
    assert line.endswith("`for e in range(number of experts)`, without conditions.")
    lines = fuser.explain(fuser.compile(IfTwo().eval()), x, options=options).breaks
    assert any("let it run over all of them" in line for line in lines)
    assert not any("fuser.compile(model)" in line for line in lines)


@pytest.mark.parametrize("form", [Listed, CountedHot, HitStacked])
def test_verify(form: type[Mixture]) -> None:
    """What stands in a graph for numbers that Python is told runs by itself too."""
    report = fuser.verify(fuser.compile(form()), tokens(), options=OPTIONS)
    assert report.ok, str(report)
    assert "NOT VERIFIED" not in str(report)
    assert "VERIFIED  moe." in str(report)
