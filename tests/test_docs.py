"""Every snippet of the README and of docs/ runs, in the order in which it is read."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from enum import Enum
from pathlib import Path

import pytest

from fuser.options import PREFIX, VARIABLE, Options
from fuser.registry import OWN_FAMILIES, patterns

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = (
    "make ", "pip ", "python -m examples.", "python -m benchmarks ", "python -m tests.",
)  # fmt: skip
"""Commands that CI runs by themselves, or that have tests of their own."""
MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + (q @ k.mT / 4 + torch.arange(x.shape[1])).softmax(-1) @ v


def tiny():
    return nn.Sequential(Block(), Block()), (torch.randn(2, 8, 16),)
"""
"""What a reader has."""
HAVING = """
import types
import fuser
import torch
from my.models import tiny

model, inputs = tiny()
my_library = types.SimpleNamespace(
    rms_norm=lambda x, w, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], None, eps) * w
)


def find(x, y):
    return torch.tanh(x) * y.sigmoid()


def replace(x, y):
    return y.sigmoid() * torch.tanh(x)


example_inputs = (torch.randn(2, 8), torch.randn(2, 8))
"""


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(path.read_text()) if kind == language]


def commands() -> list[str]:
    lines = [
        line.strip() for path in FILES for text in blocks(path, "sh") for line in text.split("\n")
    ]
    return [line for line in lines if line and not line.startswith((*ELSEWHERE, "#"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "models.py").write_text(MODELS)
    run = 'import torch\ntorch.compile(model, backend="fuser")(*inputs)\n'
    (tmp_path / "train.py").write_text(HAVING + run)
    return tmp_path


def run(command: list[str] | str, folder: Path) -> None:
    """In a process of its own, without generating code; so small a model pays for nothing."""
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env={**os.environ, **paths, "FUSER_INNER": "aot_eager", "FUSER_POLICY": "always"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path", [p for p in FILES if blocks(p, "python")], ids=lambda p: p.name)
def test_snippets(path: Path, folder: Path) -> None:
    script = folder / "snippets.py"
    script.write_text("\n".join([HAVING, *blocks(path, "python")]))
    run([sys.executable, str(script)], folder)


@pytest.mark.parametrize("command", commands())
def test_commands(command: str, folder: Path) -> None:
    run(command.replace("python ", f"{sys.executable} ", 1), folder)


def test_links_lead_somewhere() -> None:
    for path in FILES:
        text = path.read_text()
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        places = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
        places |= {*re.findall(r'<a name="(\w+)">', text)}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in places, f"{path.name}: {target}"
            elif "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


OPTIONS = ROOT / "docs" / "options.md"


def option_rows(path: Path) -> dict[str, list[str]]:
    """By option, the cells of its row: values, default and a description come last."""
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines()]
    named = {re.match(r"\[?`fuser\.(\w+)`", cells[0]): cells for cells in rows if len(cells) > 3}
    return {found[1]: cells for found, cells in named.items() if found}


@pytest.mark.parametrize("path", [ROOT / "README.md", OPTIONS], ids=lambda p: p.name)
def test_every_option_is_there_with_its_default(path: Path) -> None:
    rows, defaults = option_rows(path), Options()
    assert sorted(rows) == sorted(field.name for field in fields(Options))
    for name, (*_, values, default, _) in rows.items():
        if default == "all":
            assert getattr(defaults, name) == ()
            continue
        given = {PREFIX + name: ast.literal_eval(default.strip("`"))}
        assert Options.parse(given, {}) == (defaults, {}), f"the default of {name} is not {default}"
        kind = type(getattr(defaults, name))
        if issubclass(kind, Enum):
            assert {f'`"{member.value}"`' for member in kind} == set(values.split(", "))


def test_every_option_has_a_section_and_its_variable() -> None:
    text = OPTIONS.read_text()
    for name, cells in option_rows(OPTIONS).items():
        assert cells[1] == f"`{VARIABLE}{name.upper()}`"
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert "*When:*" in section
        assert "*Cost:*" in section


def test_every_pattern_is_on_the_page_of_options() -> None:
    own = [r.pattern.id for r in patterns() if r.pattern.id.startswith(OWN_FAMILIES)]
    assert [name for name in own if f"`{name}`" not in OPTIONS.read_text()] == []
