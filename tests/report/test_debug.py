"""`fuser.debug`, the option of the same name, and the files and log lines that they make."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fuser.errors import FuserWarning, InvalidOptionError
from fuser.events import NearMiss, Record, Where
from fuser.report.debug import debug, write

from .models import Encoder, SelfAttention, line_of, tokens

OPTIONS = {"fuser.inner": "eager"}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@torch.no_grad()
def test_compiles_in_the_block_write_reports_and_others_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "reports"
    model = torch.compile(Encoder(SelfAttention()), backend="fuser", options=OPTIONS)
    with debug(folder):
        model(tokens())
        model(tokens())
    model(tokens(3))
    assert sorted(p.name for p in folder.iterdir()) == [
        "graph_0.html",
        "graph_0.json",
        "graph_0.txt",
    ]
    text = (folder / "graph_0.txt").read_text(encoding="utf-8")
    assert "REWRITTEN  attention.softmax" in text
    assert f"models.py:{line_of('anchor')}" in text
    data = json.loads((folder / "graph_0.json").read_text(encoding="utf-8"))
    assert [r["where"]["module"] for r in data["rewritten"]] == ["layers.0"]
    page = (folder / "graph_0.html").read_text(encoding="utf-8")
    assert "p: float32[2, 4, 64, 64]" in page
    assert "scaled_dot_product_attention: float32" in page


@torch.no_grad()
def test_the_option_writes_one_report_a_graph(tmp_path: Path) -> None:
    options = {**OPTIONS, "fuser.debug": str(tmp_path)}
    model = Encoder(SelfAttention(), SelfAttention(broken=True))
    torch.compile(model, backend="fuser", options=options)(tokens())
    assert len(list(tmp_path.glob("graph_*.txt"))) == 3


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "graph_0.txt").write_text("mine")
    write(Record(graphs=1), str(tmp_path))
    write(Record(graphs=1), str(tmp_path))
    assert (tmp_path / "graph_0.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["graph_1.json", "graph_2.json"]


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(FuserWarning, match="could not write its report"):
        write(Record(graphs=1), str(tmp_path / "file" / "reports"))


def test_the_log_is_used_where_it_listens(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="fuser"):
        write(Record(graphs=1), "1")
    (entry,) = caplog.records
    assert (entry.name, entry.levelname) == ("fuser", "INFO")
    assert "fuser: 0 regions rewritten" in entry.getMessage()
    assert capsys.readouterr().err == ""


def test_standard_error_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fuser")
    with debug():
        torch.compile(lambda x: x + 1, backend="fuser", options=OPTIONS)(torch.ones(2))
    assert "fuser: 0 regions rewritten (1 graph, " in capsys.readouterr().err
    assert logger.handlers == []
    assert logger.level == logging.NOTSET


@pytest.mark.parametrize("off", [False, "0", "false", "", 0])
def test_a_target_that_means_nowhere(off: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with debug(off), torch.no_grad():
        torch.compile(Encoder(SelfAttention()), backend="fuser", options=OPTIONS)(tokens())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [None, 2.5, ["reports"]])
def test_a_target_that_is_none(bad: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"fuser\.debug"), debug(bad):
        pass


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Linux lets a file be called by any bytes, and Python escapes those that are no UTF-8."""
    where = Where("softmax", "odd\udc80.py", 3, "x.softmax(-1)")
    write(Record(near_misses=[NearMiss("mine.softmax", where, "it is odd")]), str(tmp_path))
    assert "odd\\udc80.py" in (tmp_path / "graph_0.txt").read_text()
    assert "odd\\udc80.py" in (tmp_path / "graph_0.html").read_text()
