"""A program that shows a mismatch by itself, and runs as long as there is one.

It holds the region and what stands in its place as plain functions. Where no random numbers show
the mismatch, what the region read lies beside it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..disk import folder, free
from ..events import Verdict
from ..report.text import table
from ..torch_private import written_names
from .compare import Conditions, ReplacementError, judge
from .prepare import EAGER

SEED = 0
_FREED = re.compile(r";  (\w+ = )+None$")
"""What code of a graph says of values that nobody reads any more."""


class Unwritable(Exception):
    """A function has no name under which another process would find it."""


@dataclass(frozen=True)
class Reproduction:
    """What shows a mismatch.

    Attributes:
        operands: what the region reads.
        seeded: `random_operands` show it too.
        inner: what compiles the replacement.
    """

    original: GraphModule
    replacement: GraphModule
    operands: Sequence[Tensor]
    conditions: Conditions
    inner: str
    seeded: bool = False


def random_operands(operands: Sequence[Tensor]) -> list[Tensor]:
    """Tensors like these, with random numbers from a seed, made as the program makes them."""
    namespace: dict[str, Any] = {"torch": torch}
    exec("\n".join(["def operands():", *_random(operands)]), namespace)
    return namespace["operands"]()  # type: ignore[no-any-return]


def write(found: Reproduction, verdict: Verdict, target: str = "") -> Path:
    """Write the program.

    Args:
        found: what it shows.
        verdict: what it is about.
        target: a directory for it; by default in the folder of what is kept on disk.

    Returns:
        its path.

    Raises:
        Unwritable: it cannot be written down.
        OSError: nor to the disk.
    """
    place = Path(target) if target else folder() / "mismatches"
    place.mkdir(parents=True, exist_ok=True)
    held = _held(found.replacement)
    kept = not found.seeded or bool(held)
    text = _text(found, verdict, kept)
    path = free(place, verdict.pattern.replace(".", "_"), ".py")
    if kept:
        content = {"operands": list(found.operands), "held": SimpleNamespace(**held)}
        torch.save(content, path.with_suffix(".pt"))
    path.write_text(text, encoding="utf-8")
    return path


def rerun(
    original: Callable[..., Any],
    replacement: Callable[..., Any],
    operands: Sequence[Tensor],
    inner: str,
    conditions: Conditions,
) -> int:
    """Compare again, and print the errors; for the program.

    Returns:
        its exit code: 1 while the replacement is wrong.
    """
    if inner != EAGER:
        replacement = torch.compile(replacement, backend=inner, fullgraph=True, dynamic=False)
    try:
        compared = judge(original, replacement, operands, conditions)
    except ReplacementError as error:
        print(f"the replacement raises {error}")
        return 1
    print(table(compared))
    wrong = [c for c in compared if c.problem]
    print("\n".join(map(str, wrong)) or "the replacement is right")
    return 1 if wrong else 0


def _held(module: GraphModule) -> dict[str, Any]:
    """Constants and bodies that a graph reads as attributes."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    return {name: getattr(module, name) for name in names}


def _source(module: GraphModule, name: str) -> tuple[list[str], list[str]]:
    """Imports, and lines of a function."""
    code = module.graph.python_code("HELD")
    lines = code.src.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def forward("))
    lines = [_FREED.sub("", line) for line in lines[start:] if line.strip()]
    lines[0] = lines[0].replace("forward(self", f"{name}(", 1).replace("(, ", "(", 1)
    words = set(re.findall(r"\w+", "\n".join(lines)))
    return [_imported(n, called) for n, called in code.globals.items() if n in words], lines


def _imported(name: str, called: Any) -> str:
    """How a program gets what a graph's code calls by a name."""
    if name in written_names():
        return written_names()[name]
    module = str(getattr(called, "__module__", "") or "")
    own = str(getattr(called, "__qualname__", ""))
    if not own.isidentifier() or not _is_found(module, own, called):
        raise Unwritable(f"{called!r} has no name under which another process would find it")
    return f"from {module} import {own} as {name}"


def _is_found(module: str, name: str, called: Any) -> bool:
    try:
        return getattr(importlib.import_module(module), name, None) is called
    except (ImportError, ValueError):
        return False


def _random(operands: Sequence[Tensor]) -> list[str]:
    lines = [f"    torch.manual_seed({SEED})", "    return ["]
    for x in operands:
        made = f"torch.empty_strided({tuple(x.shape)}, {x.stride()}, dtype={x.dtype}"
        wanted = ".requires_grad_()" if x.requires_grad else ""
        lines.append(f"        {made}, device={str(x.device)!r}).normal_(){wanted},")
    return [*lines, "    ]"]


def _text(found: Reproduction, verdict: Verdict, kept: bool) -> str:
    from .. import __version__

    sources = [_source(found.original, "original"), _source(found.replacement, "replacement")]
    imports = sorted({"import torch", *(line for lines, _ in sources for line in lines)})
    load = ['KEPT = torch.load(__file__[:-3] + ".pt", weights_only=False)', 'HELD = KEPT["held"]']
    made = _random(found.operands) if found.seeded else ['    return KEPT["operands"]']
    return "\n".join(
        [
            f'"""{verdict.pattern} at {verdict.where}: {verdict.reason}.',
            "",
            f"Written by fuser {__version__}, torch {torch.__version__}: {verdict.lowering}.",
            'Exits with 1 while the replacement is wrong, with 0 once it is right.\n"""',
            "",
            *imports,
            "",
            "from fuser.verification.compare import Conditions",
            "from fuser.verification.script import rerun",
            *(["", *load] if kept else []),
            *(line for _, lines in sources for line in ("", "", *lines)),
            *("", "", "def operands():", *made),
            *("", "", 'if __name__ == "__main__":'),
            *("    conditions = Conditions(", *_stated(found.conditions), "    )"),
            "    raise SystemExit("
            f"rerun(original, replacement, operands(), {found.inner!r}, conditions))",
            "",
        ]
    )


def _stated(conditions: Conditions) -> list[str]:
    """Arguments that make these conditions."""
    given = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    device = given.pop("device")
    usual = vars(Conditions(device))
    others = [f"        {n}={x!r}," for n, x in given.items() if x != usual[n]]
    return [f"        torch.{device!r},", *others]
