"""The page of a report without a browser: its data, the rows of graphs, formulas, and what explain
records for it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fuser import backend, printed
from fuser.backend import listening
from fuser.events import Candidate, Compared, Listing, Printed, Record, Row, Verdict, Where
from fuser.graph.program import Program
from fuser.lowering.triton.launch import interpreting
from fuser.report.explain import explain
from fuser.report.page.align import aligned
from fuser.report.page.data import layer_of, page_data
from fuser.report.page.maths import maths
from fuser.report.page.write import page
from fuser.report.report import Report
from fuser.verification.verify import verify

from .models import Encoder, SelfAttention, deep, line_of, tokens
from .test_text import record, rewrite

ALWAYS = {"fuser.policy": "always"}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


# -- rows


@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("abcd", "aXd", [(0, 0), (1, 1), (2, -1), (3, 2)]),
        ("ad", "aXYd", [(0, 0), (-1, 1), (-1, 2), (1, 3)]),
        ("", "X", [(-1, 0)]),
        ("abc", "bca", [(0, -1), (1, 0), (2, 1), (-1, 2)]),
        ("", "", []),
    ],
)
def test_rows_of_two_graphs(before: str, after: str, rows: list[tuple[int, int]]) -> None:
    assert aligned(before, after) == rows


def test_every_node_is_in_one_row() -> None:
    before, after = [f"n{i}" for i in range(50)], [f"n{i * 7 % 50}" for i in range(0, 50, 2)]
    rows = aligned(before, [*after, "new"])
    assert sorted(b for b, _ in rows if b >= 0) == list(range(50))
    assert sorted(a for _, a in rows if a >= 0) == list(range(26))
    for side in (0, 1):
        there = [row[side] for row in rows if row[side] >= 0]
        assert there == sorted(there)


# -- maths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("(s0 * 0.25)", "<i>s</i><sub>0</sub> · 0.25"),
        ("((s0 * 0.25) + c0)", "<i>s</i><sub>0</sub> · 0.25 + <i>c</i><sub>0</sub>"),
        ("((s0 + c0) * 2)", "(<i>s</i><sub>0</sub> + <i>c</i><sub>0</sub>) · 2"),
        ("(a - (b - c))", "<i>a</i> − (<i>b</i> − <i>c</i>)"),  # noqa: RUF001
        ("((na * c0a) + (neg(nb) * c1a))", "<i>n</i><sub>a</sub> · <i>c</i><sub>0a</sub> − "  # noqa: RUF001
         "<i>n</i><sub>b</sub> · <i>c</i><sub>1a</sub>"),
        ("(a - (-b))", "<i>a</i> − (−<i>b</i>)"),  # noqa: RUF001
        ("(a * neg(b))", "<i>a</i> · (−<i>b</i>)"),  # noqa: RUF001
        ("((x + 1) ** 2)", "(<i>x</i> + 1)<sup>2</sup>"),
        ("(tanh((s0 / 30)) * 30)", "<b>tanh</b>(<i>s</i><sub>0</sub> / 30) · 30"),
        ("where((iq >= ik), s0, -inf)", "<i>s</i><sub>0</sub> if <i>i</i><sub>q</sub> ≥ "
         "<i>i</i><sub>k</sub> else −∞"),  # noqa: RUF001
        ("rsqrt((p + 1e-06))", "1 / √(<i>p</i> + 10<sup>−6</sup>)"),  # noqa: RUF001
        ("(x / 3e-06)", "<i>x</i> / (3 · 10<sup>−6</sup>)"),  # noqa: RUF001
        ("to(x, bfloat16)", "<b>bfloat16</b>(<i>x</i>)"),
        ("(p * c0); p", "<i>p</i> · <i>c</i><sub>0</sub>; <i>p</i>"),
        ("gelu(x, approximate=tanh)", "<b>gelu</b>(<i>x</i>, approximate = tanh)"),
    ],
)  # fmt: skip
def test_formulas(text: str, shown: str) -> None:
    assert maths(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "4 query, 4 key-value",
        "causal",
        "0.25",
        "scaled_dot_product_attention",
        "key-value",
        "",
        "x.y()",
        "(" * 400 + "x" + " + 1)" * 400,
        "softmax(x) over experts",
        "(a < b < c)",
    ],
)
def test_what_is_no_formula_stays_text(text: str) -> None:
    assert maths(text) is None


def test_a_formula_cannot_hold_markup() -> None:
    assert maths("f('<img>') + 1") == "<b>f</b>(&lt;img&gt;) + 1"


def test_brackets_left_out_change_nothing() -> None:
    """What is shown of arithmetic, read as Python again, is the same number."""
    text = "((((a + b) * (c - (a - b))) / (b * c)) + (2 - (a ** 2)))"
    shown = maths(text)
    assert shown is not None
    again = re.sub(r"<sup>(.*?)</sup>", r"**\1", shown)
    again = re.sub(r"<[^>]*>", "", again).replace("·", "*").replace("−", "-")  # noqa: RUF001
    names = {"a": 3.0, "b": 5.0, "c": 7.0}
    assert eval(again, names) == eval(text, names)  # of this file's own text


# -- data


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.17.self_attn", "model.layers.17"),
        ("layers.3", "layers.3"),
        ("h.0.mlp.experts.3", "h.0"),
        ("block_2.attn", ""),
        ("", ""),
    ],
)
def test_layer_of_a_module(module: str, layer: str) -> None:
    assert layer_of(module) == layer


def test_equal_layers_are_one_group_and_the_layers_are_listed() -> None:
    data = page_data(Report.of(record()))
    found = [(g["pattern"], g["status"], len(g["events"]), g["module"]) for g in data["groups"]]
    assert found[0] == (
        *("attention.softmax", "rewritten", 3),
        "model.layers.{0-1,3}.self_attn",
    )
    assert [status for _, status, *_ in found] == [
        *("rewritten", "rewritten", "left", "declined", "failed"),
    ]
    assert data["layers"] == [("model.layers", [f"model.layers.{i}" for i in range(7)])]
    assert len(data["details"]) < len(data["events"])


def test_without_recorded_graphs_the_rewrites_make_one() -> None:
    data = page_data(Report.of(record()))
    (graph,) = data["graphs"]
    assert len(graph["before"]) == 16
    assert len(graph["after"]) == 4
    owned = [row for row in graph["rows"] if len(row) == 3]
    assert {owner for *_, owner in owned} == {0, 1, 2, 3}
    assert len(owned) == len(graph["rows"])


def verified() -> Record:
    """Three layers: verified, not verified, and taken back, where an infinity was."""
    found = record()
    found.rewritten = [rewrite(0), rewrite(1)]
    wrong = Compared("output 0", math.inf, 1e-7, 3e-7, (0, 1, 2), "is inf instead of 2")
    fine = Compared("output 0", 2e-7, 1e-7, 3e-7)
    common = (rewrite(0).pattern, rewrite(0).lowering)
    found.verdicts = [
        Verdict(common[0], rewrite(0).where, common[1], "verified", compared=(fine,)),
        Verdict(common[0], rewrite(1).where, common[1], "unverified", "it draws random numbers"),
        Verdict(
            *(common[0], rewrite(2).where, common[1], "wrong", str(wrong), (wrong,)),
            script="/tmp/reproduce_0.py",
        ),
    ]
    return found


def test_verdicts_stand_at_their_regions_and_those_taken_back_alone() -> None:
    data = json.loads(json.dumps(page_data(Report.of(verified())), allow_nan=False))
    verdicts = data["verdicts"]
    events = [e for e in data["events"] if e["status"] in ("rewritten", "wrong")]
    assert [verdicts[event["verdict"]]["outcome"] for event in events] == [
        *("verified", "unverified", "wrong"),
    ]
    assert verdicts[events[0]["verdict"]]["compared"][0]["error"] == 2e-7
    assert verdicts[events[1]["verdict"]]["reason"] == "it draws random numbers"
    wrong = verdicts[events[2]["verdict"]]
    assert wrong["compared"][0]["error"] is None
    assert wrong["compared"][0]["worst"] == [0, 1, 2]
    assert wrong["script"] == "/tmp/reproduce_0.py"
    assert data["groups"][-1]["status"] == "wrong"
    others = [e for e in data["events"] if e["status"] not in ("rewritten", "wrong")]
    assert others
    assert not any("verdict" in event for event in others)
    assert "TAKEN BACK  attention.softmax" in page(Report.of(verified())).partition("<noscript>")[2]


def test_a_verdict_of_another_graph_or_pattern_is_not_taken() -> None:
    found = verified()
    first = found.verdicts[0]
    for other in (replace(first, graph=1), replace(first, body="b"), replace(first, pattern="x.y")):
        found.verdicts = [other]
        assert not any("verdict" in event for event in page_data(Report.of(found))["events"])


@torch.no_grad()
def test_what_verification_of_a_model_found_is_on_its_page() -> None:
    model = Encoder(SelfAttention(), SelfAttention())
    options = {**ALWAYS, "fuser.inner": "eager"}
    data = page_data(verify(model, tokens(), options=options).expect(attention=2).report)
    rewritten = [e for e in data["events"] if e["status"] == "rewritten"]
    outcomes = [data["verdicts"][event["verdict"]]["outcome"] for event in rewritten]
    assert outcomes == ["verified", "verified"]


@torch.no_grad()
def test_explain_records_the_graph_before_and_after() -> None:
    report = explain(Encoder(SelfAttention(), SelfAttention(leaky=True)), tokens())
    (listing,) = report.listings
    before = {row.where.node: row for row in listing.before}
    after = {row.where.node for row in listing.after}
    assert len(listing.before) == report.nodes
    (rewrite,) = report.rewritten
    gone = set(before) - after
    assert gone == {fx.partition(":")[0] for fx in rewrite.removed} | set(rewrite.dropped)
    assert after - set(before) == {fx.partition(":")[0] for fx in rewrite.added}
    assert before["p"].where.line == line_of("softmax")
    assert before["p_1"].where.module == "layers.1"
    data = page_data(report)
    miss = next(event for event in data["events"] if event["status"] == "declined")
    b, a = data["graphs"][0]["rows"][miss["at"]]
    assert data["graphs"][0]["before"][b][0].startswith("p_1: ")
    assert data["graphs"][0]["after"][a] == b


def test_a_body_is_a_graph_of_its_own_and_its_events_say_so() -> None:
    def attention(x: Tensor) -> Tensor:
        return (x @ x.mT * 0.5).softmax(-1) @ x

    def step(x: Tensor) -> Tensor:
        return checkpoint(attention, x, use_reentrant=False).sin()

    report = explain(step, torch.randn(2, 2, 16, 8, requires_grad=True), options=ALWAYS)
    outer, inner = report.listings
    assert (outer.body, len(outer.before)) == ("", len(outer.after))
    assert inner.body
    (rewrite,) = report.rewritten
    assert rewrite.body == inner.body
    data = page_data(report)
    assert [event["graph"] for event in data["events"] if event["status"] == "rewritten"] == [1]


def test_nothing_is_recorded_for_those_who_do_not_ask() -> None:
    found = Record()
    with torch.no_grad(), listening(found.extend):
        model = Encoder(SelfAttention())
        torch.compile(model, backend="fuser", options={"fuser.inner": "eager"})(tokens())
    assert (len(found.rewritten), found.listings, found.kernels) == (1, [], [])


@torch.no_grad()
def test_what_was_considered_is_told() -> None:
    report = explain(Encoder(SelfAttention()), tokens())
    (rewrite,) = report.rewritten
    (taken,) = [c for c in rewrite.candidates if c.chosen]
    assert taken.name == rewrite.lowering
    assert taken.work is not None
    assert len(rewrite.candidates) > 2
    assert all(c.verdict for c in rewrite.candidates)
    left = explain(lambda x: torch.nn.functional.silu(x) * (x + 1), torch.randn(4, 4)).left
    assert [c.chosen for c in left[0].candidates] == [False] * len(left[0].candidates)
    assert left[0].candidates


@torch.no_grad()
@pytest.mark.skipif(not interpreting(), reason="kernels run in the interpreter, or on a GPU")
def test_generated_kernels_stand_beside_their_regions() -> None:
    options = {**ALWAYS, "fuser.lowering": "triton"}
    report = explain(Encoder(SelfAttention(), SelfAttention()), tokens(), options=options)
    assert [kernel.name for kernel in report.kernels] == ["forward_kernel"]
    data = page_data(report)
    details = [data["details"][event["detail"]] for event in data["events"]]
    assert [detail["kernels"] for detail in details] == [[0], [0]]
    assert f"models.py:{line_of('anchor')}" in data["kernels"][0]["text"]
    library = explain(Encoder(SelfAttention()), tokens())
    assert page_data(library)["kernels"] == []


def test_readers_of_kernels_are_independent() -> None:
    with printed.reading() as all_of_them:
        with printed.reading() as first:
            printed.note("a", "text")
            printed.note("a", "text")
        printed.note("b", "text")
    printed.note("c", "text")
    assert [kernel.name for kernel in first] == ["a"]
    assert [kernel.name for kernel in all_of_them] == ["a", "b"]


def test_kernels_that_are_launched_while_compiling_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inductor traces launches, where an operator is one of Triton's."""

    def compile_inner(gm: torch.fx.GraphModule, *_: Any) -> Any:
        printed.note("forward_kernel", "text")
        return gm.forward

    monkeypatch.setattr(backend, "_inner", lambda *_: compile_inner)
    for listings in (False, True):
        torch._dynamo.reset()
        found = Record()
        with listening(found.extend, listings=listings):
            torch.compile(lambda x: x + 1, backend="fuser")(torch.ones(2))
        assert [kernel.name for kernel in found.kernels] == ["forward_kernel"] * listings
        assert len(found.listings) == listings


