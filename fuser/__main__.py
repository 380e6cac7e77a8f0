"""Command line: `python -m fuser` or `torch-fuser`.

    python -m fuser explain package.module:callable [--json] [--policy always]
    python -m fuser kernels [--arch sm_90] [--filter GLOB] [--strict] [--json] [CATALOGUE.jsonl ...]
    python -m fuser doctor [--json]

Exit codes: 0 good; 1 a check failed (`--expect`, a kernel that does not compile or not fit, or
something that `doctor` needs is missing); 2 the command could not be carried out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """What is wrong with the command, in one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        the exit code.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as error:  # argparse exits by itself for --help (0) and bad arguments (2)
        return error.code if isinstance(error.code, int) else 2
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CommandError as error:
        print(f"torch-fuser: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-fuser", description="What fuser makes of a model, and of this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain", help="what would be rewritten, what nearly was, and why not"
    )
    explain.add_argument(
        "target",
        metavar="MODULE:CALLABLE",
        help="returns (model, inputs); inputs are a tuple, a dict of keywords or one tensor. "
        "MODULE may be a path to a .py file. A module in training mode is explained with gradients",
    )
    explain.add_argument("--json", action="store_true", help="the report as JSON")
    explain.add_argument("--policy", choices=["auto", "always"], help="fuser.policy (auto)")
    explain.add_argument(
        "--expect",
        metavar="FAMILY=N",
        action="append",
        default=[],
        type=_expectation,
        help="exit with 1 unless exactly N regions of this family are rewritten; repeatable",
    )
    explain.set_defaults(run=_explain)
    _add_kernels(commands)
    doctor = commands.add_parser("doctor", help="versions, device, caches, and what would work")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_kernels(commands: Any) -> None:
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
    kernels.set_defaults(run=_kernels)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _expectation(text: str) -> tuple[str, int]:
    family, _, number = text.partition("=")
    if not family or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not FAMILY=N, as in attention=32")
    return family, int(number)


def _explain(args: argparse.Namespace) -> int:
    from .errors import CoverageError, FuserError

    # what the user's code prints must not stand before the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        report = _report(args)
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

    from .errors import FuserError
    from .report.explain import explain

    model, positional, keywords = _load(args.target)
    options = {"fuser.policy": args.policy} if args.policy else {}
    try:
        with torch.set_grad_enabled(bool(getattr(model, "training", False))):
            return explain(model, *positional, options=options, **keywords)
    except FuserError as error:
        raise CommandError(str(error)) from error
    except Exception as error:
        traceback.print_exc()
        raise CommandError(
            f"the model of {args.target} raised {type(error).__name__} on its inputs"
        ) from error


def _shown(report: Any) -> str:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return report.to_text(color=color).rstrip("\n")


def _load(target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The model and its arguments from `module:callable`."""
    make = _callable(target)
    try:
        made = make()
    except Exception as error:
        traceback.print_exc()
        raise CommandError(f"{target} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise CommandError(
            f"{target} must return (model, inputs), but returned {type(made).__name__}"
            + (f" of {len(made)}" if isinstance(made, tuple) else "")
        )
    model, inputs = made
    if isinstance(inputs, Mapping):
        return model, (), {str(name): value for name, value in inputs.items()}
    return model, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}


def _callable(target: str) -> Callable[[], Any]:
    name, _, path = target.rpartition(":")
    if not name or not path:
        raise CommandError(
            f"{target!r} does not name a callable; write module:callable, as in my.models:tiny"
        )
    found: Any = _module(name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:12])
            raise CommandError(f"{name} has no {path!r}; it has: {near or 'nothing'}")
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{target} is not a callable: {type(found).__name__}")
    return found


def _module(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script, unlike `python -m`, does not add it
    try:
        if name.endswith(".py"):
            return _file(Path(name))
        return importlib.import_module(name)
    except CommandError:
        raise
    except ModuleNotFoundError as error:
        raise CommandError(f"cannot import {name!r}: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise CommandError(f"importing {name} raised {type(error).__name__}: {error}") from error


def _file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise CommandError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _kernels(args: argparse.Namespace) -> int:
    from .errors import FuserError
    from .kernels import catalogue, survey

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


def _doctor(args: argparse.Namespace) -> int:
    from .report.doctor import examine

    diagnosis = examine()
    print(json.dumps(diagnosis.to_json(), indent=1) if args.json else str(diagnosis))
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
