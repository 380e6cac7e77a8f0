"""`python -m fuser verify`: are rewritten regions as near to float64 as the model itself?"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from .target import add_target, load, running, with_gradients


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    verify = commands.add_parser(
        "verify", help="compare every rewritten region, and the original, with float64"
    )
    add_target(verify)
    verify.add_argument("--training", action="store_true", help="in training mode, with gradients")
    verify.add_argument("--json", action="store_true", help="the findings as JSON")
    verify.add_argument("--policy", choices=["auto", "always"], help="fuser.policy (auto)")
    verify.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 where a region is wrong. What could not be compared is told of, and
    is no error."""
    # what the user's code prints must not stand before the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        found = _verification(args)
    print(json.dumps(found.to_json(), indent=1) if args.json else str(found).rstrip("\n"))
    return 1 if found.wrong else 0


def _verification(args: argparse.Namespace) -> Any:
    import torch

    from ..verification.verify import verify

    model, positional, keywords = load(args.target)
    options = {"fuser.policy": args.policy} if args.policy else {}
    gradients = with_gradients(model, args.training)
    with running(args.target), torch.set_grad_enabled(gradients):
        return verify(model, *positional, options=options, **keywords)
