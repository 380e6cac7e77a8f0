"""Texts of kernels, and kernels compiled for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import pytest

from fuser.lowering.triton.aot import Failure, Resources
from fuser.lowering.triton.pool import compile_all

Sample: TypeAlias = Mapping[tuple[str, str], Sequence[str]]
"""Architectures by label and stage of an entry."""
Compiled: TypeAlias = dict[tuple[str, str, str], "Resources | Failure"]
"""What they take, by label, stage and architecture."""


def noted(monkeypatch: pytest.MonkeyPatch, problem: ModuleType) -> list[str]:
    """Texts of the kernels that a module launches by its `run` from now on."""
    found: list[str] = []
    run = problem.run

    def noting(kernel: Any, *rest: Any, **more: Any) -> None:
        found.append(kernel.source)
        run(kernel, *rest, **more)

    monkeypatch.setattr(problem, "run", noting)
    return found


def texts(entries: Iterable[Any]) -> str:
    """The modules of entries, each under the name of its stage."""
    return "\n\n".join(f"# -- {e.stage}\n\n{e.kernels('sm_90')[0].source}" for e in entries)


def compiled_sample(sample: Sample, entries: Iterable[Any]) -> Compiled:
    """Compiles some kernels of a catalogue."""
    known = {(e.label, e.stage): e for e in entries}
    names = [(*name, arch) for name, archs in sample.items() for arch in archs]
    kernels = [(known[n[:2]].kernels(n[2])[0], n[2]) for n in names]
    return dict(zip(names, compile_all(kernels, 2), strict=True))


def assert_room(compiled: Compiled, arch: str) -> None:
    """Those for an architecture spill nothing, and fit it."""
    found = {name: taken for name, taken in compiled.items() if name[2] == arch}
    assert found
    for name, taken in found.items():
        assert isinstance(taken, Resources), taken.message
        assert (taken.spills, taken.launchable) == (0, True), (name, taken)
