"""`python -m fuser verify`: its table, its JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuser.__main__ import main
from fuser.errors import FuserWarning
from tests.report.models import HERE

from .broken import BROKEN

FILE = str(HERE)
ATTENTION = next(broken for broken in BROKEN if broken.family == "attention")


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSER_INNER", "eager")


def test_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"{FILE}:tiny"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("VERIFIED  attention.softmax\n")
    assert "output 0" in out
    assert "gradient of" not in out
    assert "1 declined, 1 verified" in out.splitlines()[-1]


def test_training_compares_gradients_and_json_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"{FILE}:tiny", "--training", "--json", "--policy", "always"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    names = [c["name"] for c in data["verdicts"][0]["compared"]]
    assert names[0] == "output 0"
    assert len(names) > 1


def test_what_is_wrong_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSER_LOWERING", "reference")
    ATTENTION.apply(monkeypatch)
    file = tmp_path / "made.py"
    file.write_text(
        "from tests.verify.test_command import ATTENTION\n"
        "def make(): return ATTENTION.model, ATTENTION.inputs()\n"
    )
    with pytest.warns(FuserWarning, match="is wrong"):
        assert main(["verify", f"{file}:make", "--policy", "always"]) == 1
    out = capsys.readouterr().out
    assert "TAKEN BACK  attention." in out
    assert "script" in out
    assert main(["verify", f"{file}:make", "--policy", "always", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["ok"], data["verdicts"][0]["outcome"]) == (False, "wrong")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{FILE}:wrong_inputs"], "on its inputs"),
        ([f"{FILE}:not_a_pair"], "must return (model, inputs)"),
        ([f"{FILE}:tiny", "--policy", "sometimes"], "invalid choice: 'sometimes'"),
    ],
)
def test_wrong_commands(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
