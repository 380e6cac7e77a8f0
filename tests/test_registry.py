"""Registering: ids, scope, priorities, overlap, selection, and third parties' entry points."""

from __future__ import annotations

import importlib.metadata
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from fuser import registry
from fuser.backend import listening
from fuser.errors import (
    DuplicatePatternError,
    FuserWarning,
    InvalidOptionError,
    PatternError,
)
from fuser.events import Record
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import (
    PatternHandle,
    patterns,
    patterns_enabled,
    register_pattern,
    unregister_pattern,
)

X = torch.randn(3, 4)


def find(x: Tensor) -> Tensor:
    return x.exp().sin()


def replacement(x: Tensor) -> Tensor:
    return torch.sin(torch.exp(x))


def registered() -> set[str]:
    return {r.pattern.id for r in patterns()}


def fired(
    model: Callable[..., Any] = find, inputs: Sequence[Any] = (X,), **options: Any
) -> list[str]:
    """Ids of the patterns that rewrote something, in order."""
    torch._dynamo.reset()
    records: list[Record] = []
    settings = {"fuser.inner": "eager", "fuser.strict": True, **options}
    with listening(records.append):
        out = torch.compile(model, backend="fuser", options=settings)(*inputs)
    torch.testing.assert_close(out, model(*inputs))
    return [r.pattern for r in records[-1].rewritten]


def test_scope_of_a_handle() -> None:
    with register_pattern(find, replacement, (X,), id="mine.scoped") as handle:
        assert isinstance(handle, PatternHandle)
        assert handle.id == "mine.scoped"
        assert "mine.scoped" in registered()
        assert fired() == ["mine.scoped"]
    assert "mine.scoped" not in registered()
    assert fired() == []
    handle.unregister()  # a second time does nothing


def test_scope_ends_where_the_block_raises() -> None:
    with (
        pytest.raises(RuntimeError, match="inside"),
        register_pattern(find, replacement, (X,), id="mine.scoped"),
    ):
        raise RuntimeError("inside")
    assert "mine.scoped" not in registered()


def test_unregister() -> None:
    register_pattern(find, replacement, (X,), id="mine.kept")
    assert fired() == ["mine.kept"]
    unregister_pattern("mine.kept")
    assert fired() == []
    with pytest.raises(
        PatternError, match=r"no pattern 'mine.kept' is registered; registered: .*attention"
    ):
        unregister_pattern("mine.kept")


def test_a_handle_does_not_remove_its_successor() -> None:
    handle = register_pattern(find, replacement, (X,), id="mine.again")
    unregister_pattern("mine.again")
    with register_pattern(find, replacement, (X,), id="mine.again"):
        handle.unregister()
        assert "mine.again" in registered()


def test_duplicate_id() -> None:
    with (
        register_pattern(find, replacement, (X,), id="mine.twice"),
        pytest.raises(
            DuplicatePatternError, match=r"registered already \(by .*test_registry.py:\d+\)"
        ),
    ):
        register_pattern(find, replacement, (X,), id="mine.twice")


def test_default_id() -> None:
    with register_pattern(find, replacement, (X,)) as handle:
        assert handle.id == f"{__name__}.find"


