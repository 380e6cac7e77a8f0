"""The backend as a user meets it: options, inner backends, modes, bodies, and the safety net."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import checkpoint

from fuser import __version__, backend, inductor_private, torch_private
from fuser.backend import fuser as fuser_backend
from fuser.backend import listening
from fuser.builder import Builder
from fuser.errors import (
    FuserError,
    FuserWarning,
    InvalidOptionError,
    UnknownBackendError,
    UnknownOptionError,
)
from fuser.events import Record
from fuser.graph.view import GraphView
from fuser.options import LoweringChoice, Options, Policy
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern, unregister_pattern
from tests.compiled import assert_near, compiled, run, wide
from tests.inner import CATCH, caught, keywords, operators

B, H, S, SK, D = 2, 4, 34, 38, 4  # enough positions for each feature that `auto` rewrites


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def qkv(grad: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(B, H, n, D, generator=generator).to(dtype).requires_grad_(grad)
        for n in (S, SK, SK)
    )
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.3).softmax(-1) @ v


def softcapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.tanh(q @ k.mT / 5) * 5).softmax(-1) @ v


def pointwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q.sin() + k.mean(-2, keepdim=True)).abs() * v.amax()


def graph_of(fn: Any, inputs: Sequence[Any], **options: Any) -> GraphModule:
    """What one compile handed to the inner backend."""
    graphs = caught()
    torch.compile(fn, backend="fuser", options={"fuser.inner": CATCH, **options})(*inputs)
    (graph,) = graphs
    return graph


class TestOptions:
    def test_defaults(self) -> None:
        assert Options.parse(None, {}) == (Options(), {})
        assert Options().policy is Policy.AUTO
        assert Options().inner == "inductor"

    def test_every_key(self) -> None:
        given = {
            "fuser.policy": "always",
            "fuser.lowering": "aten",
            "fuser.inner": "eager",
            "fuser.patterns": "attention.*, -attention.sdpa",
            "fuser.atomics": "1",
            "fuser.dense_moe": "no",
            "fuser.verify": True,
            "fuser.debug": "reports",
            "fuser.strict": "yes",
            "max_autotune": True,
        }
        parsed, rest = Options.parse(given, {})
        assert rest == {"max_autotune": True}
        wanted = ("attention.*", "-attention.sdpa")
        lowering = LoweringChoice.ATEN
        flags = {"atomics": True, "dense_moe": False, "verify": True, "strict": True}
        expected = Options(Policy.ALWAYS, lowering, "eager", wanted, debug="reports", **flags)
        assert parsed == expected

    def test_environment_and_precedence(self) -> None:
        environ = {"FUSER_POLICY": "always", "FUSER_STRICT": "1", "FUSER_DEBUG": "0"}
        parsed, _ = Options.parse({"fuser.strict": False}, environ)
        assert parsed == Options(policy=Policy.ALWAYS)

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("fuser.polcy", "fuser.policy"),
            ("fuser.lower", "fuser.lowering"),
            ("fuser.pattern", "fuser.patterns"),
            ("fuser.STRICT", ""),
            ("fuser.", ""),
        ],
    )
    def test_unknown_key(self, key: str, nearest: str) -> None:
        with pytest.raises(UnknownOptionError) as caught_error:
            Options.parse({key: 1}, {})
        text = str(caught_error.value)
        assert repr(key) in text
        assert "fuser.policy" in text
        if nearest:
            assert f"Did you mean {nearest!r}?" in text

    @pytest.mark.parametrize(
        ("key", "bad", "expected"),
        [
            ("fuser.policy", "never", "'auto', 'always'"),
            ("fuser.policy", 3, "'auto', 'always'"),
            ("fuser.lowering", "cuda", "'reference'"),
            ("fuser.inner", "", "registered backend"),
            ("fuser.inner", None, "registered backend"),
            ("fuser.patterns", 3, "pattern id or glob"),
            ("fuser.patterns", [1], "pattern id or glob"),
            ("fuser.verify", "perhaps", "boolean"),
            ("fuser.strict", None, "boolean"),
            ("fuser.atomics", 2, "boolean"),
            ("fuser.dense_moe", "some", "boolean"),
            ("fuser.debug", None, "directory or a boolean"),
            ("fuser.debug", 2.5, "directory or a boolean"),
        ],
    )
    def test_bad_value(self, key: str, bad: Any, expected: str) -> None:
        with pytest.raises(InvalidOptionError, match=key) as caught_error:
            Options.parse({key: bad}, {})
        assert expected in str(caught_error.value)
        assert repr(bad) in str(caught_error.value)

    def test_bad_environment_names_the_variable(self) -> None:
        with pytest.raises(InvalidOptionError, match="FUSER_POLICY"):
            Options.parse({}, {"FUSER_POLICY": "sometimes"})

    def test_an_empty_variable_is_none_and_one_that_is_overridden_is_not_read(self) -> None:
        assert Options.parse({}, {"FUSER_POLICY": "", "FUSER_INNER": ""})[0] == Options()
        parsed, _ = Options.parse({"fuser.policy": "always"}, {"FUSER_POLICY": "bogus"})
        assert parsed.policy is Policy.ALWAYS

    def test_a_misspelt_variable_is_warned_about(self) -> None:
        with pytest.warns(FuserWarning, match="FUSER_POLCY .* did you mean FUSER_POLICY"):
            assert Options.parse({}, {"FUSER_POLCY": "always"})[0] == Options()
        assert Options.parse({}, {"FUSER_HOME_PAGE": "x"})[0] == Options()

    @pytest.mark.parametrize("bad", [["fuser.policy"], "fuser.policy=always", 3])
    def test_options_are_a_dict(self, bad: Any) -> None:
        with pytest.raises(InvalidOptionError, match="expected a dict"):
            Options.parse(bad, {})
        assert Options.parse({3: 4}, {})[1] == {3: 4}  # type: ignore[dict-item]

    @pytest.mark.parametrize(
        ("patterns", "allowed"),
        [
            ((), {"attention.softmax", "attention.sdpa", "mine.x"}),
            (("attention.*",), {"attention.softmax", "attention.sdpa"}),
            (("-attention.sdpa",), {"attention.softmax", "mine.x"}),
            (("attention.*", "-*.sdpa"), {"attention.softmax"}),
            (("attention", "-attention.sdpa"), {"attention.softmax"}),
            (("-mine",), {"attention.softmax", "attention.sdpa"}),
        ],
    )
    def test_allow_and_deny(self, patterns: tuple[str, ...], allowed: set[str]) -> None:
        options = Options(patterns=patterns)
        known = ("attention.softmax", "attention.sdpa", "mine.x")
        assert {p for p in known if options.allows(p)} == allowed

    def test_unknown_option_reaches_the_user(self) -> None:
        run_it = torch.compile(attention, backend="fuser", options={"fuser.polcy": "auto"})
        with pytest.raises(Exception, match=r"Did you mean 'fuser\.policy'"):
            run_it(*qkv())

    def test_unknown_inner_backend(self) -> None:
        options = {"fuser.inner": "inducter"}
        with pytest.raises(UnknownBackendError, match="Did you mean 'inductor'"):
            fuser_backend(_empty(), [], options=options)

    def test_inner_backend_is_itself(self) -> None:
        with pytest.raises(FuserError, match="must be another one"):
            fuser_backend(_empty(), [], options={"fuser.inner": "fuser"})


def _empty() -> GraphModule:
    graph = torch.fx.Graph()
    graph.output(())
    return GraphModule({}, graph)


class TestInnerBackend:
    @pytest.mark.parametrize("fn", [pointwise, attention])
    def test_the_same_module_object_arrives(self, fn: Any) -> None:
        """Nothing is copied; where nothing matched nothing is changed either."""
        before: list[tuple[GraphModule, str, str]] = []

        def between(gm: GraphModule, inputs: Sequence[Any]) -> Any:
            before.append((gm, str(gm.graph), gm.code))
            return fuser_backend(gm, inputs, options={"fuser.inner": CATCH})

        graphs = caught()
        found = torch.compile(fn, backend=between)(*qkv())
        torch.testing.assert_close(found, fn(*qkv()))
        ((module, graph, code),) = before
        assert graphs[0] is module
        assert (str(module.graph) == graph) == (module.code == code) == (fn is pointwise)

    def test_counters(self) -> None:
        torch_private.counters.clear()
        compiled(lambda q, k, v: attention(attention(q, k, v), k, v), qkv())
        assert torch_private.counters["fuser"] == {"attention.softmax": 2}
        torch_private.counters.clear()
        compiled(pointwise, qkv())
        assert not torch_private.counters["fuser"]

    def test_code_is_cached_for_this_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def tagged(gm: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
            seen.append(torch.compiler.config.cache_key_tag)
            return gm.forward

        monkeypatch.setattr(inductor_private, "inductor", lambda mode, options: tagged)
        with torch.compiler.config.patch(cache_key_tag="mine"):
            torch.compile(pointwise, backend="fuser")(*qkv())
            assert torch.compiler.config.cache_key_tag == "mine"
        assert seen == [f"mine torch-fuser {__version__}"]

    def test_mode_is_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FUSER_INNER", CATCH)
        caught()
        torch.compile(attention, backend="fuser", mode="reduce-overhead")(*qkv())
        assert [k.get("mode") for k in keywords()] == ["reduce-overhead"]

    def test_other_options_are_passed_on(self) -> None:
        graph_of(attention, qkv(), max_autotune=True)
        assert [k.get("options") for k in keywords()] == [{"max_autotune": True}]

    def test_inductor_gets_mode_and_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []

        def inductor(mode: str | None, options: Any) -> Any:
            seen.append((mode, dict(options)))
            return lambda gm, inputs: gm

        monkeypatch.setattr(inductor_private, "inductor", inductor)
        torch.compile(attention, backend="fuser", mode="max-autotune")(*qkv())
        torch._dynamo.reset()
        options = {"fuser.policy": "auto", "epilogue_fusion": False}
        torch.compile(attention, backend="fuser", options=options)(*qkv())
        assert seen == [("max-autotune", {}), (None, {"epilogue_fusion": False})]

    def test_inductor_rejects_what_it_does_not_know(self) -> None:
        run_it = torch.compile(attention, backend="fuser", options={"no_such_option": 1})
        with pytest.raises(Exception, match="no_such_option"):
            run_it(*qkv())

    def test_records_reach_every_listener(self) -> None:
        first, second = Record(), Record()
        with listening(first.extend), listening(second.extend):
            graph_of(attention, qkv())
        graph_of(attention, qkv(), **{"fuser.policy": "always"})
        assert len(first.rewritten) == len(second.rewritten) == 1
        assert first.graphs == 1
        assert first.nodes > 3


class TestModes:
    def test_dynamic_compiles_once(self) -> None:
        graphs = caught()
        options = {"fuser.inner": CATCH, "fuser.strict": True}
        run_it = torch.compile(attention, backend="fuser", dynamic=True, options=options)
        for batch, rows, keys in ((2, 17, 18), (3, 9, 25), (5, 31, 7)):
            q, k, v = (torch.randn(batch, H, n, D) for n in (rows, keys, keys))
            torch.testing.assert_close(run_it(q, k, v), attention(q, k, v))
        assert len(graphs) == 1
        assert operators(graphs[0])["softmax"] == 0

    def test_fullgraph(self) -> None:
        options = {"fuser.inner": CATCH, "fuser.strict": True}
        caught()
        run_it = torch.compile(attention, backend="fuser", fullgraph=True, options=options)
        torch.testing.assert_close(run_it(*qkv()), attention(*qkv()))

    def test_two_graphs_around_a_break(self) -> None:
        def broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            x = attention(q, k, v)
            torch._dynamo.graph_break()
            return attention(x, k, v)

        ours = compiled(broken, qkv())
        assert_near(ours, run(broken, qkv()), run(broken, wide(qkv())))
        assert ours.record.graphs == ours.rewrites() == 2

    @pytest.mark.parametrize("depth", [1, 2])
    def test_checkpointed_bodies(self, depth: int) -> None:
        def inner(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q.sin(), k, v).cos()

        def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return checkpoint(inner, q, k, v, use_reentrant=False)

        body = inner if depth == 1 else nested

        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            x = checkpoint(body, q, k, v, use_reentrant=False)
            return attention(x, k, v)

        inputs = qkv(grad=True)
        graphs = caught()
        ours = compiled(model, inputs, grad=True, inner=CATCH)
        eager = run(model, inputs, grad=True)
        assert_near(ours, eager, run(model, wide(inputs), grad=True))
        assert ours.rewrites() == 2
        assert ours.record.graphs == 1
        assert operators(graphs[0])["softmax"] == 0

    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_autocast(self, inside: bool, grad: bool) -> None:
        def cast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return attention(q * 1.0, k, v)

        inputs = qkv(grad)
        exact = run(attention, wide(inputs), grad=grad)
        exact.outputs = [x.float().double() for x in exact.outputs]
        if inside:
            eager, ours = run(cast, inputs, grad=grad), compiled(cast, inputs, grad=grad)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                eager = run(attention, inputs, grad=grad)
                ours = compiled(attention, inputs, grad=grad)
        assert ours.outputs[0].dtype is torch.bfloat16
        assert_near(ours, eager, exact)
        assert ours.rewrites() == 1, ours.reasons()

    def test_inference_mode(self) -> None:
        with torch.inference_mode():
            ours = compiled(attention, qkv())
        assert ours.rewrites() == 1


class TestChoices:
    def test_auto_leaves_what_does_not_pay(self) -> None:
        """Only the reference takes a bias that is trained: sound, not worth it, and said so."""

        def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return (q @ k.mT + bias).softmax(-1) @ v

        inputs = (*qkv(grad=True), torch.randn(H, S, SK, requires_grad=True))
        ours = compiled(biased, inputs, grad=True, policy="auto")
        assert ours.rewrites() == 0
        (miss,) = ours.record.near_misses
        assert miss.sound
        assert "the bias needs a gradient" in miss.reason
        assert compiled(biased, inputs, grad=True).rewrites() == 1

    def test_auto_takes_what_pays(self) -> None:
        assert compiled(attention, qkv(), policy="auto").rewrites() == 1

    def test_auto_leaves_what_does_not_pay_and_says_why(self) -> None:
        q, k, v = qkv()
        few = (q[:, :, :3], k[:, :, :5], v[:, :, :5])
        ours = compiled(attention, few, policy="auto")
        (miss,) = ours.record.near_misses
        assert miss.sound
        assert "3 queries and 5 keys of 4 features are too few" in miss.reason
        assert "fuser.policy=always forces it" in miss.reason
        assert compiled(attention, few).rewrites() == 1

    @pytest.mark.parametrize("fn", [attention, softcapped])
    def test_reference_alone(self, fn: Any) -> None:
        ours = compiled(fn, qkv(), policy="auto", **{"fuser.lowering": "reference"})
        assert [r.lowering for r in ours.record.rewritten] == ["reference"]
        assert_near(ours, run(fn, qkv()), run(fn, wide(qkv())))

    def test_library_alone(self) -> None:
        ours = compiled(attention, qkv(), **{"fuser.lowering": "aten"})
        assert [r.lowering for r in ours.record.rewritten] == ["aten.sdpa"]

    def test_allow_and_deny(self) -> None:
        assert compiled(attention, qkv(), **{"fuser.patterns": "-attention.*"}).rewrites() == 0
        assert compiled(attention, qkv(), **{"fuser.patterns": ["attention.sdpa"]}).rewrites() == 0
        assert compiled(attention, qkv(), **{"fuser.patterns": "attention.*"}).rewrites() == 1

    def test_a_module_with_buffers_and_parameters(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.project = nn.Linear(D, D)
                self.register_buffer("mask", torch.ones(S, S, dtype=torch.bool).tril())

            def forward(self, x: Tensor) -> Tensor:
                scores = self.project(x) @ x.mT / D**0.5
                return scores.masked_fill(~self.mask, -torch.inf).softmax(-1) @ x

        torch.manual_seed(0)
        model, inputs = Model(), (qkv(grad=True)[0],)
        ours = compiled(model, inputs, grad=True)
        assert_near(ours, run(model, inputs, grad=True), run(wide(model), wide(inputs), grad=True))
        assert ours.rewrites() == 1, ours.reasons()


class _Raises(Pattern):
    """Raises where it is told to; finds every softmax."""

    id: ClassVar[str] = "faulty.softmax"
    priority: ClassVar[int] = 99
    where: ClassVar[str] = ""

    def anchors(self, view: GraphView) -> Iterable[Node]:
        if self.where == "anchors":
            raise ZeroDivisionError("in anchors")
        return [n for n in view.nodes if view.op(n).name == "softmax"]

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        if self.where == "match":
            raise ZeroDivisionError("in match")

        def replacement(builder: Builder) -> Sequence[Node]:
            made = builder.method("exp", anchor.all_input_nodes[0])
            if self.where == "replacement":
                raise ZeroDivisionError("in replacement")
            return [builder.method("sum", made)]  # of another shape

        return Match(self.id, anchor, frozenset([anchor]), (anchor,), replacement=replacement)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    monkeypatch.setattr(_Raises, "where", request.param)
    register_pattern(_Raises)
    yield request.param
    unregister_pattern(_Raises.id)


class TestSafetyNet:
    PLACES: ClassVar[list[str]] = ["anchors", "match", "replacement", "shape"]

    @pytest.mark.parametrize("faulty", PLACES, indirect=True)
    def test_one_warning_and_the_model_runs(self, faulty: str) -> None:
        """A graph with one region: one warning; our own pattern still gets its turn."""
        inputs = qkv(grad=True)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ours = compiled(attention, inputs, grad=True, **{"fuser.strict": False})
        told = [w for w in seen if issubclass(w.category, FuserWarning)]
        assert len(told) == 1
        assert "faulty.softmax" in str(told[0].message)
        assert "fuser.strict" in str(told[0].message)
        assert_near(
            ours, run(attention, inputs, grad=True), run(attention, wide(inputs), grad=True)
        )
        (failure,) = ours.record.failures
        assert failure.pattern == "faulty.softmax"
        if faulty in ("anchors", "match"):
            assert ours.rewrites() == 1

    @pytest.mark.parametrize("faulty", PLACES, indirect=True)
    def test_strict_raises(self, faulty: str) -> None:
        text = "changes the shape" if faulty == "shape" else f"in {faulty}"
        with pytest.raises(Exception, match=text):
            compiled(attention, qkv())

    def test_a_failure_of_the_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, listed: bool) -> Record:
            raise ZeroDivisionError("in transform")

        monkeypatch.setattr(backend, "transform", broken)
        with pytest.warns(FuserWarning, match="ZeroDivisionError: in transform") as seen:
            ours = compiled(attention, qkv(), **{"fuser.strict": False})
        assert len(seen) == 1
        assert_near(ours, run(attention, qkv()), run(attention, wide(qkv())))
        with pytest.raises(Exception, match="in transform"):
            compiled(attention, qkv())


class TestInductor:
    """Real code generation, where stock Inductor is wrong or crashes (pytorch#196468)."""

    def _compare(self, fn: Any, inputs: Sequence[Tensor], grad: bool, **options: Any) -> Record:
        ours = compiled(fn, inputs, grad=grad, inner="inductor", policy="auto", **options)
        assert_near(ours, run(fn, inputs, grad=grad), run(fn, wide(inputs), grad=grad))
        return ours.record

    def test_wrong_axis(self) -> None:
        """Square sizes, a softmax over the queries: not attention, whatever Inductor thinks."""

        def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-2, -1)).div(8**0.5).softmax(dim=-2) @ v

        q, k, v = (torch.randn(2, 4, 16, 16) for _ in range(3))
        torch_private.counters.clear()
        record = self._compare(over_queries, (q, k, v), False)
        assert record.rewritten == []
        assert "axis" in record.near_misses[0].reason
        assert torch_private.counters["inductor"]["fuse_attention"] == 0

    def test_its_patterns_are_back_afterwards(self) -> None:
        """Off for a graph that we declined, on again for the next compile without us."""

        def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-2, -1)).div(8**0.5).softmax(dim=-1) @ v

        q, k, v = (torch.randn(2, 4, 16, 8) for _ in range(3))
        torch_private.counters.clear()
        self._compare(plain, (q, k, v), False, **{"fuser.patterns": "-attention.*"})
        assert torch_private.counters["inductor"]["fuse_attention"] == 0
        torch._dynamo.reset()
        with torch._inductor.utils.fresh_cache(), torch.no_grad():
            torch.compile(plain)(q, k, v)
        assert torch_private.counters["inductor"]["fuse_attention"] == 1

    def test_patterns_are_back_after_an_error(self) -> None:
        def fails() -> None:
            with inductor_private.attention_patterns_off(torch.device("cpu")):
                assert inductor_private._patterns_off.get()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        assert not inductor_private._patterns_off.get()

    def test_tensor_for_a_scale_trains(self) -> None:
        def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-2, -1) / torch.full([], D**0.5)).softmax(-1) @ v

        self._compare(scaled, qkv(grad=True), True)

    def test_integer_divisor_trains(self) -> None:
        def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            p = F.dropout((q @ k.transpose(-2, -1) / 3).softmax(-1), 0.0, training=True)
            return p @ v

        record = self._compare(scaled, qkv(grad=True), True)
        assert len(record.rewritten) == 1


@pytest.mark.parametrize("lowering", ["reference", "auto"])
def test_activation_checkpointing_around_a_compiled_function(lowering: str) -> None:
    """It counts what autograd saves, and nothing that is tried in a compile is saved."""
    from torch.utils.checkpoint import checkpoint

    def attention(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x

    torch._dynamo.reset()
    options = {"fuser.policy": "always", "fuser.lowering": lowering, "fuser.inner": "aot_eager"}
    function = torch.compile(attention, backend="fuser", options=options)
    x = torch.randn(2, 20, 16, requires_grad=True)
    checkpoint(function, x, use_reentrant=False).sum().backward()
    (wanted,) = torch.autograd.grad(attention(x).sum(), x)
    torch.testing.assert_close(x.grad, wanted)
