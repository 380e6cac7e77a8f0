"""`python -m fuser`: output, exit codes, and what it says when the command is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fuser.__main__ import main
from fuser.report import doctor

from .models import HERE, line_of

FILE = str(HERE)
"""Models by path; by module is checked in a fresh interpreter."""


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def test_explain_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{FILE}:tiny"]) == 0
    out = capsys.readouterr().out
    assert "REWRITTEN  attention.softmax" in out
    assert "DECLINED  attention.softmax" in out
    assert f"models.py:{line_of('softmax')}" in out
    assert "fuser: 1 region rewritten, 1 declined" in out


def test_explain_json_takes_inputs_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{FILE}:tiny_by_name", "--json", "--policy", "always"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    assert [r["pattern"] for r in data["rewritten"]] == ["attention.softmax"]


def test_expectations_set_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{FILE}:tiny", "--expect", "attention=1", "--expect", "moe=0"]) == 0
    assert main(["explain", f"{FILE}:tiny", "--expect", "attention=2"]) == 1
    assert "expected attention=2, but 1 was rewritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "models"], "write module:callable"),
        (["explain", "no_such_module:tiny"], "cannot import 'no_such_module'"),
        (["explain", "no_such_file.py:tiny"], "there is no file no_such_file.py"),
        (["explain", f"{FILE}:tyni"], "has no 'tyni'; it has: "),
        (["explain", f"{FILE}:WIDTH"], "is not a callable: int"),
        (["explain", f"{FILE}:not_a_pair"], "must return (model, inputs), but returned int"),
        (["explain", f"{FILE}:raises"], "raised ValueError: the weights are missing"),
        (["explain", f"{FILE}:wrong_inputs"], "on its inputs"),
        (["explain", f"{FILE}:tiny", "--expect", "attention"], "is not FAMILY=N"),
        (["explain", f"{FILE}:tiny", "--policy", "sometimes"], "invalid choice: 'sometimes'"),
        (["explian"], "invalid choice: 'explian'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_commands_exit_with_2_and_say_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_doctor_names_versions_and_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    out = capsys.readouterr().out
    assert code == (0 if "MISSING" not in out else 1)
    assert torch.__version__ in out
    for what in ("triton", "device", "inductor cache", "Inductor on CPU", "Triton kernels"):
        assert what in out


def test_doctor_misses_the_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_compiler", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    (check,) = [c for c in data["checks"] if c["name"] == "Inductor on CPU"]
    assert not check["works"]
    assert "install g++" in check["detail"]


def test_module_path_in_a_fresh_interpreter() -> None:
    root = HERE.parents[2]
    command = [sys.executable, "-m", "fuser", "explain", "tests.report.models:tiny"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"at        tests/report/models.py:{line_of('anchor')}" in done.stdout
    assert "\x1b" not in done.stdout


def test_doctor_sees_a_variable_that_no_compile_would_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSER_POLICY", "bogus")
    assert main(["doctor"]) == 1
    assert "'FUSER_POLICY' is 'bogus'" in capsys.readouterr().out


def test_json_alone_is_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text(
        "from tests.report.models import tiny\ndef make():\n    print('hello')\n    return tiny()\n"
    )
    assert main(["explain", f"{tmp_path / 'loud.py'}:make", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["graphs"] == 1
    assert "hello" in out.err


def test_a_reader_that_stops_early() -> None:
    command = f"{sys.executable} -m fuser explain tests.report.models:tiny | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=HERE.parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("REWRITTEN")
    assert done.stderr == ""


def test_an_expectation_of_what_is_no_family(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", "tests.report.models:tiny", "--expect", "attenion=0"]
    assert main(command) == 2
    assert "no pattern or family is called 'attenion'" in capsys.readouterr().err
