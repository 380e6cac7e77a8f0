"""What the library's kernels compute of a chain: a weight and a bias right after the statistics."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from fuser.graph.program import Program
from fuser.specs import NormSpec

_PRODUCTS = (torch.mul, operator.mul)
_SUMS = (torch.add, operator.add)


@dataclass(frozen=True)
class Affine:
    """The beginning of the program after a normalisation.

    Attributes:
        graph: of the whole program.
        end: whose value the kernel gives; what comes after is left to the inner backend.
        dtype: of that value.
        weight: name of the operand that is multiplied, empty for none.
        bias: of the one that is added.
    """

    graph: Graph
    end: Node
    dtype: torch.dtype
    weight: str = ""
    bias: str = ""


def leading(spec: NormSpec, *, bare: bool = False) -> list[Affine]:
    """Of each program after the norm the longest beginning that is a weight, a bias, and a cast; or
    a cast alone, where it is to be `bare`, and nothing where they differ in that."""
    found = [_leading(program, spec.norm_dtype, bare) for program in spec.after]
    alike = {(of.weight, of.bias, of.dtype) for of in found}
    return (
        found if len(alike) == 1 else [_nothing(program, spec.norm_dtype) for program in spec.after]
    )


def _nothing(program: Program, dtype: torch.dtype) -> Affine:
    (end,) = (n for n in program.graph.nodes if n.op == "placeholder" and n.target == "n")
    return Affine(program.graph, end, dtype)


def _leading(program: Program, dtype: torch.dtype, bare: bool) -> Affine:
    start = _nothing(program, dtype)
    end, weight, bias = start.end, "", ""
    found = None if bare else _with(end, _PRODUCTS)
    if found is not None:
        end, weight = found
    found = None if bare else _with(end, _SUMS)
    if found is not None:
        end, bias = found
    cast = _only(end)
    to = cast.kwargs.get("dtype") if cast is not None and cast.target == "to" else None
    if cast is not None and isinstance(to, torch.dtype):
        end, dtype = cast, to
    return Affine(start.graph, end, dtype, weight, bias)


def _only(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _with(node: Node, functions: tuple[object, ...]) -> tuple[Node, str] | None:
    """The only user, where it combines the node with an operand in fp32; and the operand's name."""
    user = _only(node)
    if user is None or user.target not in functions or user.kwargs or len(user.args) != 2:
        return None
    (other,) = (a for a in user.args if a is not node) if user.args[0] is not user.args[1] else (0,)
    if isinstance(other, Node) and other.op == "call_method" and other.target == "to":
        other = other.args[0]
    if not isinstance(other, Node) or other.op != "placeholder":
        return None
    return user, str(other.target)
