"""`python -m fuser explain`: what would be rewritten, what nearly was, and why not."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import Any

from .error import CommandError
from .target import add_target, load, running, with_gradients


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    explain = commands.add_parser(
        "explain", help="what would be rewritten, what nearly was, and why not"
    )
    add_target(explain)
    explain.add_argument("--json", action="store_true", help="the report as JSON")
    explain.add_argument("--html", metavar="FILE", help="write the report as a page")
    explain.add_argument("--policy", choices=["auto", "always"], help="fuser.policy (auto)")
    explain.add_argument(
        "--expect",
        metavar="FAMILY=N",
        action="append",
        default=[],
        type=_expectation,
        help="exit with 1 unless exactly N regions of this family are rewritten; repeatable",
    )
    explain.set_defaults(run=run)


def _expectation(text: str) -> tuple[str, int]:
    family, _, number = text.partition("=")
    if not family or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not FAMILY=N, as in attention=32")
    return family, int(number)


def run(args: argparse.Namespace) -> int:
    """Prints the report or writes the page; 1 where an expectation is not met."""
    from ..errors import CoverageError, FuserError

    # what the user's code prints must not stand before the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        report = _report(args)
    if args.html:
        _write(report, args.html)
    if args.json or not args.html:
        print(json.dumps(report.to_json(), indent=1) if args.json else _shown(report), flush=True)
    try:
        report.expect(**dict(args.expect))
    except CoverageError as error:
        print(f"torch-fuser: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return 1
    except FuserError as error:
        raise CommandError(str(error)) from error
    return 0


def _report(args: argparse.Namespace) -> Any:
    import torch

    from ..report.explain import explain

    model, positional, keywords = load(args.target)
    options = {"fuser.policy": args.policy} if args.policy else {}
    with running(args.target), torch.set_grad_enabled(with_gradients(model, training=False)):
        return explain(model, *positional, options=options, **keywords)


def _write(report: Any, path: str) -> None:
    from ..report.text import summary

    try:
        report.to_html(path)
    except OSError as error:
        raise CommandError(f"cannot write the page to {path!r}: {error}") from error
    print(f"{summary(report)}: {path}", file=sys.stderr)


def _shown(report: Any) -> str:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return report.to_text(color=color).rstrip("\n")
