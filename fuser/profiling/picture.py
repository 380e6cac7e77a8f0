"""A profile as a roofline: operations a second over operations for each byte, both logarithmic."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .result import Cost, Profile

SIDES = (("ours", "as rewritten", "o"), ("inductor", "plain Inductor", "x"))


def draw(profile: Profile, path: str | Path) -> None:
    """Write the picture; its format is that of the file's name.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        plotting = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure: Any = plotting.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    points = [_point(row.ours) for row in profile.rows]
    intensities = [x for x, _ in filter(None, points)] or [1.0]
    for name, flops in profile.machine.flops.items():
        ridge = flops / profile.machine.bytes
        ends = min(*intensities, ridge) / 4, max(*intensities, ridge) * 4
        roof = [ends[0] * profile.machine.bytes, flops, flops]
        axes.plot([ends[0], ridge, ends[1]], roof, label=f"roof, {name}")
    for side, label, marker in SIDES[: 1 if profile.predicted else 2]:
        for number, (row, count) in enumerate(profile.folded()):
            point = _point(getattr(row, side))
            if point is not None:
                axes.plot(*point, marker, color=f"C{3 + number % 7}")
                text = f"{row.name}, {label}" + (f" ×{count}" if count > 1 else "")  # noqa: RUF001
                axes.annotate(
                    text, point, xytext=(6, 0), textcoords="offset points", fontsize=7, va="center"
                )
    axes.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="FLOP / s")
    state = "predicted" if profile.predicted else "measured"
    axes.set_title(f"{profile.machine.name}, {state}")
    axes.legend(fontsize=8)
    figure.savefig(path)


def _point(cost: Cost) -> tuple[float, float] | None:
    """Where a mark stands; at the roof where nothing was measured; None where it has no work."""
    ms = cost.ms or cost.limit_ms
    if not cost.flops or not cost.intensity or not ms:
        return None
    return cost.intensity, cost.flops / ms * 1e3
