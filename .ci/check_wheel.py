"""Builds the wheel and checks that it holds the three folders as one package, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "fuser", "patterns", "lowering")
REQUIRED = (
    "fuser/__init__.py",
    "fuser/py.typed",
    "fuser/patterns/__init__.py",
    "fuser/lowering/__init__.py",
)
KINDS = (".py", ".html", ".css", ".js")


def build(folder: Path) -> Path:
    """Builds the wheel in `folder` from a copy, so that no earlier build leaks into it."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        original = ROOT / name
        if original.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(original, source / name, symlinks=True, ignore=skip)
        else:
            shutil.copy2(original, source / name)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=150)
    (wheel,) = folder.glob("*.whl")
    return wheel


def problems(names: list[str]) -> list[str]:
    """What is wrong with a wheel that holds these files."""
    found = [f"missing: {name}" for name in REQUIRED if name not in names]
    tops = {name.split("/", 1)[0] for name in names}
    found += [
        f"at top level: {top}"
        for top in sorted(tops)
        if top != "fuser" and not top.endswith(".dist-info")
    ]
    for folder in ("fuser", "patterns", "lowering"):
        prefix = "" if folder == "fuser" else "fuser/"
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in KINDS):
            name = prefix + path.relative_to(ROOT).as_posix()
            if name not in names and name not in REQUIRED:
                found.append(f"missing: {name} (has every folder above it an __init__.py?)")
    return found


def main() -> int:
    """Prints what is wrong, and returns how much."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        with ZipFile(wheel) as archive:
            names = archive.namelist()
    found = problems(names)
    print("\n".join(found) or f"{wheel.name}: {len(names)} files, as they should be")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
