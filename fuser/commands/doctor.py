"""`python -m fuser doctor`: versions, device, caches, and what would work."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    doctor = commands.add_parser("doctor", help="versions, device, caches, and what would work")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis; 1 where something that is needed is missing."""
    from ..report.doctor import examine

    diagnosis = examine()
    print(json.dumps(diagnosis.to_json(), indent=1) if args.json else str(diagnosis))
    return 0 if diagnosis.healthy else 1
