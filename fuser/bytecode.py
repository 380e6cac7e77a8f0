"""What the rest of a function's bytecode does with its names, as Dynamo's translator holds it."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

JUMPS = ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")
RETURNS = ("RETURN_VALUE", "RETURN_CONST")
_ENDING = (*RETURNS, "RAISE_VARARGS", "RERAISE")
_IDLE = ("NOP", "NOT_TAKEN", "CACHE")
_MAX_JUMPS = 8
_TORCH = str(Path(torch.__file__).parent)
"""Where functions of Python's own library stand as Dynamo reads them."""


@dataclass(frozen=True)
class Returned:
    """What a function returns: a name's value, or a constant."""

    name: str | None = None
    constant: Any = None


def is_read(tx: Any, name: str, start: int) -> bool:
    """Whether a function reads a name, from an instruction on, before it gives it another value."""
    pending, seen = [start], set[int]()
    while pending:
        at = pending.pop()
        if at in seen or at >= len(tx.instructions):
            continue
        seen.add(at)
        inst = tx.instructions[at]
        names = inst.argval if isinstance(inst.argval, tuple) else (inst.argval,)
        if name in names and "LOAD" in inst.opname:
            return True
        if name in names and inst.opname.startswith(("STORE", "DELETE")):
            continue
        entry = inst.exn_tab_entry
        others = [inst.target, None if entry is None else entry.target]
        pending += [tx.indexof[other] for other in others if other is not None]
        if inst.opname not in _ENDING and inst.opname not in JUMPS:
            pending.append(at + 1)
    return False


def follow(tx: Any, at: int) -> int:
    """The first instruction from one on that does something."""
    for _ in range(_MAX_JUMPS):
        inst = tx.instructions[at]
        if inst.opname in JUMPS:
            at = tx.indexof[inst.target]
        elif inst.opname in _IDLE:
            at += 1
        else:
            break
    return at


def returned(tx: Any, inst: Any) -> Returned | None:
    """What a function returns that does nothing else from an instruction on."""
    if inst.opname == "RETURN_CONST":
        return Returned(constant=inst.argval)
    after = tx.instructions[follow(tx, tx.indexof[inst] + 1)]
    if after.opname != "RETURN_VALUE":
        return None
    if inst.opname == "LOAD_CONST":
        return Returned(constant=inst.argval)
    return Returned(str(inst.argval)) if inst.opname.startswith("LOAD_FAST") else None


def place(tx: Any) -> str:
    """Of what is being read, in the program of a user: file, line and text."""
    while tx.f_code.co_filename.startswith(_TORCH) and getattr(tx, "parent", None) is not None:
        tx = tx.parent
    file, line = str(tx.f_code.co_filename), int(tx.lineno)
    return f"{file}:{line}: `{linecache.getline(file, line).strip()}`"
