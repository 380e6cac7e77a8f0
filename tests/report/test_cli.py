"""`python -m fuser`: output, exit codes, and what it says when the command is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch

from fuser import kernels
from fuser.__main__ import main
from fuser.lowering.attention.generated.catalogue import builtin
from fuser.lowering.triton.aot import Failure, Resources
from fuser.lowering.triton.devices import Occupancy
from fuser.lowering.triton.kernel import Kernel
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


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    text = "import torch\n\ndef f(x):\n    return x.softmax(-1) @ x  # \u00e9\n\n"
    text += "def build():\n    return f, (torch.randn(4, 4),)\n"
    (tmp_path / "odd.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "fuser", "explain", f"{tmp_path / 'odd.py'}:build"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout


def test_explain_json_takes_inputs_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{FILE}:tiny_by_name", "--json", "--policy", "always"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    assert [r["pattern"] for r in data["rewritten"]] == ["attention.softmax"]


def test_explain_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "diff.html"
    assert main(["explain", f"{FILE}:tiny", "--html", str(file)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("fuser: 1 region rewritten, 1 declined")
    assert shown.err.endswith(f": {file}\n")
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["explain", f"{FILE}:tiny", "--html", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graphs"] == 1
    assert main(["explain", f"{FILE}:tiny", "--html", str(tmp_path)]) == 2
    assert "cannot write the page to" in capsys.readouterr().err


def test_inputs_by_position_and_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", f"{FILE}:tiny_both_ways", "--policy", "always"]
    assert main([*command, "--expect", "attention=1"]) == 0
    assert "program   (s0 * 0.5)" in capsys.readouterr().out


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
        (
            ["explain", f"{FILE}:not_a_pair"],
            "must return (model, inputs) or (model, inputs, keywords), but returned int",
        ),
        (["explain", f"{FILE}:raises"], "raised ValueError: the weights are missing"),
        (["explain", f"{FILE}:wrong_inputs"], "on its inputs"),
        (["explain", f"{FILE}:tiny", "--expect", "attention"], "is not FAMILY=N"),
        (["explain", f"{FILE}:tiny", "--policy", "sometimes"], "invalid choice: 'sometimes'"),
        (["kernels", "--arch", "sm90"], "unknown architecture 'sm90'. Did you mean 'sm_90'?"),
        (["kernels", "--jobs", "0"], "'0' is not a number of 1 or more"),
        (
            ["kernels", "--filter", "nothing of the kind"],
            "no kernel is called 'nothing of the kind'",
        ),
        (["kernels", "no_such_file.jsonl"], "No such file or directory: 'no_such_file.jsonl'"),
        (["kernels", FILE], "models.py, line 1, is no kernel's entry: JSONDecodeError"),
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


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("FUSER_POLICY", 1, "'FUSER_POLICY' is 'bogus'"),
        ("FUSER_POLCY", 0, "did you mean FUSER_POLICY?"),
    ],
)
def test_doctor_sees_a_variable_that_no_compile_would_take(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
    told: str,
) -> None:
    monkeypatch.setenv(name, "bogus")
    assert main(["doctor"]) == code
    assert told in capsys.readouterr().out


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


TWICE = """
import triton
import triton.language as tl


@triton.jit
def {name}(x, out, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i) * 2)
"""


@dataclass(frozen=True)
class Entry:
    """Of a catalogue; its kernel has text for `archs` only."""

    label: str
    name: str = "twice"
    archs: tuple[str, ...] = ("sm_80", "gfx942")

    def kernels(self, arch: str) -> list[Kernel]:
        if arch not in self.archs:
            raise NotImplementedError(f"nothing for {arch} yet")
        signature = (("x", "*fp32"), ("out", "*fp32"))
        text = TWICE.format(name=self.name)
        return [Kernel(self.name, text, signature, (("SIZE", 1024),))]


def test_kernels_as_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    entries = [Entry("doubling"), Entry("doubling again"), Entry("doubling", "other")]
    monkeypatch.setattr(kernels, "catalogue", lambda _: iter(entries))
    folder = tmp_path / "sources"
    command = ["kernels", "--arch", "sm_80", "--arch", "gfx942", "--source", str(folder)]
    assert main([*command, "--filter", "twi*"]) == 0
    shown = capsys.readouterr()
    heads, *rows, _, summary = shown.out.splitlines()
    assert heads.split()[:3] == ["kernel", "for", "arch"]
    assert [row.split()[5] for row in rows] == ["sm_80", "gfx942"]
    assert all(row.startswith("twice   doubling (and 1 more)") for row in rows)
    assert all(row.endswith("100%  warps") for row in rows)
    assert summary == "2 kernels: 0 with spills, 0 too large for the device, 0 failures"
    assert "2 of 2 kernels" in shown.err
    (source,) = folder.iterdir()
    assert source.read_text() == TWICE.format(name="twice")


def test_kernels_as_json_and_one_that_has_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "catalogue", lambda _: iter([Entry("doubling")]))
    assert main(["kernels", "--arch", "sm_80", "--arch", "sm_90", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    assert data["summary"] == {"kernels": 2, "spills": 0, "too_large": 0, "failures": 1}
    without, found = data["kernels"]
    assert (without["kernel"], without["arch"]) == ("(no text)", "sm_90")
    assert without["error"] == "NotImplementedError: nothing for sm_90 yet."
    assert (found["kernel"], found["labels"], found["error"]) == ("twice", ["doubling"], None)
    assert found["registers"] < 64
    assert found["occupancy"] == {"blocks": 16, "warps": 64, "share": 1.0, "limit": "warps"}


def _row(*, spills: int = 0, blocks: int = 1, known: bool = False) -> kernels.Row:
    held = Occupancy(blocks, 4 * blocks, blocks / 16, "shared memory")
    found = Resources("k", "sm_90", 4, 255, spills, spills, 300 << 10, held)
    return kernels.Row("k", ("label",), "sm_90", found, may_spill=known)


@pytest.mark.parametrize(
    ("row", "passes", "strictly"),
    [
        (_row(), True, True),
        (_row(spills=8), True, False),
        (_row(spills=8, known=True), True, True),
        (_row(blocks=0), False, False),
        (kernels.Row("k", ("label",), "sm_90", Failure("k", "sm_90", "why\nnot")), False, False),
    ],
)
def test_what_passes(row: kernels.Row, passes: bool, strictly: bool) -> None:
    survey = kernels.Survey((_row(), row))
    assert (survey.passes(), survey.passes(strict=True)) == (passes, strictly)
    assert ("too large\n" in str(survey)) == row.too_large
    assert ("label) does not compile:\n    why\n    not" in str(survey)) == row.failed


def test_kernels_of_a_catalogue_where_triton_interprets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def small() -> Iterator[str]:
        return (e.to_json() for e in builtin() if e.stage == "combine")

    path = tmp_path / "catalogue.jsonl"
    path.write_text("\n".join(islice(small(), 1)) + "\n\n")
    assert main(["kernels", "--arch", "sm_90", str(path)]) == 0
    assert "1 kernel: 0 with spills" in capsys.readouterr().out
