"""The README's table of results, written from the committed CSVs: `python -m benchmarks.readme`."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.providers import FUSER
from benchmarks.records import RESULTS

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"
MODES = {"forward": "forward", "full": "and backward"}
LEFT = "°"

Lines = list[dict[str, str]]
Column = tuple[str, str, str]
"""Label of the machine's setting, dtype, mode."""


def render(results: Path = RESULTS) -> str:
    """The table and what it was measured on, as Markdown."""
    sources = [(path, _machine(path)) for path in sorted(results.glob("*-cpu*.csv"))]
    sources = [(p, m) for p, m in sources if p.name.startswith(("attention", "models"))]
    speeds: dict[str, dict[Column, str]] = {}
    for path, machine in sources:
        for name, column, cell in _cells(_read(path), machine):
            speeds.setdefault(name, {})[column] = cell
    columns = sorted({c for cells in speeds.values() for c in cells}, key=_order)
    table = [
        [
            "fuser over Inductor",
            *(f"{label}{dtype} {MODES[mode]}" for label, dtype, mode in columns),
        ],
        ["---", *("--:" for _ in columns)],
        *([name, *(cells.get(c, "") for c in columns)] for name, cells in speeds.items()),
    ]
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", _notes(machine for _, machine in sources)])


def _read(path: Path) -> Lines:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _machine(path: Path) -> Mapping[str, object]:
    return json.loads(path.with_suffix(".machine.json").read_text())


def _cells(lines: Lines, machine: Mapping[str, object]) -> Iterable[tuple[str, Column, str]]:
    """Name, column and text of every speed-up; `LEFT` where nothing was rewritten."""
    ours = [line for line in lines if line["provider"] == FUSER]
    keys = [(li["kernel_name"], json.loads(li["extra_config"])["dtype"], li["mode"]) for li in ours]
    rewritten = {k for k, li in zip(keys, ours, strict=True) if li["metric"] == "rewrites"}
    for key, line in zip(keys, ours, strict=True):
        if line["metric"] != "speedup_over_inductor":
            continue
        name, dtype, mode = key
        label = "emulated " if dtype == "bfloat16" and not machine["multiplies_bfloat16"] else ""
        mark = "" if key in rewritten else f" {LEFT}"
        yield name, (label, dtype, mode), f"{float(line['y_value_50']):.2f}x{mark}"


def _order(column: Column) -> tuple[bool, bool, bool]:
    label, dtype, mode = column
    return bool(label), dtype != "float32", mode != "forward"


def _notes(machines: Iterable[Mapping[str, object]]) -> str:
    first = next(iter(machines))
    text = (
        f"Medians of paired rounds on {first['cores']} cores of {first['cpu']}, "
        f"{first['versions']}. {LEFT}: nothing was rewritten, `fuser.policy=auto` leaves it to "
        'Inductor. "Emulated": oneDNN kept from the bf16 instructions of this CPU '
        "(`ONEDNN_MAX_CPU_ISA=AVX2`), as on CPUs that have none. Sizes, errors, memory and compile "
        "times are in `benchmarks/results/`."
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Replaces what stands between the marks in the README."""
    text = README.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{START}\n{render()}\n{END}{after}")


if __name__ == "__main__":
    main()
