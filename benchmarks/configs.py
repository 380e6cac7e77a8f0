"""How generated kernels are best cut: each stage of the workloads on a GPU, in many configs.

    python -m benchmarks.configs [--only NAME ...] [--jobs N] [--csv FILE]

What the rule of `lowering/attention/generated/config.py` is fitted to. Kernels are compiled by many
processes at first, which run each once; then one process times all of them in turn.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import attention_gpu, ports
from benchmarks.providers import fuser_backend
from fuser import measure
from fuser.lowering.attention.generated import operator, tune
from fuser.lowering.attention.generated.config import TOGETHER, Config
from fuser.lowering.attention.generated.problem import Problem
from fuser.torch_private import kernels_launched

CUTS: dict[str, tuple[Config, ...]] = {
    "forward": (
        Config(128, 128, 8, 2), Config(128, 128, 8, 3), Config(128, 64, 8, 2),
        Config(128, 64, 8, 3), Config(128, 64, 8, 4), Config(128, 64, 4, 2), Config(128, 64, 4, 3),
        Config(128, 32, 8, 3), Config(64, 128, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 3),
        Config(64, 64, 4, 4), Config(64, 32, 4, 3), Config(128, 128, 4, 2), Config(128, 256, 8, 2),
    ),
    "rows": (
        Config(128, 128, 8, 1), Config(128, 128, 8, 2), Config(128, 64, 8, 1),
        Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(128, 32, 8, 2), Config(128, 64, 4, 2),
        Config(64, 128, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 2), Config(64, 64, 4, 3),
        Config(64, 32, 4, 2), Config(64, 32, 4, 3),
    ),
    "keys": (
        Config(128, 128, 8, 1), Config(64, 128, 8, 1), Config(64, 128, 8, 2), Config(64, 128, 8, 3),
        Config(32, 128, 8, 2), Config(32, 128, 4, 2), Config(64, 128, 4, 2), Config(128, 64, 4, 1),
        Config(64, 64, 4, 1), Config(64, 64, 4, 2), Config(64, 64, 4, 3), Config(32, 64, 4, 2),
        Config(32, 64, 4, 3),
    ),
}  # fmt: skip
CUTS |= {
    "dk": CUTS["keys"],
    "dv": CUTS["keys"],
    "tiles": (
        Config(64, 64, 8, 2), Config(64, 64, 8, 1), Config(64, 64, 8, 3), Config(64, 64, 4, 1),
        Config(64, 64, 4, 2), Config(64, 64, 4, 3), Config(32, 64, 4, 2), Config(32, 64, 4, 3),
        Config(128, 64, 8, 2), Config(128, 64, 4, 2), Config(128, 128, 8, 1), Config(32, 32, 4, 2),
    ),
}  # fmt: skip
DECODING = (
    Config(16, 64, 8, 3), Config(16, 64, 4, 3), Config(16, 64, 4, 2), Config(16, 128, 4, 2),
    Config(16, 128, 8, 3), Config(16, 32, 4, 3), Config(16, 64, 2, 3), Config(16, 128, 4, 3),
    Config(16, 256, 8, 2),
)  # fmt: skip
Task = tuple[str, str, Config]


def tasks(names: Sequence[str]) -> Iterator[Task]:
    """Everything that is tried; descriptors with the larger tiles only."""
    programs = attention_gpu.programs(quick=False)
    for name in names or programs:
        for stage in stages(programs[name]):
            for config in DECODING if programs[name].sizes.sq == 1 else CUTS[stage]:
                yield name, stage, config
                if config.block_m * config.block_n >= 4096 and config.num_stages > 1:
                    yield name, stage, replace(config, tma=True)


def stages(program: attention_gpu.Program) -> tuple[str, ...]:
    """The kernels of a workload that take most of its time."""
    if "full" not in program.modes:
        return ("forward",)
    apart = 2 * program.sizes.d > TOGETHER
    over_tiles = program.variant is ports.PAIR
    return (
        "forward", "rows", *(("dk", "dv") if apart else ("keys",)),
        *(("tiles",) if over_tiles else ()),
    )  # fmt: skip


@lru_cache(maxsize=1)
def problem_of(name: str) -> Problem:
    """The operands of a workload, as the generated kernels get them."""
    program = attention_gpu.programs(quick=False)[name]
    torch.manual_seed(0)
    case = attention_gpu.build(program, torch.bfloat16, torch.device("cuda"), "forward")
    found: list[Problem] = []
    make = operator.problem

    def noted(*arguments: Any) -> Problem:
        found.append(make(*arguments))
        return found[-1]

    options = {"fuser.lowering": "triton", "fuser.policy": "always", "fuser.inner": "eager"}
    compiled = torch.compile(program.fn, backend=fuser_backend(), options=options)
    with mock.patch.object(operator, "problem", noted), torch.no_grad():
        compiled(*case.args)
    return found[-1]  # before, the compiler ran it on fake tensors


@lru_cache(maxsize=3)
def runner_of(name: str, stage: str) -> Callable[[], object]:
    """Runs one stage of a workload."""
    with torch.no_grad():
        return tune.runner(problem_of(name), stage)


def run(task: Task) -> object:
    """Runs a stage in a config."""
    name, stage, config = task
    step = runner_of(name, stage)
    with torch.no_grad(), tune.TUNER.trying({stage: config}), kernels_launched():
        return step()


def attempt(task: Task) -> tuple[Task, str]:
    """Compiles and runs once; what went wrong, or nothing."""
    try:
        run(task)
        torch.cuda.synchronize()
    except Exception as error:
        return task, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
    return task, ""


def attempts(wanted: Sequence[Task], jobs: int, seconds: float) -> dict[Task, str]:
    """Outcomes by task, of those that were done in time."""
    found: dict[Task, str] = {}
    end = time.monotonic() + seconds
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        outcomes = pool.imap_unordered(attempt, wanted)
        try:
            for _ in wanted:
                task, failure = outcomes.next(max(0.1, end - time.monotonic()))
                found[task] = failure
        except multiprocessing.TimeoutError:
            print(f"{len(wanted) - len(found)} of {len(wanted)} were not compiled in time")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, times, prints the best of each stage."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.configs", description=__doc__)
    options.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options.add_argument("--jobs", type=int, default=8)
    options.add_argument("--seconds", type=float, default=3600.0, help="to compile in")
    options.add_argument("--csv", type=Path)
    args = options.parse_args(argv)
    wanted = [*tasks(args.only)]
    failures = attempts(wanted, args.jobs, args.seconds)
    rows: list[dict[str, Any]] = []
    for name, stage in dict.fromkeys((n, s) for n, s, _ in wanted):
        all_of = [(t, failures[t]) for t in wanted if t in failures and t[:2] == (name, stage)]
        runs = {str(i): partial(run, t) for i, (t, failure) in enumerate(all_of) if not failure}
        times = measure.medians(runs, torch.device("cuda"))
        rule = repr(tune_rule(name, stage))
        for i, (task, failure) in enumerate(all_of):
            found = {"workload": name, "stage": stage, **asdict(task[2])}
            found["rule"] = rule == repr(task[2])
            rows.append(found | {"ms": times.get(str(i), ""), "failure": failure})
        best = sorted(times, key=times.__getitem__)[:4]
        print(f"{name} {stage}: rule {rule}")
        for i in (*best, *(str(j) for j, (t, _) in enumerate(all_of) if repr(t[2]) == rule)):
            if i in times:
                print(f"    {times[i]:.4f} ms  {all_of[int(i)][0][2]}")
        if args.csv is not None:
            with args.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)


def tune_rule(name: str, stage: str) -> Config:
    """What the rule chooses."""
    of = problem_of(name)
    with tune.TUNER.trying({}):
        return of.config(stage, rows=tune.together(of.sizes))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