@pytest.mark.parametrize("module", ["attention.mine", "norm", "moe.x.y"])
def test_default_id_in_the_name_of_our_families(module: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(find, "__module__", module)
    with pytest.raises(PatternError, match="needs a name of its own: give register_pattern an id"):
        register_pattern(find, replacement, (X,))
    with register_pattern(find, replacement, (X,), id="norm.given_explicitly") as handle:
        assert handle.id == "norm.given_explicitly"


def test_a_lambda_needs_an_id() -> None:
    with pytest.raises(PatternError, match="give register_pattern an id"):
        register_pattern(lambda x: x.exp(), replacement, (X,))


@pytest.mark.parametrize("bad", ["", " ", "a b", "mine.*", "-mine", "mine.", 3])
def test_unusable_ids(bad: Any) -> None:
    with pytest.raises(PatternError, match="id"):
        register_pattern(find, replacement, (X,), id=bad)


def test_the_function_form_wants_all_three() -> None:
    with pytest.raises(PatternError, match="two functions and their example inputs"):
        register_pattern(find, replacement)  # type: ignore[call-overload]
    with pytest.raises(PatternError, match=r"register_pattern\(find, replace, example_inputs\)"):
        register_pattern(find)  # type: ignore[type-var]
    with pytest.raises(PatternError, match="a Pattern class has them as attributes"):
        register_pattern(id="mine.x")  # type: ignore[call-overload]


def make(name: str, seen: int = 0) -> type[Pattern]:
    """A structural pattern of sines, as a class."""

    class Sine(Pattern):
        id: ClassVar[str] = name
        priority: ClassVar[int] = seen

        def anchors(self, view: GraphView) -> Iterable[Node]:
            return [n for n in view.nodes if view.op(n).name == "sin"]

        def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
            source = view.op(anchor).args["input"]
            return Match(
                self.id,
                anchor,
                frozenset([anchor]),
                (anchor,),
                replacement=lambda b: [b.call(torch.cos, b.call(torch.sub, source, torch.pi / 2))],
            )

    return Sine


@pytest.mark.parametrize("called", [False, True])
def test_the_class_form(called: bool) -> None:
    cls = make("mine.sine")
    assert (register_pattern()(cls) if called else register_pattern(cls)) is cls
    try:
        assert fired() == ["mine.sine"]
        with pytest.raises(DuplicatePatternError):
            register_pattern(cls)
    finally:
        unregister_pattern("mine.sine")


def test_a_class_without_an_id() -> None:
    with pytest.raises(PatternError, match="Sine has no id"):
        register_pattern(make(""))


def inner(x: Tensor) -> Tensor:
    return x.exp() * 2


def inner_fused(x: Tensor) -> Tensor:
    return torch.exp(x).mul(2)


def outer(x: Tensor) -> Tensor:
    return (x.exp() * 2).sin()


def outer_fused(x: Tensor) -> Tensor:
    return torch.sin(2 * torch.exp(x))


@pytest.mark.parametrize(("a", "b", "wins"), [(1, 0, "mine.inner"), (0, 1, "mine.outer")])
def test_the_higher_priority_wins_an_overlap(a: int, b: int, wins: str) -> None:
    with (
        register_pattern(inner, inner_fused, (X,), id="mine.inner", priority=a),
        register_pattern(outer, outer_fused, (X,), id="mine.outer", priority=b),
    ):
        assert fired(outer) == [wins]
        order = [r.pattern.id for r in patterns() if r.pattern.id.startswith("mine.")]
        assert order[0] == wins


def test_what_the_first_leaves_is_the_next_ones() -> None:
    def model(x: Tensor) -> Tensor:
        return (x.exp() * 2).sin() + (x.exp() * 2).cos()

    with (
        register_pattern(inner, inner_fused, (X,), id="mine.inner"),
        register_pattern(outer, outer_fused, (X,), id="mine.outer", priority=5),
    ):
        assert sorted(fired(model)) == ["mine.inner", "mine.outer"]


def test_regions_side_by_side_and_one_after_the_other() -> None:
    def model(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x.exp().sin()
        return x

    with register_pattern(find, replacement, (X,), id="mine.chain"):
        assert fired(model) == ["mine.chain"] * 3


def test_allow_and_deny_for_one_compile() -> None:
    with register_pattern(find, replacement, (X,), id="mine.chosen"):
        assert fired(**{"fuser.patterns": "mine.*"}) == ["mine.chosen"]
        assert fired(**{"fuser.patterns": "-mine.*"}) == []
        assert fired(**{"fuser.patterns": ["attention.*"]}) == []


def test_patterns_enabled_is_scoped_and_nests() -> None:
    with register_pattern(find, replacement, (X,), id="mine.chosen"):
        with patterns_enabled("mine.*"):
            assert registered() == {"mine.chosen"}
            assert fired() == ["mine.chosen"]
            with patterns_enabled("-mine.chosen"):
                assert registered() == set()
                assert fired() == []
            elsewhere: list[set[str]] = []
            thread = threading.Thread(target=lambda: elsewhere.append(registered()))
            thread.start()
            thread.join()
            assert elsewhere[0] > {"mine.chosen"}
        with patterns_enabled("attention.*"):
            assert fired() == []
        assert fired() == ["mine.chosen"]


class Entry:
    """A stand-in for an entry point of another package."""

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.value, self._loaded = name, f"{name}.module:attr", loaded

    def load(self) -> Any:
        if isinstance(self._loaded, BaseException):
            raise self._loaded
        return self._loaded


@pytest.fixture
def discover(monkeypatch: Any) -> Iterator[Callable[..., None]]:
    """Makes the next compile discover these entry points, as the first one of a process does."""
    before = dict(registry._patterns)

    def install(*entries: Entry) -> None:
        original = importlib.metadata.entry_points

        def entry_points(**select: Any) -> Any:
            return entries if select == {"group": "fuser.patterns"} else original(**select)

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        monkeypatch.setattr(registry, "_discovered", False)

    patterns()
    before.update(registry._patterns)
    yield install
    registry._patterns.clear()
    registry._patterns.update(before)


def test_entry_points_of_every_kind(discover: Callable[..., None]) -> None:
    def register() -> None:
        register_pattern(find, replacement, (torch.randn(2, 2),), id="third.function")

    discover(
        Entry("a", register),
        Entry("b", make("third.sine")),
        Entry("c", make("third.object")()),
        Entry("d", lambda: make("third.made")),
    )
    # functions are recorded in the middle of a compile here
    assert fired(**{"fuser.patterns": "third.function"}) == ["third.function"]
    assert {"third.function", "third.sine", "third.object", "third.made"} <= registered()


@pytest.mark.parametrize(
    ("loaded", "text"),
    [
        (ImportError("no module named third"), "ImportError: no module named third"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (make(""), "has no id"),
        (lambda: register_pattern(find, find, (), id="third.x"), "PatternError"),
        (SystemExit("bye"), "SystemExit: bye"),
        (3, "it gives 3"),
        (importlib, "it gives <module"),
        (make("attention.softmax"), "is registered already"),
    ],
)
def test_an_entry_point_that_raises_costs_one_warning(
    discover: Callable[..., None], loaded: Any, text: str
) -> None:
    discover(Entry("broken", loaded), Entry("fine", make("third.sine")))
    with pytest.warns(FuserWarning) as caught:
        assert fired() == ["third.sine"]  # the model runs, and the other one is there
    (warning,) = caught
    message = str(warning.message)
    assert re.match(r"the pattern entry point 'broken' \(broken\.module:attr\) failed", message)
    assert text in message
    assert fired() == ["third.sine"]  # no second warning


def test_a_malformed_plug_in_costs_itself_alone() -> None:
    """What `match` returns is checked before it is used, and the pattern is named."""
    q = torch.randn(1, 2, 16, 8)
    for answer, text in (
        (3, "returned 3; a Match, a Decline or None"),
        (Decline("no", None), "a Decline at None"),  # type: ignore[arg-type]
        ("stranger", "no node of the graph"),
        ("another id", "a Match of 'other.id'"),
        ("nothing", "with nothing to put there"),
        ("outside", "is not among its nodes"),
        (Decline(5, None), "a Decline at None"),  # type: ignore[arg-type]
    ):
        with pytest.warns(FuserWarning, match="mine.bad") as seen, _answering(answer):
            assert fired(_attend, (q,), **_FORCED) == ["attention.softmax"]
        assert text in str(seen[0].message), (answer, str(seen[0].message))
        assert len(seen) == 1


_FORCED = {"fuser.policy": "always", "fuser.strict": False}


def _attend(q: Tensor) -> Tensor:
    return (q @ q.mT).softmax(-1) @ q


def _answering(answer: Any) -> PatternHandle:
    """A pattern, registered, that answers so for every node."""

    class Bad(Pattern):
        id: ClassVar[str] = "mine.bad"
        priority: ClassVar[int] = 99

        def anchors(self, view: GraphView) -> Iterable[Node]:
            return [n for n in view.nodes if n.op == "call_function"]

        def match(self, view: GraphView, anchor: Node) -> Any:
            other = torch.fx.Graph().placeholder("x")
            node, nodes = frozenset([anchor]), frozenset([anchor, other])
            empty: Any = lambda builder: []  # noqa: E731
            made = {
                "stranger": Match(self.id, anchor, nodes, (anchor,), replacement=empty),
                "another id": Match("other.id", anchor, node, (anchor,), replacement=empty),
                "nothing": Match(self.id, anchor, node, (anchor,)),
                "outside": Match(
                    self.id, anchor, node, tuple(anchor.all_input_nodes), replacement=empty
                ),
            }
            return made.get(answer, answer) if isinstance(answer, str) else answer

    register_pattern(Bad)
    return PatternHandle(registry.get("mine.bad"))


@pytest.mark.parametrize("priority", [None, "high", True])
def test_a_priority_is_a_number(priority: Any) -> None:
    with pytest.raises(PatternError, match="its priority is"):
        register_pattern(find, replacement, (X,), id="mine.high", priority=priority)
    assert "mine.high" not in registered()


@pytest.mark.parametrize("entry", ["attenion.*", "-attenion.softmax", "mine.absent", "-", "["])
def test_an_entry_that_matches_nothing_is_warned_about(entry: str) -> None:
    with pytest.warns(FuserWarning, match="matches no registered pattern") as seen:
        fired(**{"fuser.patterns": entry})
    assert repr(entry) in str(seen[0].message)
    with pytest.warns(FuserWarning, match="matches no registered pattern"), patterns_enabled(entry):
        pass


def test_a_family_stands_for_its_patterns() -> None:
    q = torch.randn(1, 2, 16, 8)
    always = {"fuser.policy": "always"}
    assert fired(_attend, (q,), **always, **{"fuser.patterns": "attention"}) != []
    assert fired(_attend, (q,), **always, **{"fuser.patterns": "-attention"}) == []


@pytest.mark.parametrize("bad", [3, None, ["*"]])
def test_patterns_enabled_takes_texts(bad: Any) -> None:
    with pytest.raises(InvalidOptionError, match="patterns_enabled"), patterns_enabled(bad):
        pass


def test_the_loser_of_an_overlap_is_told() -> None:
    q = torch.randn(1, 2, 16, 8)
    with register_pattern(lambda x: x.softmax(-1), lambda x: x.softmax(-1), (X,), id="mine.soft"):
        torch._dynamo.reset()
        records: list[Record] = []
        settings = {"fuser.inner": "eager", "fuser.policy": "always"}
        with listening(records.append):
            torch.compile(_attend, backend="fuser", options=settings)(q)
    (miss,) = [m for m in records[0].near_misses if m.pattern == "mine.soft"]
    assert miss.reason.startswith("attention.softmax, which has priority")
