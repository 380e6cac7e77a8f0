"""Command line: `python -m fuser` or `torch-fuser`.

    python -m fuser explain package.module:callable [--html FILE] [--json] [--policy always]
    python -m fuser verify package.module:callable [--training] [--json] [--policy always]
    python -m fuser bench package.module:callable [--training] [--json] [--policy always]
    python -m fuser kernels [--arch sm_90] [--filter GLOB] [--strict] [--json] [CATALOGUE.jsonl ...]
    python -m fuser profile package.module:callable [--training] [--target h200] [--plot FILE]
    python -m fuser doctor [--json]

Exit codes: 0 good; 1 a check failed (`--expect`, a region that `verify` found wrong, a kernel that
does not compile or not fit, or something that `doctor` needs is missing); 2 the command could not
be carried out.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from .commands import bench, doctor, explain, kernels, profile, verify
from .commands.error import CommandError


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal's encoding may lack what a line has
            stream.reconfigure(errors="backslashreplace")
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
    for command in (explain, verify, bench, profile, kernels, doctor):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
