"""The frame of a generated module: opening, imports, and the head of its kernel."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fuser.printed import first_line

from .kernel import Kernel
from .source import Source


@dataclass(frozen=True)
class Argument:
    """A tensor that a kernel reads or writes.

    Attributes:
        name: of the pointer; strides are called `{name}_{letter}`.
        type: of the pointer, as Triton writes it.
        letters: dimensions whose strides are arguments too; a tensor of ours that is contiguous
            has none.
    """

    name: str
    type: str
    letters: str = ""


def opening(origin: str, facts: Sequence[str], functions: Iterable[str]) -> str:
    """How a module begins: for whom it is, what it computes, and its imports.

    Args:
        origin: pattern and source lines.
        facts: about what is computed, a line each.
        functions: names of device functions that the text calls.
    """
    write = Source()
    write(first_line(origin))
    write()
    for fact in facts:
        write(fact)
    write('"""')
    write()
    write("import triton")
    write("import triton.language as tl")
    if used := sorted(functions):
        write()
        write(f"from fuser.lowering.triton.functions import {', '.join(used)}")
    return write.text.replace("torch.", "")


def assembled(
    name: str,
    about: str,
    head: str,
    arguments: Sequence[Argument],
    numbers: Sequence[str],
    body: Sequence[str],
    *,
    num_warps: int,
    num_stages: int,
) -> Kernel:
    """A kernel of a module of its own.

    Args:
        name: of its function.
        about: its docstring.
        head: how the module begins.
        arguments: its tensors, in order; their strides follow, and then its 32-bit `numbers`.
        body: its lines.
        num_warps, num_stages: see `Kernel`.
    """
    signature = (
        *((a.name, a.type) for a in arguments),
        *((f"{a.name}_{s}", "i32") for a in arguments for s in a.letters),
        *((n, "i32") for n in numbers),
    )
    whole = Source()
    whole(head)
    whole()
    whole("@triton.jit")
    names = ", ".join(n for n, _ in signature)
    with whole.block(f"def {name}("):
        for line in textwrap.wrap(names, 92, break_long_words=False):
            whole(line.rstrip(",") + ",")
    with whole.block("):"):
        whole(f'"""{about}"""')
        for line in body:
            whole(line)
    return Kernel(name, whole.text, signature, num_warps=num_warps, num_stages=num_stages)
