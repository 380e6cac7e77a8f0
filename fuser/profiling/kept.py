"""The work of what the inner backend keeps, from its ATen graph.

Products are kernels of their own. Everything else runs together with what it reads, and with what
reads the same, as far as no product lies between: the most that a compiler could fuse. What one
kernel makes and another reads is written once, and read once by each of them. Of a table no more is
read than is taken from it, and of one that is written to in part, a cache, that part is written.
What a checkpoint computes again is not counted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ..torch_private import OpOverload, to_expr
from .work import Amount, Work, distinct, size_bytes

_ATEN = torch.ops.aten
_REDUCTIONS = {
    getattr(_ATEN, name)
    for name in ("sum", "mean", "amax", "amin", "var", "var_mean", "prod", "argmax", "argmin")
}
_TAKES = {getattr(_ATEN, name) for name in ("embedding", "index", "gather", "index_select", "take")}
"""Some elements of their first argument."""
_PUTS = {
    getattr(_ATEN, name)
    for name in ("index_put_", "index_copy_", "scatter_", "index_add_", "scatter_add_")
}
"""Elements of their last tensor into some of their first argument."""
_CASTS = {_ATEN._to_copy, _ATEN.clone, _ATEN.copy, _ATEN.copy_, _ATEN.detach}


def work_of(module: GraphModule) -> Work:
    """The work of an ATen graph with example values in `meta["val"]`."""
    return _Counter(module).work()


def _attention_flops(*args: Any, **_: Any) -> Any:
    return sdpa_flop_count(*(x.shape for x in args[:3]))


def _attention_backward_flops(*args: Any, **_: Any) -> Any:
    return sdpa_backward_flop_count(*(x.shape for x in args[:4]))


def _dot_flops(a: torch.Tensor, *_: Any, **__: Any) -> Any:
    return 2 * a.numel()


def _vector_flops(matrix: torch.Tensor, *_: Any, **__: Any) -> Any:
    return 2 * matrix.numel()


def _product_flops(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> Any:
    return 2 * a.numel() * b.shape[-1]


_OWN: dict[Any, Callable[..., Any]] = {
    _ATEN.dot: _dot_flops,
    _ATEN.vdot: _dot_flops,
    _ATEN.mv: _vector_flops,
    _ATEN._int_mm: _product_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Products that the registry of torch lacks."""


class _Counter:
    def __init__(self, module: GraphModule) -> None:
        self.nodes = [n for n in module.graph.nodes if n.op == "call_function"]
        self.output = module.graph.output_node()
        self.roots: dict[Node, Node] = {}
        self.levels: dict[Node, int] = {}
        self.groups: dict[Node, Node] = {}
        self.readers: dict[tuple[Node, int], Node] = {}

    def work(self) -> Work:
        computing = [n for n in self.nodes if self._computes(n)]
        for node in computing:
            self._place(node)
        groups = {self._group(node) for node in computing}
        flops: Amount = sum(self._product(n) for n in computing if _formula(n) is not None)
        if not flops:
            flops = sum(_operations(n) for n in computing)
        return Work(flops, self._bytes(computing), len(groups))

    def _computes(self, node: Node) -> bool:
        """Whether it is no view, and no member of several results."""
        if node.target is operator.getitem or _is_view(node):
            source = node.all_input_nodes[0]
            self.roots[node] = self.roots.get(source, source)
            return False
        return True

    def _root(self, node: Node) -> Node:
        return self.roots.get(node, node)

    def _place(self, node: Node) -> None:
        """Finds how many products lie before a node, and puts it to the group of what it reads."""
        product = _formula(node) is not None
        sources = [s for s in map(self._root, node.all_input_nodes) if s in self.levels]
        behind = [self.levels[s] + (_formula(s) is not None) for s in sources]
        self.levels[node] = max(behind, default=0)
        self.groups[node] = node
        if product:
            return
        level = self.levels[node]
        together = [s for s in sources if _formula(s) is None and self.levels[s] == level]
        roots = map(self._root, node.all_input_nodes)
        together += [self.readers.setdefault((root, level), node) for root in roots]
        for other in together:
            self.groups[self._group(other)] = self._group(node)

    def _group(self, node: Node) -> Node:
        while self.groups[node] is not node:
            node = self.groups[node]
        return node

    def _bytes(self, computing: Sequence[Node]) -> Amount:
        read: dict[tuple[Node, Node], Amount] = {}
        written = {node: None for node in computing if _packet(node) in _PUTS}
        for node in computing:
            own = self._group(node)
            for source in node.all_input_nodes:
                root = self._root(source)
                if root in self.groups and self._group(root) is own:
                    continue
                amount = _read_of(node, source)
                read[own, root] = _more(amount, read.get((own, root), amount))
                if root in self.groups:
                    written[root] = None
        for root in map(self._root, self.output.all_input_nodes):
            if root in self.groups:
                written[root] = None
        return sum(read.values()) + sum(map(_written_by, written))

    def _product(self, node: Node) -> Amount:
        formula = _formula(node)
        assert formula is not None
        examples = torch.fx.map_arg(node.args, _example)
        keywords = torch.fx.map_arg(node.kwargs, _example)
        result = _example(node)
        found = to_expr(formula(*examples, **keywords, out_val=result))
        if isinstance(result, torch.Tensor) and result.is_complex():
            return 4 * found
        return found * _visible(node) if isinstance(found, int) else found


