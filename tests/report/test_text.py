"""The text and the JSON of a report, on a record made by hand."""

from __future__ import annotations

import json
import os
import re
from dataclasses import FrozenInstanceError, replace

import pytest
from rich.console import Console

from fuser.events import Failure, NearMiss, Record, Rewritten, Where
from fuser.report.fold import merged
from fuser.report.report import Report
from fuser.report.text import WIDTH, short
from tests import accepted

FILE = "/env/lib/python3.11/site-packages/transformers/models/tiny/modeling_tiny.py"


def place(layer: int, line: int, node: str, code: str) -> Where:
    return Where(node, FILE, line, code, f"model.layers.{layer}.self_attn")


def rewrite(layer: int, heads: str = "16 query, 4 key-value") -> Rewritten:
    suffix = f"_{layer}" if layer else ""
    scores = place(layer, 101, "matmul", "scores = torch.matmul(query, key.transpose(2, 3))")
    softmax = place(layer, 103, "softmax", "p = nn.functional.softmax(scores, dim=-1)")
    anchor = place(layer, 104, f"out{suffix}", "out = torch.matmul(p, value)")
    return Rewritten(
        pattern="attention.softmax",
        where=anchor,
        lowering="aten.flash, causal",
        why="the program is a scale and a bias, and nothing of size queries by keys is made: "
        "the mask is known while compiling",
        facts={"heads": heads, "program": "s0 * 0.25 + c0", "inputs": f"q0=query{suffix}"},
        removed=(
            f"matmul{suffix}: float32[1, 16, 512, 512] = matmul(query{suffix}, transpose{suffix})",
            f"add{suffix}: float32[1, 16, 512, 512] = add(matmul{suffix}, mask)",
            f"softmax{suffix}: float32[1, 16, 512, 512] = softmax(add{suffix}, dim=-1)",
            f"out{suffix}: float32[1, 16, 512, 64] = matmul(softmax{suffix}, value{suffix})",
        ),
        added=(
            f"fused{suffix}: float32[1, 16, 512, 64] = _scaled_dot_product_flash_attention("
            f"query{suffix}, key{suffix}, value{suffix}, 0.0, True, scale=0.25)",
        ),
        sources=(scores, scores, softmax, anchor),
    )


def miss(layer: int, sound: bool) -> NearMiss:
    if sound:
        where = place(layer, 104, f"out_{layer}", "out = torch.matmul(p, value)")
        reason = "aten: a bias needs a gradient; reference: is not faster than the inner backend"
        return NearMiss("attention.softmax", where, reason, sound=True, graph=1)
    where = place(layer, 103, f"p_{layer}", "p = nn.functional.softmax(scores, dim=-1)")
    reason = f"an intermediate value is used elsewhere, by `mean_{layer}`"
    return NearMiss("attention.softmax", where, reason, "pass output_attentions=False")


def record() -> Record:
    failed = Failure("mine.gelu", Where("gelu_3"), "ZeroDivisionError: division by zero", 1)
    return Record(
        rewritten=[rewrite(0), rewrite(1), rewrite(2, "8 query, 8 key-value"), rewrite(3)],
        near_misses=[miss(4, True), miss(5, False), miss(6, False)],
        failures=[failed],
        breaks=[f"{FILE}:88: `if x.sum() > 0:`: a branch depends on the value of a tensor"] * 2,
        graphs=2,
        nodes=345,
        seconds=0.0123,
    )


def test_text_is_the_golden_file() -> None:
    accepted.check("report.txt", str(Report.of(record())))


def test_a_composite_that_was_spelled_out_is_no_region() -> None:
    opened = replace(rewrite(0), pattern="attention.composite", count=0)
    double = replace(rewrite(1), count=2)
    report = Report.of(Record([opened, double])).expect(attention=1)
    assert "SPELLED OUT  attention.composite" in str(report)
    assert "fuser: 1 region rewritten (" in str(report)


