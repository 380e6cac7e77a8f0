"""`python -m fuser bench`: a model in eager, compiled by Inductor and by fuser, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from .target import add_target, load, running, with_gradients


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    bench = commands.add_parser(
        "bench", help="time, compile time and memory in eager, by Inductor and by fuser"
    )
    add_target(bench)
    bench.add_argument("--training", action="store_true", help="time forward and backward")
    bench.add_argument("--json", action="store_true", help="the figures as JSON")
    bench.add_argument("--policy", choices=["auto", "always"], help="fuser.policy (auto)")
    bench.add_argument(
        "--rounds", type=_rounds, metavar="N", help="how often each is timed, in turn (15)"
    )
    bench.set_defaults(run=run)


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Prints the figures."""
    # what the user's code prints must not stand before the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        found = _comparison(args)
    print(json.dumps(found.to_json(), indent=1) if args.json else str(found))
    return 0


def _comparison(args: argparse.Namespace) -> Any:
    from ..bench import ROUNDS, bench

    model, positional, keywords = load(args.target)
    options = {"fuser.policy": args.policy} if args.policy else {}
    training = with_gradients(model, args.training)
    with running(args.target):
        return bench(
            model,
            positional,
            keywords,
            training=training,
            options=options,
            rounds=args.rounds or ROUNDS,
        )
