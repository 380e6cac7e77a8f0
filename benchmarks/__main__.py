"""The command line: `python -m benchmarks attention moe norm activation loss models diffusion`.

Writes `benchmarks/results/<family>-<device>.csv` after every workload (so that a run that is
cut short leaves what it has) and the machine beside it; `--quick` writes only where `--csv` says.
Exits with 2 where the device that `--device` names is not there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    activation,
    attention,
    attention_gpu,
    compile,
    crossover,
    devices,
    diffusion,
    loss,
    models,
    moe,
    moe_gpu,
    norm,
    norm_gpu,
    parallel,
    ports,
    ports_moe,
    ports_norm,
    providers,
    records,
    runner,
    table,
    targets,
)
from benchmarks.cases import Workload
from benchmarks.figures import Result
from benchmarks.providers import SDPA
from fuser.torch_private import multiplies_in_hardware

FAMILIES = (
    "attention", "moe", "norm", "activation", "loss", "models", "diffusion", "compile", "crossover",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Workloads that are measured alike, and what is asked of them.

    Attributes:
        workloads: takes `--quick`.
        checks: the targets, where not quick.
        each: a line of the table for every provider.
        ports: those that its workloads have.
    """

    workloads: Callable[[bool], list[Workload]]
    checks: Callable[[Sequence[Result]], list[targets.Check]]
    each: bool = False
    ports: Sequence[str] = ()


def family_of(name: str, device_type: str) -> Family:
    """What a family is on a kind of device: attention, mixtures and norms have sizes of their own
    on a GPU."""
    half = multiplies_in_hardware(torch.bfloat16)
    on_gpu = device_type == "cuda"
    if name == "models":
        return Family(
            models.workloads, lambda found: targets.model_checks(found, half_in_hardware=half)
        )
    if name == "loss":
        return Family(loss.workloads, targets.loss_checks, each=True)
    if name == "moe" and on_gpu:
        return Family(moe_gpu.workloads, targets.gpu_moe_checks, True, ports_moe.NAMES)
    if name == "moe":
        return Family(moe.workloads, targets.moe_checks, each=True)
    if name == "diffusion":
        return Family(diffusion.workloads, targets.diffusion_checks)
    if name == "norm" and on_gpu:
        return Family(norm_gpu.workloads, targets.gpu_norm_checks, True, ports_norm.NAMES)
    if name == "norm":
        return Family(norm.workloads, targets.norm_checks, each=True)
    if name == "activation":
        return Family(activation.workloads, targets.activation_checks, each=True)
    if on_gpu:
        return Family(attention_gpu.workloads, targets.gpu_attention_checks, True, ports.NAMES)
    return Family(
        attention.workloads,
        lambda found: targets.attention_checks(found, half_in_hardware=half),
        ports=(SDPA,),
    )


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument("families", nargs="+", choices=FAMILIES, metavar="FAMILY")
    p.add_argument("--device", default="cpu", type=torch.device, help="cpu, cuda, cuda:1")
    p.add_argument("--dtype", nargs="+", metavar="DTYPE", help="float32 bfloat16")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these workloads")
    p.add_argument("--modes", nargs="+", default=["forward", "full"], choices=["forward", "full"])
    p.add_argument("--quick", action="store_true", help="small sizes and three rounds")
    p.add_argument("--csv", type=Path, help="one file for everything that is run")
    p.add_argument(
        "--providers", nargs="+", choices=list(providers.PROVIDERS), metavar="PROVIDER",
        help=" ".join(providers.PROVIDERS),
    )  # fmt: skip
    p.add_argument("--cuda-graphs", action="store_true", help="time replays, of every provider")
    p.add_argument(
        "--together", action="store_true", help="on a GPU, compile all workloads side by side"
    )
    p.add_argument("--budget", type=float, metavar="SECONDS", help="of rounds of a workload")
    p.add_argument("--rounds", type=int, metavar="N", help="of a workload, at the least")
    p.add_argument("--lock", type=Path, help=argparse.SUPPRESS)
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
    workloads: Iterable[Workload], args: argparse.Namespace, console: Console
) -> Iterator[tuple[Workload, str, torch.dtype]]:
    """Every workload that was asked for, in every mode and dtype, announced as it comes."""
    for workload in workloads:
        if args.only and workload.name not in args.only:
            continue
        for dtype in args.dtype:
            for mode in (m for m in workload.modes if m in args.modes):
                console.print(f"{workload.name} {workload.x[1]} {dtype} {mode} ...", style="dim")
                yield workload, mode, getattr(torch, dtype)


