"""The derivatives of a norm's programs, and the operands that these read."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph

from fuser.graph.program import Program

from ...triton.trace import trace_gradient, unrounded
from .layout import Layout
from .text import Text


def rows(layout: Layout) -> list[str]:
    """Names of what was normalised."""
    return [f"n{member}" for member in layout.spec.members]


def derived(text: Text, program: Program, wanted: Sequence[str]) -> Graph:
    """The gradients of some inputs of a program."""
    return unrounded(trace_gradient(program, text.inputs(program), wanted))


def read_by_gradients(text: Text, results: Sequence[int], wanted: Sequence[str]) -> list[str]:
    """The operands that a kernel reads for the gradients of some, from those of some results.

    No more than `NormSpec.read_by_gradient` has saved. What is normalised is read with all that it
    is made of, as statistics alone are kept.
    """
    layout, spec, found = text.layout, text.layout.spec, set[str]()
    for program in (program for i in results for program in spec.programs(i)):
        found |= _read(text, program, [*rows(layout), *wanted])
    if not spec.bare or not found.isdisjoint(rows(layout)):
        found |= {*layout.read_before}
    for member in spec.members:
        own = {layout.own(name, member): name for name in spec.before.inputs}
        read = _read(text, spec.before, [own[name] for name in wanted if name in own])
        found |= {layout.own(name, member) for name in read}
    return sorted(found - {*rows(layout)})


def _read(text: Text, program: Program, wanted: Sequence[str]) -> set[str]:
    """What the gradients of some inputs of a program are computed from."""
    wanted = [name for name in wanted if name in program.inputs]
    if not wanted:
        return set()
    inputs = [node for node in derived(text, program, wanted).nodes if node.op == "placeholder"]
    return {str(node.target) for node in inputs if node.users} - {"grad"}