def test_equal_layers_are_folded_and_others_are_not() -> None:
    text = str(Report.of(record()))
    assert re.findall(r"REWRITTEN .*", text) == [
        "REWRITTEN  attention.softmax ×3",  # noqa: RUF001
        "REWRITTEN  attention.softmax",
    ]
    assert "in        model.layers.{0-1,3}.self_attn" in text
    assert "DECLINED  attention.softmax ×2" in text  # noqa: RUF001
    assert "in        model.layers.{5-6}.self_attn" in text


@pytest.mark.parametrize(
    ("paths", "path"),
    [
        (["layers.0.a"], "layers.0.a"),
        (["layers.0.a", "layers.1.a", "layers.10.a"], "layers.{0-1,10}.a"),
        (["down.0.attn.1", "down.1.attn.1"], "down.{0-1}.attn.1"),
        (["block_2", "block_10"], "{block_10,block_2}"),
        ([""], ""),
    ],
)
def test_paths_are_merged(paths: list[str], path: str) -> None:
    assert merged(paths) == path


def test_diff_has_removed_added_and_the_users_lines_in_order() -> None:
    text = str(Report.of(Record([rewrite(0)])))
    diff = text[text.index("@@") : text.index("\n\n")].splitlines()
    assert [" ".join(line.split()[:2]) for line in diff] == [
        "@@ graph",
        "# modeling_tiny.py:101",
        "- matmul:",
        "- add:",
        "# modeling_tiny.py:103",
        "- softmax:",
        "# modeling_tiny.py:104",
        "- out:",
        "+ fused:",
        "scale=0.25)",
    ]


def test_lines_fit_and_nothing_is_coloured() -> None:
    text = str(Report.of(record()))
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    assert "\x1b" not in text


def test_colour_changes_nothing_but_the_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = Report.of(record())
    colored = report.to_text(color=True)
    assert "\x1b[31m- " in colored
    assert "\x1b[32m+ " in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == report.to_text()


def test_rich_prints_a_report() -> None:
    console = Console(record=True, width=WIDTH, quiet=False, file=open(os.devnull, "w"))
    with console.file:
        console.print(Report.of(record()))
        assert "REWRITTEN  attention.softmax" in console.export_text()


def test_nothing_captured() -> None:
    assert str(Report()).startswith("No graph reached the backend")


def test_report_is_frozen() -> None:
    data = record()
    report = Report.of(data)
    data.rewritten.clear()
    assert report.count("attention") == 4
    with pytest.raises(FrozenInstanceError):
        report.graphs = 1  # type: ignore[misc]


def test_json_follows_its_schema() -> None:
    data = json.loads(json.dumps(Report.of(record()).to_json()))
    assert (data["schema"], data["graphs"], data["nodes"]) == (1, 2, 345)
    assert data["milliseconds"] == 12.3
    first = data["rewritten"][0]
    assert set(first) == {
        *("pattern", "where", "lowering", "why", "facts", "removed", "added", "count", "graph"),
        *("body", "candidates", "dropped", "origin"),
    }
    assert set(first["where"]) == {"node", "file", "line", "code", "module"}
    assert [r["where"]["line"] for r in first["removed"]] == [101, 101, 103, 104]
    assert [m["sound"] for m in data["near_misses"]] == [True, False, False]
    assert data["near_misses"][1]["hint"] == "pass output_attentions=False"
    assert data["failures"][0]["error"].startswith("ZeroDivisionError")
    assert len(data["breaks"]) == 2


def test_every_path_of_a_text_is_short() -> None:
    """That of the user's line, and those which Dynamo's reason speaks of."""
    installed = "/usr/lib/python3/site-packages/torch/_dynamo/decorators.py"
    text = f"{os.getcwd()}/model.py:3: `f(x)`: `disable` in file `{installed}` is not traced"
    place = "model.py:3: `f(x)`: `disable` in file `torch/_dynamo/decorators.py` is not traced"
    assert short(text) == place
    assert short(installed) == "torch/_dynamo/decorators.py"
    here = os.path.join(
        os.getcwd(), ".venv/lib/python3.11/site-packages/torch/_dynamo/decorators.py"
    )
    assert short(here) == short(installed)
    assert short(f"{installed}:4: `a`: in `{installed}`").count("torch/_dynamo/decorators.py") == 2
    assert short("/home/me/model.py") == "/home/me/model.py"
