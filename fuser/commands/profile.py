"""`python -m fuser profile`: what the regions of a model cost, or would cost on another device."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from typing import Any

from .error import CommandError
from .target import add_target, load, running, with_gradients


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    profile = commands.add_parser(
        "profile", help="time, operations and bytes of each region, beside plain Inductor"
    )
    add_target(profile)
    profile.add_argument("--training", action="store_true", help="in training mode, with backward")
    profile.add_argument(
        "--target",
        metavar="DEVICE",
        dest="device",
        help="predict for a100, h100, h200, b200, mi300x, or sm_80, sm_90, sm_100, gfx942, which "
        "need not be there; nothing is measured",
    )
    profile.add_argument("--policy", choices=["auto", "always"], help="fuser.policy")
    profile.add_argument("--json", action="store_true", help="the profile as JSON")
    profile.add_argument("--plot", metavar="FILE", help="write a roofline, by matplotlib")
    profile.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the profile, and writes the picture."""
    from ..errors import FuserError

    # what the user's code prints must not stand before the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        found = _profile(args)
    print(json.dumps(found.to_json(), indent=1) if args.json else str(found), flush=True)
    if args.plot:
        try:
            found.to_picture(args.plot)
        except FuserError as error:
            raise CommandError(str(error)) from error
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot write the picture to {args.plot!r}: {error}") from error
    return 0


def _profile(args: argparse.Namespace) -> Any:
    import torch

    from ..errors import FuserError, MissingExtraError
    from ..profiling.machine import known
    from ..profiling.profile import profile

    try:
        if args.device is not None:
            known(args.device)  # before the model is made
    except FuserError as error:
        raise CommandError(str(error)) from error
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise CommandError(str(MissingExtraError("matplotlib", "plot")))
    model, positional, keywords = load(args.target)
    options = {"fuser.policy": args.policy} if args.policy else {}
    gradients = with_gradients(model, args.training)
    with running(args.target), torch.set_grad_enabled(gradients):
        return profile(model, *positional, options=options, target=args.device, **keywords)