def _packet(node: Node) -> Any:
    return node.target.overloadpacket if isinstance(node.target, OpOverload) else node.target


def _formula(node: Node) -> Callable[..., Any] | None:
    packet = _packet(node)
    return _OWN.get(packet) or flop_registry.get(packet)


def _visible(node: Node) -> Fraction:
    """The share of pairs of a query and a key that an attention computes: those of a causal one, at
    sizes that are known."""
    if not _packet(node).__name__.startswith("_scaled_dot_product"):
        return Fraction(1)
    names = (argument.name for argument in node.target._schema.arguments)  # type: ignore[union-attr]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    rows, keys = (_example(given[name]).shape[-2] for name in ("query", "key"))
    if not given.get("is_causal") or not isinstance(rows, int) or not isinstance(keys, int):
        return Fraction(1)
    both = min(rows, keys)
    pairs = both * (both + 1) // 2 + (rows - both) * keys
    return Fraction(pairs, max(1, rows * keys))


def _is_view(node: Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    return node.target.is_view or node.target.overloadpacket is _ATEN._unsafe_view


def _example(node: Node) -> Any:
    return node.meta.get("val")


def _more(a: Amount, b: Amount) -> Amount:
    """The larger one; of symbolic ones that which came first."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else b


def _less(a: Amount, b: Amount) -> Amount:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else a


def _read_of(node: Node, source: Node) -> Amount:
    """Bytes of a tensor that an operator reads."""
    packet = _packet(node)
    if source is not node.args[0] or packet not in (_TAKES | _PUTS):
        return _size(source)
    return _less(_size(node), _size(source)) if packet in _TAKES else 0


def _written_by(node: Node) -> Amount:
    """Bytes of its result that an operator writes."""
    return _put(node) * _example(node).itemsize if _packet(node) in _PUTS else _size(node)


def _put(node: Node) -> Amount:
    """Elements that are written to a part of a tensor."""
    return distinct(_example([n for n in node.all_input_nodes if n is not node.args[0]][-1]))


def _size(node: Node) -> Amount:
    example = _example(node)
    found = example if isinstance(example, (tuple, list)) else [example]
    return sum(size_bytes(x) for x in found if isinstance(x, torch.Tensor))


def _operations(node: Node) -> Amount:
    """One for each element: of what a reduction reads, or of what another operator gives."""
    packet = _packet(node)
    if packet in _CASTS or not node.all_input_nodes:
        return 0
    if packet in _PUTS:
        return _put(node)
    reads = packet in _REDUCTIONS or packet.__name__.startswith(("_softmax", "native_"))
    example = _example(node.all_input_nodes[0] if reads else node)
    return distinct(example) if isinstance(example, torch.Tensor) else 0