@dataclass(frozen=True)
class Run:
    """What the families of one command share."""

    args: argparse.Namespace
    device: devices.Device
    console: Console

    def chosen(self, family: str) -> list[providers.Provider]:
        """Who is compared: those that were asked for, or those that the family is for."""
        args, kind = self.args, self.args.device.type
        ports = family_of(family, kind).ports
        names = args.providers or providers.default_names(kind, ports)
        return providers.choose(names, options_of(args.option), args.stand_in)

    def family(self, name: str, out: Path | None) -> None:
        """Measures one family, printing as it goes."""
        if name == "compile":
            self._compile(out)
        elif name == "crossover":
            self._crossover(out)
        else:
            self._workloads(name, out)

    def _workloads(self, name: str, out: Path | None) -> None:
        family, chosen = family_of(name, self.args.device.type), self.chosen(name)
        if self.args.together:
            names = [w.name for w in family.workloads(self.args.quick)]
            names = [n for n in names if not self.args.only or n in self.args.only]
            parallel.run(names, self._shared(name), out, self.console.out)
            return
        effort = runner.QUICK if self.args.quick else runner.Effort()
        if self.args.budget is not None:
            effort = replace(effort, budget_s=self.args.budget)
        if self.args.rounds is not None:
            effort = replace(effort, min_rounds=self.args.rounds)
        results: list[Result] = []
        lines = list[records.Row]()
        for workload, mode, dtype in wanted(
            family.workloads(self.args.quick), self.args, self.console
        ):
            result = runner.measure(workload, mode, dtype, self.device, chosen, effort)
            results.append(result)
            lines += records.rows(result, self.device)
            if out is not None:
                records.write_csv(out, lines)
        if family.each:
            table.show_each(results, name, self.console, self.device.rates)
        else:
            table.show(results, name, self.console)
        self._check(family.checks(results) if not self.args.quick else [])

    def _shared(self, name: str) -> list[str]:
        """The arguments of a command for one of the workloads."""
        args = self.args
        found = [name, "--device", str(args.device), "--dtype", *args.dtype]
        found += ["--modes", *args.modes, "--providers", *(p.name for p in self.chosen(name))]
        found += ["--quick"] if args.quick else []
        found += ["--cuda-graphs"] if args.cuda_graphs else []
        found += [] if args.budget is None else ["--budget", str(args.budget)]
        return found + [x for option in args.option for x in ("--option", option)]

    def _compile(self, out: Path | None) -> None:
        fuser = stand_in if self.args.stand_in else providers.fuser_callable()
        repeats = 2 if self.args.quick else compile.REPEATS
        costs: list[compile.Cost] = []
        for graph in compile.all_graphs(self.args.quick, self.device.place):
            if self.args.only and graph.name not in self.args.only:
                continue
            self.console.print(f"{graph.name} ...", style="dim")
            costs.append(compile.cost(graph, fuser, repeats=repeats))
            if out is not None:
                records.write_csv(out, compile.rows(costs, self.device))
        compile.show(costs, self.console)
        self._check(compile.checks(costs))

    def _crossover(self, out: Path | None) -> None:
        decisions: list[crossover.Decision] = []
        effort = runner.QUICK if self.args.quick else crossover.EFFORT
        for workload, mode, dtype in wanted(
            crossover.workloads(self.args.quick), self.args, self.console
        ):
            decisions.append(crossover.judge(workload, mode, dtype, self.device, effort))
            if out is not None:
                records.write_csv(out, crossover.lines_of(decisions, self.device))
        crossover.show(decisions, self.console)
        self._check(crossover.checks(decisions) if not self.args.quick else [])

    def _check(self, checks: Iterable[targets.Check]) -> None:
        for check in checks:
            self.console.print(str(check), markup=False, highlight=False)


def stand_in(gm: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
    """Takes fuser's place in the compile benchmark: one look at every node."""
    for node in gm.graph.nodes:
        node.meta.get("example_value")
    return gm.forward


def default_dtypes(args: argparse.Namespace) -> list[str]:
    """bf16 on a GPU; fp32 as well on a CPU, alone where it is to be quick."""
    if args.device.type == "cuda":
        return ["bfloat16"]
    return ["float32"] if args.quick else ["float32", "bfloat16"]


def out_of(args: argparse.Namespace, family: str) -> Path | None:
    """Where a family's figures are written; a part of them only where that is asked for."""
    if args.csv is not None and len(args.families) > 1:
        return args.csv.with_name(f"{args.csv.stem}-{family}{args.csv.suffix}")
    if args.csv is None and not (args.quick or args.only):
        return records.RESULTS / f"{family}-{args.device.type}.csv"
    return args.csv


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the families that were asked for."""
    options = parser()
    args = options.parse_args(argv)
    try:
        device = devices.open_device(args.device, graphs=args.cuda_graphs, lock=args.lock)
    except devices.NoSuchDevice as error:
        options.exit(2, f"{options.prog}: {error}\n")
    args.dtype = args.dtype or default_dtypes(args)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    run, families = Run(args, device, console), list(dict.fromkeys(args.families))
    if not (args.together or device.is_shared):
        everybody = {p.name: p for family in families for p in run.chosen(family)}
        runner.prime(list(everybody.values()), device)
    for family in families:
        load = os.getloadavg()[0]
        out = out_of(args, family)
        run.family(family, out)
        if out is not None:
            records.write_machine(out, ["python -m benchmarks", *(argv or sys.argv[1:])], load)


if __name__ == "__main__":
    main()
