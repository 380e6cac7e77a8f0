"""The script that a mismatch leaves behind shows it in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import register_backend
from torch.fx import GraphModule

import fuser
from fuser.errors import FuserWarning
from fuser.events import Verdict
from fuser.verification import minify

from .broken import BROKEN, Broken, made, rms

OPTIONS = {"fuser.inner": "eager", "fuser.policy": "always", "fuser.lowering": "reference"}
ROOT = Path(__file__).parents[2]


def found(fn: Any, inputs: Any, **options: Any) -> Verdict:
    with pytest.warns(FuserWarning, match="to see it"):
        found = fuser.verify(fn, *inputs, options={**OPTIONS, **options})
    (verdict,) = found.wrong
    return verdict


def launched(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def find(x: Tensor, indices: Tensor) -> Tensor:
    return torch.exp(x)[indices] * 2.0


def wrong(x: Tensor, indices: Tensor) -> Tensor:
    return (x * 1.01).exp()[indices] * 2.0


def test_it_fails_while_the_replacement_is_wrong(tmp_path: Path) -> None:
    """Indices are no random numbers: they lie beside the script."""
    x, indices = torch.randn(8, 4, requires_grad=True), torch.tensor([1, 0, 3])
    with fuser.register_pattern(find, wrong, (x.detach(), indices), id="mine.gathered"):
        script = found(find, (x, indices)).script
    assert Path(script).parent == tmp_path / "cache" / "fuser" / "mismatches"
    assert Path(script).with_suffix(".pt").is_file()
    shown = launched(script)
    assert shown.returncode == 1, shown.stderr
    assert "output 0 at [" in shown.stdout
    assert "gradient of" in shown.stdout
    text = Path(script).read_text()
    Path(script).write_text(text.replace("* 1.01", "* 1.0"))
    mended = launched(script)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "the replacement is right" in mended.stdout


@pytest.mark.parametrize("broken", [BROKEN[0], BROKEN[3]], ids=lambda b: b.id)
def test_it_passes_once_the_kernel_is_right(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process nothing is broken."""
    broken.apply(monkeypatch)
    verdict = found(broken.model, broken.inputs())
    shown = launched(verdict.script)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    lines = Path(verdict.script).read_text().splitlines()
    imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert {name.partition(".")[0] for name in imports} <= {"torch", "fuser", "math"}


def test_sizes_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = next(b for b in BROKEN if b.family == "norm")
    broken.apply(monkeypatch)
    x, w = torch.randn(4, 32, 64), torch.rand(64)
    with torch.no_grad():
        text = Path(found(broken.model, (x, w)).script).read_text()
    shapes = [line.split("(")[2].split(")")[0] for line in text.splitlines() if "strided" in line]
    numbers = [int(n) for shape in shapes for n in shape.split(",") if n.strip()]
    assert max(numbers) <= 2
    assert "manual_seed(0)" in text


def test_a_mismatch_at_some_sizes_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are longer than a tile, say."""
    broken = next(b for b in BROKEN if b.family == "norm")
    usual = getattr(broken.module, broken.name)

    def long(spec: Any, x: Tensor) -> Tensor:
        return usual(spec, x) * (1.01 if x.shape[-1] > 20 else 1.0)

    monkeypatch.setattr(broken.module, broken.name, long)
    with torch.no_grad():
        text = Path(found(broken.model, (torch.randn(4, 80), torch.rand(80))).script).read_text()
    assert "(40,)" in text


def test_it_lies_with_the_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[0].apply(monkeypatch)
    options = {**BROKEN[0].options, "fuser.verify": True, "fuser.debug": str(tmp_path / "reports")}
    with pytest.warns(FuserWarning, match="is wrong"), torch.no_grad():
        torch.compile(BROKEN[0].model, backend="fuser", options=options)(*BROKEN[0].inputs())
    names = sorted(path.name for path in (tmp_path / "reports").iterdir())
    reproduction = ["attention_softmax_0.pt", "attention_softmax_0.py"]
    assert names == [*reproduction, *(f"graph_0.{kind}" for kind in ("html", "json", "txt"))]
    assert "TAKEN BACK" in (tmp_path / "reports" / "graph_0.txt").read_text()


def test_no_script_costs_the_script_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[0].apply(monkeypatch)

    def fails(*_: Any) -> Any:
        raise OSError("no room")

    monkeypatch.setattr("fuser.verification.regions.write", fails)
    with pytest.warns(FuserWarning, match="is wrong"):
        (verdict,) = fuser.verify(BROKEN[0].model, *BROKEN[0].inputs(), options=OPTIONS).wrong
    assert verdict.script == ""


def test_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minify, "SECONDS", 0.0)
    broken = next(b for b in BROKEN if b.family == "norm")
    broken.apply(monkeypatch)
    assert "(2, 6, 16)" in Path(found(broken.model, broken.inputs()).script).read_text()


@register_backend(name="fuser_tests_doubles")
def _doubles(gm: GraphModule, _: Sequence[Any], **__: Any) -> Callable[..., Any]:
    """A compiler that is wrong."""
    return lambda *xs: [2 * y for y in gm(*xs)]


def test_what_is_wrong_as_it_is_compiled_is_compiled_in_the_script() -> None:
    inputs = made((2, 6, 16), (16,))()
    text = Path(found(rms, inputs, **{"fuser.inner": "fuser_tests_doubles"}).script).read_text()
    assert "'fuser_tests_doubles'" in text
    assert "torch.load(" in text


def test_a_replacement_that_raises() -> None:
    """It is taken back as one that is wrong is, and the model goes on."""

    x, indices = torch.randn(8, 4), torch.tensor([1, 0, 3])
    with fuser.register_pattern(find, fails, (x, indices), id="mine.fails"):
        verdict = found(find, (x, indices))
    assert verdict.reason.startswith("it raises _LinAlgError: linalg.cholesky")
    shown = launched(verdict.script)
    assert shown.returncode == 1, shown.stderr
    assert "the replacement raises _LinAlgError" in shown.stdout


def fails(x: Tensor, indices: Tensor) -> Tensor:
    """No shape or dtype tells."""
    return torch.exp(x)[indices] * 2.0 + torch.linalg.cholesky(-torch.eye(4))[0] * 0.0
