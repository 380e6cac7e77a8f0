"""The command line: `python -m benchmarks attention compile models crossover`.

Writes `benchmarks/results/<family>-<device>.csv` after every workload (so that a run that is
cut short leaves what it has) and the machine beside it; `--quick` writes only where `--csv` says.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    attention,
    compile,
    crossover,
    models,
    providers,
    records,
    runner,
    table,
    targets,
)
from fuser.torch_private import multiplies_in_hardware

FAMILIES = {"attention": attention.workloads, "models": models.workloads}
CHECKS = {"attention": targets.attention_checks, "models": targets.model_checks}


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    families = [*FAMILIES, "compile", "crossover"]
    p.add_argument("families", nargs="+", choices=families, metavar="FAMILY")
    p.add_argument("--device", default="cpu", type=torch.device)
    p.add_argument("--dtype", nargs="+", metavar="DTYPE", help="float32 bfloat16")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these workloads")
    p.add_argument("--modes", nargs="+", default=["forward", "full"], choices=["forward", "full"])
    p.add_argument("--quick", action="store_true", help="small sizes and three rounds")
    p.add_argument("--csv", type=Path, help="one file for everything that is run")
    names = list(providers.PROVIDERS)
    p.add_argument("--providers", nargs="+", default=names, choices=names)
    p.add_argument("--stand-in", metavar="BACKEND", help="a backend to run under fuser's name")
    p.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of fuser's"
    )
    return p


def options_of(texts: Sequence[str]) -> dict[str, Any]:
    """`["fuser.policy=always"]` as a dict; true and false become booleans."""
    pairs = (text.partition("=") for text in texts)
    words = {"true": True, "false": False}
    return {key: words.get(value.lower(), value) for key, _, value in pairs}


def wanted(
    workloads: Iterable[runner.Workload], args: argparse.Namespace, console: Console
) -> Iterator[tuple[runner.Workload, str, torch.dtype]]:
    """Every workload that was asked for, in every mode and dtype, announced as it comes."""
    for workload in workloads:
        if args.only and workload.name not in args.only:
            continue
        for dtype in args.dtype:
            for mode in (m for m in workload.modes if m in args.modes):
                console.print(f"{workload.name} {workload.x[1]} {dtype} {mode} ...", style="dim")
                yield workload, mode, getattr(torch, dtype)


def run_family(
    family: str,
    args: argparse.Namespace,
    chosen: Sequence[providers.Provider],
    console: Console,
    out: Path | None,
) -> None:
    """Measures one family of workloads, printing as it goes."""
    effort = runner.QUICK if args.quick else runner.Effort()
    results: list[runner.Result] = []
    lines = list[records.Row]()
    for workload, mode, dtype in wanted(FAMILIES[family](args.quick), args, console):
        result = runner.measure(workload, mode, dtype, args.device, chosen, effort)
        results.append(result)
        lines += records.rows(result, args.device)
        if out is not None:
            records.write_csv(out, lines)
    table.show(results, family, console)
    half = multiplies_in_hardware(torch.bfloat16)
    for check in CHECKS[family](results, half_in_hardware=half) if not args.quick else []:
        console.print(str(check), markup=False, highlight=False)


def run_compile(args: argparse.Namespace, console: Console, out: Path | None) -> None:
    """Measures the compile-time overhead."""
    fuser = stand_in if args.stand_in else providers.fuser_callable()
    costs: list[compile.Cost] = []
    for graph in compile.all_graphs(args.quick, args.device):
        if args.only and graph.name not in args.only:
            continue
        console.print(f"{graph.name} ...", style="dim")
        costs.append(compile.cost(graph, fuser, repeats=2 if args.quick else compile.REPEATS))
        if out is not None:
            records.write_csv(out, compile.rows(costs, args.device))
    compile.show(costs, console)
    for check in compile.checks(costs):
        console.print(str(check), markup=False, highlight=False)


def run_crossover(args: argparse.Namespace, console: Console, out: Path | None) -> None:
    """Measures forced rewrites at sizes around the crossover."""
    decisions: list[crossover.Decision] = []
    effort = runner.QUICK if args.quick else crossover.EFFORT
    for workload, mode, dtype in wanted(crossover.workloads(args.quick), args, console):
        decisions.append(crossover.judge(workload, mode, dtype, args.device, effort))
        if out is not None:
            records.write_csv(out, crossover.lines_of(decisions, args.device))
    crossover.show(decisions, console)
    for check in crossover.checks(decisions) if not args.quick else []:
        console.print(str(check), markup=False, highlight=False)


def stand_in(gm: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
    """Takes fuser's place in the compile benchmark: one look at every node."""
    for node in gm.graph.nodes:
        node.meta.get("example_value")
    return gm.forward


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the families that were asked for."""
    args = parser().parse_args(argv)
    args.dtype = args.dtype or (["float32"] if args.quick else ["float32", "bfloat16"])
    console = Console() if sys.stdout.isatty() else Console(width=200)
    chosen = providers.choose(args.providers, options_of(args.option), args.stand_in)
    runner.prime(chosen, args.device)
    for family in dict.fromkeys(args.families):
        load = os.getloadavg()[0]
        out = args.csv
        if out is not None and len(args.families) > 1:
            out = out.with_name(f"{out.stem}-{family}{out.suffix}")
        elif out is None and not (args.quick or args.only):
            out = records.RESULTS / f"{family}-{args.device.type}.csv"
        if family == "compile":
            run_compile(args, console, out)
        elif family == "crossover":
            run_crossover(args, console, out)
        else:
            run_family(family, args, chosen, console, out)
        if out is not None:
            records.write_machine(out, ["python -m benchmarks", *(argv or sys.argv[1:])], load)


if __name__ == "__main__":
    main()