def test_a_program_is_shown_as_maths() -> None:
    program = Program(
        '{"inputs":["s0"],"body":[["m","operator:mul",[{"$":"s0"},{"float":"0x1.0p-2"}],{}]],"out":"m"}'
    )
    assert maths(program.formula()) == "<i>s</i><sub>0</sub> · 0.25"


# -- the file


@torch.no_grad()
def test_thirty_layers_are_small(tmp_path: Path) -> None:
    report = explain(deep(), tokens())
    file = report.to_html(tmp_path / "folder" / "diff.html")
    assert file.stat().st_size < 1 << 20
    text = file.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    listed = json.dumps(report.to_json(listings=True))
    assert len(report.listings[0].before) == report.nodes
    assert listed.count('"after"') == 1
    assert '"listings"' not in json.dumps(report.to_json())


def test_what_the_user_wrote_cannot_end_the_script() -> None:
    evil = "</script><script>alert(1)</script><!--"
    place = Where("x", "/m.py", 1, evil, "layers.0")
    listing = Listing((Row(f"x = {evil}", place),), (Row(f"x = {evil}", place),))
    report = Report.of(Record(listings=[listing], kernels=[Printed("k", evil)], breaks=[evil]))
    text = page(report)
    assert text.count("</script>") == 2
    assert data_of(text)["places"] == [["/m.py", 1, evil]]


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_without_scripts_has_the_report_as_text() -> None:
    text = page(Report.of(record()))
    inside = text[text.index("<noscript>") : text.index("</noscript>")]
    assert "because   an intermediate value is used elsewhere, by `mean_5`" in inside


def test_a_notebook_gets_a_frame_of_its_own() -> None:
    html = Report.of(record())._repr_html_()
    assert html.startswith('<iframe title="fuser: graph diff" sandbox="allow-scripts" srcdoc="')
    assert html.count("<") == 2


def test_measured_times_are_kept() -> None:
    timed = Candidate("aten.flash", "the fastest", True, milliseconds=0.125)
    first = replace(record().rewritten[0], candidates=(timed,))
    data = page_data(Report.of(Record([first])))
    assert data["details"][0]["candidates"][0]["milliseconds"] == 0.125
