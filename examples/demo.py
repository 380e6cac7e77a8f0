"""Real models, compiled with Inductor and with fuser: what is found, how exact, how fast.

A BLOOM, a T5, a Gemma 2 and a GPT-OSS are built from their transformers configs with random
weights (nothing is downloaded), at sizes where a step takes 0.1 to 1 s on two cores.

    python -m examples.demo [--quick] [--explain NAME]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch._dynamo.utils import counters

from benchmarks.cases import relative_error
from benchmarks.devices import Processor
from benchmarks.figures import spread
from benchmarks.models import MODELS, VOCABULARY, Model, Size, step_of
from benchmarks.providers import EAGER, FUSER, INDUCTOR, Provider, choose
from benchmarks.runner import QUICK, THREADS, Effort, interleave
from fuser.outlets import rewrites

SIZES: dict[str, Size] = {
    "bloom": Size(batch=1, sequence=1024, layers=3, hidden=512, heads=16),
    "t5": Size(batch=1, sequence=1024, layers=3, hidden=512, heads=16),
    "gemma2": Size(batch=1, sequence=1024, layers=2, hidden=512, heads=16),
    "gpt_oss": Size(batch=1, sequence=1024, layers=2, hidden=512, heads=16),
}
QUICK_SIZE = Size(batch=1, sequence=64, layers=2, hidden=128, heads=8)


@dataclass(frozen=True)
class Outcome:
    """What one model showed: rewrites by pattern, errors and times (ms) by provider."""

    rewrites: dict[str, int]
    errors: dict[str, float]
    times: dict[str, list[float]]


def compare(spec: Model, providers: Sequence[Provider], effort: Effort) -> Outcome:
    """Compiles one model with every provider and times them in interleaved rounds."""
    torch._dynamo.reset()
    counters["fuser"].clear()
    model, ids = make(spec)
    step = step_of(model)
    calls = {p.name: p.prepare(step) for p in providers}
    with torch.no_grad():
        expected = (step(ids),)
        errors = {name: relative_error((call(ids),), expected) for name, call in calls.items()}
        ready = {name: lambda call=call: call(ids) for name, call in calls.items()}
        times = interleave(ready, effort, Processor())
    return Outcome(rewrites(), errors, times)


def make(spec: Model) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model with random weights, and random token ids."""
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (spec.size.batch, spec.size.sequence))
    return spec.make(spec.size).eval(), ids


def show(outcomes: dict[str, Outcome], console: Console) -> None:
    """Prints the table."""
    table = Table(title="fp32 inference; errors relative to eager's largest value; median ms")
    table.add_column("model")
    table.add_column("rewrites found", no_wrap=True)
    for header in (
        "inductor error",
        "fuser error",
        "eager ms",
        "inductor ms",
        "fuser ms",
        "faster than inductor",
    ):
        table.add_column(header, justify="right")
    for name, outcome in outcomes.items():
        found = "\n".join(f"{n} {pattern}" for pattern, n in sorted(outcome.rewrites.items()))
        errors = [f"{outcome.errors[p]:.1e}" for p in (INDUCTOR, FUSER)]
        middle = {p: spread(outcome.times[p])[1] for p in (EAGER, INDUCTOR, FUSER)}
        times = [f"{ms:.1f}" for ms in middle.values()]
        faster = f"{middle[INDUCTOR] / middle[FUSER]:.2f}x"
        table.add_row(name, found or "none", *errors, *times, faster)
    console.print(table)


def explain(spec: Model) -> None:
    """Prints the graph diff: what was taken out, what was put there, and why that is the same."""
    import fuser

    model, ids = make(spec)
    with torch.no_grad():
        print(fuser.explain(model, input_ids=ids, use_cache=False))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all four models, then explains one."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, three rounds")
    parser.add_argument("--explain", default="t5", choices=[*SIZES, "none"], metavar="NAME")
    parser.add_argument("--stand-in", metavar="BACKEND", help="a backend to run in fuser's place")
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    providers = choose([EAGER, INDUCTOR, FUSER], {}, args.stand_in)
    effort = QUICK if args.quick else Effort(min_rounds=5, max_rounds=15, budget_s=8.0)
    specs = {
        name: replace(MODELS[name], size=QUICK_SIZE if args.quick else size)
        for name, size in SIZES.items()
    }
    outcomes: dict[str, Outcome] = {}
    for name, spec in specs.items():
        with console.status(f"{name}: compiling twice, then timing"):
            outcomes[name] = compare(spec, providers, effort)
    if args.explain != "none":
        explain(specs[args.explain])
    show(outcomes, console)


if __name__ == "__main__":
    main()
