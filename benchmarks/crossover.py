"""Where `fuser.policy=auto` draws its line: every rewrite forced, at sizes around the crossover.

Each line of the table is one workload with `fuser.policy=always`, and what `auto` would have done.
A rewrite that `auto` makes must not lose; one that it leaves should not win by much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch._dynamo.utils import counters

from benchmarks.attention import SPELLINGS, Shape, build
from benchmarks.cases import Case, Workload
from benchmarks.devices import Device
from benchmarks.figures import Result
from benchmarks.providers import FUSER, INDUCTOR, choose
from benchmarks.records import Row, make_row, rows
from benchmarks.runner import Effort, measure
from benchmarks.targets import Check
from fuser.distinct import distinct
from fuser.outlets import rewrites

NAMES = ("additive_mask", "alibi", "t5_bias", "sliding_window", "softcap", "gqa_causal")
SIZES = ((2, 8, 128, 64), (1, 8, 256, 64), (1, 8, 512, 64), (2, 8, 256, 32), (1, 8, 512, 128))
LONG = ((1, 4, 2048, 64), (1, 4, 2048, 128))
QUICK = ((1, 2, 32, 16),)
EFFORT = Effort(min_rounds=15, max_rounds=60, budget_s=4.0)
LOSES, WINS = 0.97, 1.15


@dataclass(frozen=True)
class Decision:
    """One workload under `always`, and whether `auto` rewrites it."""

    result: Result
    auto: bool

    @property
    def ratio(self) -> float | None:
        """How many times faster than Inductor the forced rewrite is."""
        found = self.result.ratio(INDUCTOR, FUSER)
        return None if found is None else found[1]

    @property
    def verdict(self) -> str:
        """Empty where `auto` is right."""
        if self.ratio is None:
            return "failed"
        if self.auto and self.ratio < LOSES:
            return "taken, but slower"
        return "left, but faster" if not self.auto and self.ratio > WINS else ""


def workloads(quick: bool) -> Iterator[Workload]:
    """All spellings at all sizes."""
    for b, h, s, d in QUICK if quick else (*SIZES, *LONG):
        for name in NAMES:
            spelling = SPELLINGS[name]
            shape = Shape(b, h, h, s, d)

            def case(
                dtype: torch.dtype, device: torch.device, mode: str, name: str = name, shape=shape
            ) -> Case:
                return build(SPELLINGS[name], shape, dtype, device, mode)

            config = {"B": b, "H": h, "H_kv": spelling.h_kv or h, "D": d}
            modes = ("forward", "full")
            yield Workload("crossover", name, case, modes, ("S", s), config)


def decide(workload: Workload, mode: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `auto` rewrites a workload; nothing is compiled for that."""
    torch._dynamo.reset()
    counters["fuser"].clear()
    torch.manual_seed(0)
    case = workload.build(dtype, device, mode)
    (ours,) = choose([FUSER], {"fuser.inner": "eager"})
    case.step(ours.prepare(distinct(case.fn, "auto")))
    return bool(rewrites())


def judge(
    workload: Workload, mode: str, dtype: torch.dtype, device: Device, effort: Effort
) -> Decision:
    """Measures one workload with every rewrite forced."""
    auto = decide(workload, mode, dtype, device.place)
    contestants = choose([INDUCTOR, FUSER], {"fuser.policy": "always"})
    return Decision(measure(workload, mode, dtype, device, contestants, effort), auto)


def lines_of(decisions: Sequence[Decision], device: Device) -> list[Row]:
    """Rows of the CSV; `auto` is 1 where it rewrites."""
    found: list[Row] = []
    for d in decisions:
        work = d.result.workload
        config = {"dtype": str(d.result.dtype).removeprefix("torch."), **work.config}
        name = f"{work.family}.{work.name}"
        found += rows(d.result, device)
        found.append(
            make_row(name, FUSER, d.result.mode, "auto", work.x, float(d.auto), config, device)
        )
    return found


def checks(decisions: Sequence[Decision]) -> list[Check]:
    """No rewrite that `auto` makes loses to Inductor."""
    taken = [d.ratio for d in decisions if d.auto and d.ratio is not None]
    return [Check("taken by auto, smallest", min(taken), LOSES, least=True)] if taken else []


def show(decisions: Sequence[Decision], console: Console) -> None:
    """Prints the table."""
    table = Table(title="crossover: fuser.policy=always over Inductor, and what auto does")
    for header in ("workload", "B", "S", "H", "D", "dtype", "mode", "ratio", "auto", ""):
        table.add_column(header)
    for d in decisions:
        work = d.result.workload
        sizes = [
            str(work.config["B"]),
            str(work.x[1]),
            str(work.config["H"]),
            str(work.config["D"]),
        ]
        dtype = str(d.result.dtype).removeprefix("torch.")
        ratio = "-" if d.ratio is None else f"{d.ratio:.2f}x"
        auto = "takes" if d.auto else "leaves"
        table.add_row(work.name, *sizes, dtype, d.result.mode, ratio, auto, d.verdict)
    console.print(table)
