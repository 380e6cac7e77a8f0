"""The distribution: entry points, what an import brings in, the two links, the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str) -> str:
    """What a fresh interpreter in the checkout prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("torch_dynamo_backends", "fuser", "fuser.backend:fuser"),
        ("console_scripts", "torch-fuser", "fuser.__main__:main"),
    ],
)
def test_entry_point_is_registered_and_loads(group: str, name: str, value: str) -> None:
    try:
        entries = distribution("torch-fuser").entry_points
    except PackageNotFoundError:
        pytest.skip("run from a checkout: torch-fuser is not installed")
    (entry,) = entries.select(group=group, name=name)
    assert entry.value == value
    assert callable(entry.load())


def test_import_brings_no_triton() -> None:
    assert run_python("import sys, fuser; print('triton' in sys.modules)") == "False"


def test_backend_works_without_triton_and_without_an_import_of_fuser() -> None:
    try:
        distribution("torch-fuser")
    except PackageNotFoundError:
        pytest.skip("run from a checkout: torch-fuser is not installed")
    code = """
import sys
sys.modules["triton"] = None
import torch
q = torch.randn(1, 2, 8, 4)
f = lambda q: (q @ q.mT).softmax(-1) @ q
g = torch.compile(f, backend="fuser", options={"fuser.inner": "eager", "fuser.strict": True})
torch.testing.assert_close(g(q), f(q))
print("same")
"""
    assert run_python(code) == "same"


@pytest.mark.parametrize("name", ["patterns", "lowering"])
def test_folder_is_one_package_through_a_relative_link(name: str) -> None:
    link = ROOT / "fuser" / name
    assert link.is_symlink(), "checked out without links (git's core.symlinks)"
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name
    assert (link / "__init__.py").is_file()


def test_linked_folders_never_import_their_top_level_names() -> None:
    banned = re.compile(r"^\s*(?:from|import) (?:patterns|lowering)\b", re.MULTILINE)
    files = [f for name in ("patterns", "lowering") for f in (ROOT / name).rglob("*.py")]
    assert [f for f in files if banned.search(f.read_text())] == []


def test_wheel_holds_the_package_and_nothing_else() -> None:
    pytest.importorskip("setuptools", minversion="77.0.3")
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_wheel.py")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
