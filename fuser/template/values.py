"""Values of a graph that no node holds: a two-operand einsum and a linear, read as a matmul of
permuted operands. So a template written with `@` and `transpose` finds them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from ..graph.ops import Op, is_tensor, read, value
from ..graph.pull import _einsum_terms


@dataclass(frozen=True)
class Permuted:
    """`value.permute(order)`."""

    value: Value
    order: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """`matmul(a, b)`, computed by a part of `node`."""

    node: Node
    a: Value
    b: Value


Value: TypeAlias = "Node | Permuted | Product"


@dataclass(frozen=True)
class _Matmul:
    """einsum(a, b) = permute(matmul(permute(first), permute(second)), out)."""

    first: int
    orders: tuple[tuple[int, ...], tuple[int, ...]]
    out: tuple[int, ...]


def permuted(inner: Value, order: tuple[int, ...]) -> Value:
    """A permutation, composed with one that is there already; nothing where it changes nothing."""
    if order == tuple(range(len(order))):
        return inner
    if isinstance(inner, Permuted):
        return permuted(inner.value, tuple(inner.order[i] for i in order))
    return Permuted(inner, order)


def opened(op: Op, node: Node) -> Value | None:
    """An einsum or linear node as a product, where it is one."""
    if node.op != "call_function":
        return None
    if node.target is F.linear:
        return _linear(node)
    if op.name != "einsum":
        return None
    found = _matmul_of(op)
    if found is None:
        return None
    operands = op.args["operands"]
    a, b = operands[found.first], operands[1 - found.first]
    product = Product(node, permuted(a, found.orders[0]), permuted(b, found.orders[1]))
    return permuted(product, found.out)


def open_einsums(graph: Graph, kept: Set[Node]) -> None:
    """Write every two-operand einsum of a template as matmul and permute, where it is one."""
    for node in list(graph.nodes):
        op = read(node)
        found = _matmul_of(op) if op.name == "einsum" and node not in kept else None
        if found is None:
            continue
        operands: Any = op.args["operands"]
        with graph.inserting_before(node):
            a = _permute(graph, operands[found.first], found.orders[0])
            b = _permute(graph, operands[1 - found.first], found.orders[1])
            new = _permute(graph, graph.call_function(torch.matmul, (a, b)), found.out)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _permute(graph: Graph, node: Node, order: tuple[int, ...]) -> Node:
    if order == tuple(range(len(order))):
        return node
    return graph.call_method("permute", (node, order))


def _linear(node: Node) -> Value | None:
    arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    weight, source = arguments.get("weight"), arguments.get("input")
    if arguments.get("bias") is not None or not is_tensor(weight) or not is_tensor(source):
        return None
    assert isinstance(weight, Node)
    assert isinstance(source, Node)
    return Product(node, source, Permuted(weight, (1, 0))) if value(weight).ndim == 2 else None


def _matmul_of(op: Op) -> _Matmul | None:
    """An einsum with one summed index as a matmul: one free index an operand and the rest shared,
    or nothing shared and several free indices of one operand."""
    equation, operands = op.args.get("equation"), op.args.get("operands", ())
    if not isinstance(equation, str) or len(operands) != 2 or not all(map(is_tensor, operands)):
        return None
    (a, b), out = _einsum_terms(equation, [value(x).ndim for x in operands])
    if any(len(set(term)) != len(term) for term in (a, b, out)):
        return None
    shared, inner = [n for n in out if n in a and n in b], [n for n in a if n not in out]
    rows, columns = [n for n in out if n not in b], [n for n in out if n not in a]
    fewer, more = sorted((len(rows), len(columns)))
    if len(inner) != 1 or fewer != 1 or (more > 1 and shared):
        return None
    if [n for n in b if n not in out] != inner:
        return None
    first = 0
    if len(columns) > 1 or (more == 1 and out.index(columns[0]) < out.index(rows[0])):
        first, a, b, rows, columns = 1, b, a, columns, rows
    made = [*shared, *rows, *columns]
    return _Matmul(
        first,
        (_positions(a, [*shared, *rows, *inner]), _positions(b, [*shared, *inner, *columns])),
        _positions(made, out),
    )


def _positions(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    return tuple(names.index(n) for n in wanted)
