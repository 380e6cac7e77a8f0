"""Choices sorted by their experts: which place each has, and where the next expert begins.

sorted, order = ids.sort()              ids are the choices, token by token
ends = cumsum(how often each is there)  rows of expert e end before place ends[e]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, fresh, leaves, same_size
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_pointwise
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from .arange import divided, is_arange
from .choices import distinct
from .copies import COPIES
from .filling import filled_with, put, writer

GROUPED = ("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
"""Products of runs of rows with a matrix each: torch's, and that of transformers for dtypes which
torch's does not take."""
_ROW_MAJOR = {"reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "getitem", "reshape_as"}
_PERMUTED = {*_ROW_MAJOR, "transpose", "permute", "t", "T", "mT", "movedim"}
_INTEGERS = {torch.int32, torch.int64}
WIDE = {*_INTEGERS, torch.float32, torch.float64}
"""Dtypes in which numbers of rows are exact."""


@dataclass(frozen=True)
class Order:
    """Rows in the order of their experts.

    Attributes:
        order: the number of the choice at each place; None where nothing is sorted.
        ids: the expert of each choice, in one dimension.
        row: the axis of the places.
    """

    order: Node | None
    ids: Node
    row: Dim

    def holds_ids(self, view: GraphView, node: Node) -> bool:
        """Whether a tensor has the expert of each place."""
        found = pair(view, node, 0)
        if found is None and (taken := picked(view.op(node))) is not None:
            found = taken[0] if self.holds_order(taken[1]) else None
        return found is not None and same_elements(view, found, self.ids)

    def holds_order(self, node: Node) -> bool:
        """Whether a tensor has the number of the choice at each place."""
        return node is self.order

    def holds_tokens(self, view: GraphView, node: Node, choices: int) -> bool:
        """Whether a tensor has the number of the token at each place."""
        found = divided(view.op(node))
        return found is not None and found[1] == choices and self.holds_order(found[0])

    def holds_ends(self, view: GraphView, node: Node, experts: int) -> bool:
        """Whether a tensor has, for each expert, the place after its last one."""
        op = view.op(node)
        if value(node).dtype not in WIDE:
            return False
        if op.name in ("to", "int") and is_tensor(op.args.get("input")):
            return self.holds_ends(view, op.args["input"], experts)
        if op.name == "searchsorted":
            return self._searched(view, op, experts)
        if op.name != "cumsum" or op.args.get("dim") not in (0, -1):
            return False
        return self.holds_counts(view, op.args["input"], experts)

    def _searched(self, view: GraphView, op: Op, experts: int) -> bool:
        """`searchsorted(sorted ids, arange(E), right=True)`."""
        ids, numbers = op.args.get("sorted_sequence"), op.args.get("input")
        right = op.args.get("right") is True or op.args.get("side") == "right"
        if not right or op.args.get("sorter") is not None or not is_tensor(numbers):
            return False
        counted = is_arange(view, numbers) and value(numbers).shape == (experts,)
        return counted and is_tensor(ids) and self.holds_ids(view, ids)

    def holds_counts(
        self, view: GraphView, node: Node, experts: int, *, short: bool = False
    ) -> bool:
        """Whether a tensor has how often each expert was chosen; where it may be `short`, perhaps
        not those after the last one that was."""
        op = view.op(node)
        moved = node.target == "cpu"  # which is no operator of the canonical view
        source: Any = node.args[0] if moved else op.args.get("input")
        if value(node).dtype not in WIDE:
            return False
        if moved or (op.name in ("to", "int", "long", "float", *COPIES) and is_tensor(source)):
            return self.holds_counts(view, source, experts, short=short)
        if op.name == "bincount":
            least = op.args.get("minlength", 0)
            whole = least == experts or (short and least == 0)
            return whole and op.args.get("weights") is None and self._same_ids(view, source)
        if op.name == "histc":
            bins = (op.args.get("bins"), op.args.get("min"))
            whole = op.args.get("max") in (experts - 1, experts)  # bins of one number each
            return bins == (experts, 0) and whole and self._same_ids(view, source)
        if op.name == "sum":
            return self._added_up(view, op, node, experts)
        if op.name in ("scatter_add", "index_add"):
            return self._scattered(view, op, node, experts)
        return False

    def _added_up(self, view: GraphView, op: Op, node: Node, experts: int) -> bool:
        """A sum of one-hot rows over everything but experts."""
        source, dim = op.args["input"], op.args.get("dim")
        rank = value(source).ndim
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        if not all(type(d) is int for d in dims) or value(node).shape != (experts,):
            return False
        if sorted(d % rank for d in dims) != list(range(rank - 1)):
            return False
        op = view.op(source)
        while op.name in ("to", "int", "long", "float") and is_tensor(op.args.get("input")):
            source = op.args["input"]
            op = view.op(source)
        if op.name == "one_hot":
            return self._same_ids(view, op.args["input"])
        if view.is_written(source) or op.name == "scatter":
            return self._marked(view, source)
        return op.name == "eq" and self._compared(view, op, source)

    def _marked(self, view: GraphView, node: Node) -> bool:
        """Zeros, and ones at the distinct choices of each token: `(T, E)`."""
        write = writer(view, node) if view.is_written(node) else node
        op = None if write is None else view.op(write)
        if op is None or write is None or op.name != "scatter" or op.args.get("reduce") is not None:
            return False
        base, index, ones = (op.args.get(name) for name in ("input", "index", "src"))
        at, last = view.order[write], value(node).ndim - 1
        if not (is_tensor(base) and is_tensor(index)) or op.args.get("dim") not in (last, -1):
            return False
        if write is not node and base is not node:
            return False
        one = filled_with(view, ones, at) if is_tensor(ones) else ones
        dims = fresh(value(index).shape, "n")
        whole = value(base).shape[:-1] == value(index).shape[:-1]
        plain = filled_with(view, base, at) == 0 and one == 1 and whole
        return plain and distinct(view, index, dims, dims[-1]) and self._same_ids(view, index)

    def _compared(self, view: GraphView, op: Op, node: Node) -> bool:
        """`ids[..., None] == arange(E)`."""
        dims = fresh(value(node).shape, "n")
        pulled = list(pull_pointwise(op, node, dims).items())
        for i, (numbers, own) in enumerate(pulled):
            found = is_arange(view, numbers, own, leaves(dims[-1:]))
            others = [pair for j, pair in enumerate(pulled) if j != i]
            if not found or len(others) != 1:
                continue
            ((ids, rest),) = others
            whole = set(leaves(rest)) == set(leaves(dims[:-1]))
            return whole and self._same_ids(view, ids)
        return False

    def _scattered(self, view: GraphView, op: Op, node: Node, experts: int) -> bool:
        """Ones that are added where their expert is."""
        base, ones = op.args["input"], op.args.get("src", op.args.get("source"))
        at, index = view.order[node], op.args.get("index")
        if not (is_tensor(base) and is_tensor(ones) and is_tensor(index)):
            return False
        if value(base).shape != (experts,) or value(ones).shape != value(index).shape:
            return False
        numbers = filled_with(view, base, at), filled_with(view, ones, at)
        plain = numbers == (0.0, 1.0) and op.args.get("alpha", 1) == 1
        return plain and self._same_ids(view, index)

    def _same_ids(self, view: GraphView, node: Node) -> bool:
        """Whether a tensor holds the choices, in any order."""
        op = view.op(node)
        if value(node).dtype not in WIDE:
            return False
        if op.name in ("to", "float", "int", "long") and is_tensor(op.args.get("input")):
            return self._same_ids(view, op.args["input"])
        found = same_elements(view, node, self.ids, _PERMUTED)
        return found or self.holds_ids(view, node)


def same_elements(view: GraphView, one: Node, other: Node, views: set[str] | None = None) -> bool:
    """Whether two tensors hold the same elements, row by row, or in any order."""
    roots = [_root(view, node, views or _ROW_MAJOR) for node in (one, other)]
    return roots[0] is roots[1]


def _root(view: GraphView, node: Node, views: set[str]) -> Node:
    op = view.op(node)
    while op.kind is Kind.VIEW and op.name in views and not op.inplace:
        node = op.args["input"]
        op = view.op(node)
    return node


def picked(op: Op) -> tuple[Node, Node] | None:
    """`(source, index)` of `source[index]`, both in one dimension."""
    source, index = op.args.get("input"), op.args.get("index")
    if isinstance(index, tuple) and len(index) == 1:
        (index,) = index
    one = op.name in ("index_select", "gather") and op.args.get("dim") in (0, -1)
    one |= op.name == "getitem" and op.kind is Kind.SLICE
    if not one or not is_tensor(source) or not is_tensor(index):
        return None
    plain = value(source).ndim == value(index).ndim == 1
    return (source, index) if plain and value(index).dtype in _INTEGERS else None


def ordered(view: GraphView, order: Node) -> Order | None:
    """What a tensor of positions is the sorted order of, if it is one."""
    ids = sorting(view, order)
    written = ids is not None and any(view.is_written(n) for n in (ids, order))
    return None if ids is None or written or value(ids).ndim != 1 else Order(order, ids, ())


def undone(view: GraphView, node: Node) -> Order | None:
    """The order that an index undoes: `rows[index]` are in the order of the choices again."""
    order = _inverted(view, node)
    return None if order is None else ordered(view, order)


def sorting(view: GraphView, node: Node) -> Node | None:
    """What a tensor is the sorted order of."""
    op = view.op(node)
    if op.name == "argsort":
        return _ascending(op.args)
    return pair(view, node, 1)


def pair(view: GraphView, node: Node, which: int) -> Node | None:
    """What was sorted, where a node is the values (0) or the order (1)."""
    source = node.args[0] if node.args else None
    target = getattr(node.target, "__name__", "")
    named: dict[Any, int] = {
        ("getitem", 0): 0,
        ("getitem", 1): 1,
        ("getattr", "values"): 0,
        ("getattr", "indices"): 1,
    }
    if not isinstance(source, Node) or len(node.args) < 2:
        return None
    if (
        not isinstance(node.args[1], (int, str))
        or named.get((target, node.args[1])) != which
        or view.op(source).name != "sort"
    ):
        return None
    return _ascending(view.op(source).args)


def _ascending(args: dict[str, object]) -> Node | None:
    source = args.get("input")
    plain = args.get("descending", False) is False and args.get("dim", -1) in (0, -1)
    return source if isinstance(source, Node) and plain else None


def _inverted(view: GraphView, node: Node) -> Node | None:
    """The order of which a tensor is the inverse: its own order, or places written at it."""
    if not view.is_written(node):
        found = sorting(view, node)
        write = node if found is None else None
    else:
        found, write = None, writer(view, node)
    if found is not None or write is None:
        return found
    index, places, base = _write(view, write)
    if not (is_tensor(index) and is_tensor(places) and is_tensor(base)):
        return None
    if base is not node and write is not node:
        return None
    sizes = [to_expr(value(n).shape[0]) for n in (node, index, places) if value(n).ndim == 1]
    same = len(sizes) == 3 and all(same_size(size, sizes[0]) for size in sizes)
    whole = value(index).dtype is value(places).dtype is torch.int64
    return index if is_arange(view, places) and same and whole else None


def _write(view: GraphView, node: Node) -> tuple[Any, Any, Any]:
    """The positions, the values, and the tensor of what is written along its one dimension."""
    op, found = view.op(node), put(view, node)
    if found is not None:
        target, index, values = found
        return (index[0] if len(index) == 1 else None), values, target
    if op.name in ("scatter", "index_copy") and op.args.get("dim") in (0, -1):
        plain = op.args.get("reduce") is None
        values = op.args.get("src", op.args.get("source"))
        return op.args.get("index") if plain else None, values, op.args.get("input")
    return None, None, None
