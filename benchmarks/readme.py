"""The README's tables of results, from the committed CSVs: `python -m benchmarks.readme`."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.providers import FUSER, OURS
from benchmarks.records import RESULTS

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"
GPU_START, GPU_END = "<!-- gpu results -->", "<!-- /gpu results -->"
MODES = {"forward": "forward", "full": "and backward"}
LEFT = "°"

Lines = list[dict[str, str]]
Column = tuple[str, str, str]
"""Label of the machine's setting, dtype, mode."""


def render(results: Path = RESULTS) -> str:
    """The table and what it was measured on, as Markdown."""
    sources = [(path, _machine(path)) for path in sorted(results.glob("*-cpu*.csv"))]
    sources = [(p, m) for p, m in sources if p.name.startswith(("attention", "moe", "models"))]
    speeds: dict[str, dict[Column, str]] = {}
    for path, machine in sources:
        for name, column, cell in _cells(_longest(_read(path)), machine):
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


def render_gpu(results: Path = RESULTS) -> str:
    """A line for each workload on a GPU, and what it was measured on."""
    paths = [results / f"{family}-cuda.csv" for family in ("attention", "moe")]
    paths = [path for path in paths if path.exists()]
    table = [["bf16", "ms", "of the limit", "over Inductor", "over the best peer"]]
    table.append(["---", *("--:" for _ in table[0][1:])])
    figures: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for line in (line for path in paths for line in _read(path)):
        of = figures.setdefault((line["kernel_name"], line["mode"]), {})
        of.setdefault(line["provider"], {})[line["metric"]] = float(line["y_value_50"])
    for (name, mode), of in figures.items():
        ours = of[FUSER]
        peers = {n: f["time_ms"] for n, f in of.items() if n not in OURS and "time_ms" in f}
        best = min(peers, key=lambda n: peers[n])
        table.append([
            name.partition(".")[2] + (", and backward" if mode == "full" else ""),
            f"{ours['time_ms']:.2f}",
            f"{ours['share_of_limit']:.0%}",
            f"{ours['speedup_over_inductor']:.2f}x",
            f"{peers[best] / ours['time_ms']:.2f}x, {best}",
        ])  # fmt: skip
    lines = [f"| {' | '.join(row)} |" for row in table]
    machines = map(_machine, paths)
    notes = [f"One {m['gpu']}, {m['versions']}, revision {m['commit']}." for m in machines]
    return "\n".join([*lines, "", *dict.fromkeys(notes)])


def _read(path: Path) -> Lines:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _longest(lines: Lines) -> Lines:
    """Those of the most positions or tokens that a file has."""
    most = max(int(line["x_value"]) for line in lines)
    return [line for line in lines if int(line["x_value"]) == most]


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
    text = _replaced(README.read_text(), START, END, render())
    README.write_text(_replaced(text, GPU_START, GPU_END, render_gpu()))


def _replaced(text: str, start: str, end: str, table: str) -> str:
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


if __name__ == "__main__":
    main()
