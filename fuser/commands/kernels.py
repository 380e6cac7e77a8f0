"""`python -m fuser kernels`: generated kernels compiled ahead of time, with no GPU needed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .error import CommandError


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    kernels = commands.add_parser(
        "kernels",
        help="registers, spills, shared memory and occupancy of generated kernels, no GPU needed",
    )
    kernels.add_argument(
        "catalogue",
        metavar="CATALOGUE.jsonl",
        nargs="*",
        help="entries of kernels, a line each; by default those of the workloads benchmarked here",
    )
    kernels.add_argument(
        "--arch",
        action="append",
        default=[],
        help="sm_80, sm_90, sm_100 or gfx942; repeatable (all of them)",
    )
    kernels.add_argument(
        "--filter", metavar="GLOB", default="*", help="labels, or kernels' names, as in '*causal*'"
    )
    kernels.add_argument("--jobs", type=_jobs, metavar="N", help="compilers at a time (cores)")
    kernels.add_argument("--source", metavar="FOLDER", help="write the kernels' text there")
    kernels.add_argument("--strict", action="store_true", help="exit with 1 for spills too")
    kernels.add_argument("--json", action="store_true", help="the findings as JSON")
    kernels.set_defaults(run=run)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 where a kernel does not compile or does not fit."""
    from ..errors import FuserError
    from ..kernels import catalogue, survey

    try:
        found = survey(
            catalogue(args.catalogue),
            args.arch,
            pattern=args.filter,
            jobs=args.jobs,
            sources=args.source,
        )
    except (FuserError, OSError) as error:
        raise CommandError(str(error)) from error
    if not found.rows:
        raise CommandError(f"no kernel is called {args.filter!r}, nor made for it")
    print(json.dumps(found.to_json(), indent=1) if args.json else str(found))
    return 0 if found.passes(strict=args.strict) else 1
