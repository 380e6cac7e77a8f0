"""What is private in torch is touched in modules of that name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = set((ROOT / "fuser").glob("*_private.py"))


def private(tree: ast.Module) -> Iterator[str]:
    """Modules and attributes behind `torch` whose names begin with an underscore; operators of the
    dispatcher, which have schemas, are no such attributes."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            first, *rest = name.split(".")
            hidden = any(part[:1] == "_" and part[:2] != "__" for part in rest)
            if first == "torch" and rest[:1] != ["ops"] and hidden:
                yield f"{name}, line {node.lineno}"


def test_no_other_module_reaches_into_torch() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("fuser", "lowering", "patterns")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path not in PLACES
        for name in private(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_the_look_finds_what_is_private() -> None:
    text = (
        "import torch._dynamo\nfrom torch._ops import OpOverload\ntorch._C._nn\ntorch.ops.aten._x"
    )
    assert len(list(private(ast.parse(text)))) == 4
