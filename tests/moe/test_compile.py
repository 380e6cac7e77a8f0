"""`fuser.compile`: loops over experts captured for one model, and no other difference to eager."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fuser
from fuser.backend import listening
from fuser.events import Record
from tests.compiled import Run, assert_near, run, wide
from tests.every import some

from .forms import EXPERTS, FEATURES, TOKENS, Mixture
from .loop_lookalikes_experts import OtherActivation
from .loops import MistralLoop, MixtralLoop, SwitchLoop, Top1Mask, Top1Nonzero

AOT = {"fuser.inner": "aot_eager"}
FLAG = "capture_dynamic_output_shape_ops"
OPTIONS: dict[str, Any] = {
    "fuser.inner": "eager",
    "fuser.policy": "always",
    "fuser.lowering": "aten",
    "fuser.strict": True,
}
# what Dynamo says where a graph breaks behind tensors that want gradients
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
FORMS = [MixtralLoop, MistralLoop, Top1Nonzero, Top1Mask, SwitchLoop]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def tokens(count: int = TOKENS) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(count))


def ours(model: Callable[..., Any], x: Tensor, *, grad: bool = True, **options: Any) -> Run:
    record = Record()
    with listening(record.extend):
        found = run(fuser.compile(model, options={**OPTIONS, **options}), (x,), grad=grad)
    found.record = record
    return found


class Counted(Mixture):
    """Numbers of tokens as Python's, and nobody knows how many numbers there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        counts = torch.bincount(chosen.reshape(-1)).tolist()
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            if e < len(counts) and counts[e]:
                t, k = torch.where(chosen == e)
                out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class Ranked(Mixture):
    """What an expert gives depends on all its tokens, in a way that no backend differentiates where
    their number is a symbol."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = expert.w2(F.silu(expert.w1(x[t])).cumsum(0) * expert.w3(x[t]))
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class Twice(nn.Module):
    """Two mixtures, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MixtralLoop(), MistralLoop()
        self.norm = nn.LayerNorm(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + self.second(self.norm(x))


@pytest.mark.parametrize("form", some(FORMS, 2), ids=lambda f: f.__name__)
def test_loops_are_captured(form: type[Mixture]) -> None:
    module, x = form().eval(), tokens().requires_grad_()
    found = ours(module, x, **AOT)
    assert (found.rewrites("moe"), found.record.graphs) == (1, 1), found.reasons()
    assert_near(found, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


def test_all_loops_of_a_model() -> None:
    module, x = Twice().eval(), tokens().requires_grad_()
    found = ours(module, x)
    assert (found.rewrites("moe"), found.record.graphs) == (2, 1), found.reasons()
    assert_near(found, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("form", "mixtures"),
    [(Counted, 1), (Ranked, 0), (OtherActivation, 0)],
    ids=lambda f: getattr(f, "__name__", None),
)
def test_what_cannot_be_captured_runs_as_always(
    form: type[Mixture], mixtures: int, grad: bool
) -> None:
    """Never an error that eager would not give; behind the break there may be a loop again."""
    module, x = form().eval(), tokens().requires_grad_(grad)
    found = ours(module, x, grad=grad, **AOT)
    assert found.rewrites("moe") == mixtures
    assert_near(found, run(module, (x,), grad=grad), run(wide(module), wide((x,)), grad=grad))


def test_an_attempt_that_failed_is_not_counted() -> None:
    """The first mixture is found in the attempt; the backend fails at the second, and the first is
    compiled again, alone."""

    def both(x: Tensor) -> Tensor:
        return second(first(x))

    first, second, x = MixtralLoop().eval(), Ranked().eval(), tokens().requires_grad_()
    found = ours(both, x, **AOT)
    assert (found.rewrites("moe"), counters["fuser"]["moe.loop"]) == (1, 1)
    torch.testing.assert_close(found.outputs[0], both(x))


@pytest.mark.parametrize("form", some(FORMS, 2), ids=lambda f: f.__name__)
def test_no_recompile_from_one_routing_to_the_next(form: type[Mixture]) -> None:
    module = form().eval()
    compiled = fuser.compile(module, options=OPTIONS, dynamic=True)
    compiled(tokens(7))
    assert counters["fuser"]["moe.loop"] == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for expert in range(EXPERTS):
            with torch.no_grad():  # all tokens to one expert, or to it and the next
                module.gate.weight.fill_(-1.0)
                module.gate.weight[[expert, (expert + 1) % EXPERTS]] = torch.tensor([[2.0], [1.0]])
            x = tokens(5 + expert).abs()
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


def test_no_setting_is_changed_for_others() -> None:
    """Neither afterwards, nor for another model that is compiled, before it or after it."""
    seen: list[bool] = []

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.append(getattr(torch._dynamo.config, FLAG))
        return gm.forward

    x = tokens()
    other = torch.compile(MistralLoop().eval(), backend=backend)
    other(x)
    graphs = len(seen)
    compiled = fuser.compile(MixtralLoop().eval(), options=OPTIONS)
    compiled(x)
    assert not getattr(torch._dynamo.config, FLAG)
    torch._dynamo.reset()
    compiled(x)
    torch.compile(MistralLoop().eval(), backend=backend)(x)
    assert seen == [False] * (2 * graphs)


def test_the_same_model_by_torch_compile() -> None:
    """What one has compiled, or given up, is not what the other takes."""
    module, x = MixtralLoop().eval(), tokens()
    torch.compile(module, backend="fuser", options=OPTIONS)(x)
    assert counters["fuser"]["moe.loop"] == 0
    compiled = fuser.compile(module, options=OPTIONS)
    torch.testing.assert_close(compiled(x), module(x))
    assert counters["fuser"]["moe.loop"] == 1
    stock = torch.compile(module, backend="fuser", options=OPTIONS)
    torch.testing.assert_close(stock(x), module(x))
    assert counters["fuser"]["moe.loop"] == 1


def test_it_is_what_torch_compile_returns() -> None:
    module, x = MixtralLoop(), tokens()
    compiled = fuser.compile(module, options=OPTIONS)
    assert isinstance(compiled, type(torch.compile(module)))
    assert compiled._orig_mod is module
    assert [*compiled.parameters()] == [*module.parameters()]
    assert {k.removeprefix("_orig_mod.") for k in compiled.state_dict()} == {*module.state_dict()}
    assert not compiled.eval().training
    assert not module.training
    assert compiled.train().training
    again = fuser.compile(compiled, options=OPTIONS)
    assert again._orig_mod is module
    torch.testing.assert_close(again(x), compiled(x))
    assert getattr(torch._dynamo.config, FLAG) is False


def test_hooks_and_copies() -> None:
    """Hooks that come later run, once a call; a copy has parameters of its own."""
    module, x, seen = MixtralLoop().eval(), tokens(), list[int]()
    compiled = fuser.compile(module, options=OPTIONS)
    expected = compiled(x)

    def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(len(seen))
        return out * 2.0

    hook = module.register_forward_hook(double)
    torch.testing.assert_close(compiled(x), 2.0 * expected)
    hook.remove()
    torch.testing.assert_close(compiled(x), expected)
    assert len(seen) == 1
    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert not {*copied.parameters()} & {*compiled.parameters()}
        torch.testing.assert_close(copied(x), expected)


def test_trained() -> None:
    """Steps of an optimizer are seen, and lead where eager's lead."""
    module = MixtralLoop()
    other = copy.deepcopy(module)
    compiled = fuser.compile(module, options=OPTIONS)
    for model, called in ((module, compiled), (other, other)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            called(tokens(TOKENS + step)).square().mean().backward()
            optimizer.step()
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert counters["fuser"]["moe.loop"] > 0


def test_functions_and_decorators() -> None:
    module, x = Top1Mask().eval(), tokens()

    def call(x: Tensor) -> Tensor:
        return module(x) + 1.0

    for compiled in (
        fuser.compile(call, options=OPTIONS),
        fuser.compile(options=OPTIONS, fullgraph=True)(call),
        fuser.compile(module.forward, options=OPTIONS),
    ):
        counters.clear()
        torch._dynamo.reset()
        expected = module(x) if compiled(x).allclose(module(x)) else call(x)
        torch.testing.assert_close(compiled(x), expected)
        assert counters["fuser"]["moe.loop"] == 1
    assert fuser.compile(module, disable=True, options=OPTIONS)(x).equal(module(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MixtralLoop, "was given the class MixtralLoop; make an instance of it first"),
        (3, "was given 3, which cannot be called"),
    ],
)
def test_what_cannot_be_compiled(given: Any, message: str) -> None:
    with pytest.raises(fuser.FuserError, match=message):
        fuser.compile(given)


def test_another_backend() -> None:
    with pytest.raises(fuser.FuserError, match=r"but was given 'inductor'. Use torch.compile"):
        fuser.compile(MixtralLoop(), backend="inductor")


def test_options_that_are_wrong_are_named() -> None:
    compiled = fuser.compile(MixtralLoop(), options={"fuser.polcy": "always"})
    with pytest.raises(Exception, match=r"unknown option 'fuser.polcy'. Did you mean"):
        compiled(tokens())


def test_explain_sees_what_it_compiles() -> None:
    module, x = MixtralLoop().eval(), tokens()
    options = {"fuser.policy": "always"}
    report = fuser.explain(module, x, options=options)
    (line,) = [line for line in report.breaks if "runs in eager" in line]
    assert "`idx, top_x = torch.where(mask[e])`: all of `forward` runs in eager" in line
    assert line.endswith("a loop over experts becomes part of the graph by fuser.compile(model)")
    assert report.count("moe") == 0
    report = fuser.explain(fuser.compile(module), x, options=options)
    assert not report.expect(moe=1).breaks


@pytest.mark.parametrize("before", [torch.compile, fuser.compile], ids=["stock", "whole"])
def test_explain_sees_what_was_given_up_before(before: Any) -> None:
    """Dynamo never looks again at code that it has skipped."""
    module, x = OtherActivation().eval(), tokens()
    more = {"backend": "eager"} if before is torch.compile else {}
    before(module, **more)(x)
    for explained in (module, module.forward, fuser.compile(module)):
        report = fuser.explain(explained, x)
        assert any("torch.where" in line for line in report.breaks), report.breaks


def test_explain_tells_why_a_capture_failed() -> None:
    report = fuser.explain(fuser.compile(OtherActivation().eval()), tokens())
    (line,) = [x for x in report.breaks if "as torch.compile does" in x]
    assert "`forward` is compiled" in line
    assert "not all sizes that depend on data are gone" in line


def test_explain_tells_that_a_captured_loop_was_left() -> None:
    """Not that it could not be captured: with a rewrite no size would depend on data any more."""
    report = fuser.explain(fuser.compile(MixtralLoop().eval()), tokens())
    (line,) = [x for x in report.breaks if "as torch.compile does" in x]
    assert "moe.loop was left: " in line
    assert "(fuser.policy=always forces it)" in line
