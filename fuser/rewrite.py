"""Put the planned replacement in the place of a region, and prove that nobody can tell.

The new value must have the shape, dtype and device of the old one. Strides may differ where
everything downstream computes the same strides from both (a `transpose(1, 2).contiguous()` does);
otherwise the old strides are restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .builder import Builder
from .errors import ReplacementMismatchError
from .graph.axes import same_size
from .graph.ops import value
from .swallowed import swallow
from .torch_private import (
    FakeTensorMode,
    HigherOrderOperator,
    OpOverload,
    faked,
    known_true,
    memory,
    to_expr,
)

_MAX_FOLLOWED = 24


class Rewriter:
    """Rewrites one graph; `shared` makes equal replacements' helper nodes common to all regions."""

    def __init__(self, module: GraphModule, fake_mode: FakeTensorMode) -> None:
        self.module, self.fake_mode = module, fake_mode
        self.shared: dict[Any, Node] = {}
        self.replaced: dict[Node, Node] = {}
        self._returned: dict[Any, Any] = {}

    def builder(self, anchor: Node, sizes_from: list[Node], *, share: bool) -> Builder:
        return Builder(
            self.module,
            anchor,
            self.fake_mode,
            self.shared if share else None,
            sizes_from,
            self.replaced,
        )

    def replace(
        self,
        builder: Builder,
        pattern: str,
        outputs: Sequence[Node],
        results: Sequence[Node],
        inputs: Sequence[Node],
    ) -> None:
        """Make every user of `outputs` read `results`, all of them or none.

        Args:
            builder: of the region.
            pattern: its id.
            outputs, results: the old values and the new ones.
            inputs: what the region reads.

        Raises:
            ReplacementMismatchError: two differ in what a user can see.
        """
        for index, (old, new) in enumerate(zip(outputs, results, strict=True)):
            _require_same(pattern, index, value(old), value(new))
        results = _separate(builder, pattern, outputs, results, inputs)
        results = [
            self._apart(builder, old, new) for old, new in zip(outputs, results, strict=True)
        ]
        pairs = list(zip(outputs, results, strict=True))
        placed = [
            new
            if _same_strides(value(old), value(new)) or self._follow(old, new)
            else _restride(builder, pattern, index, value(old), new)
            for index, (old, new) in enumerate(pairs)
        ]
        for old, new in zip(outputs, placed, strict=True):
            old.replace_all_uses_with(new)
            self.replaced[old] = new

    def _apart(self, builder: Builder, old: Node, new: Node) -> Node:
        """A copy of what equal regions have in common, where both of them return it: the caller may
        write to one, and read the other."""
        if not _is_returned(old):
            return new
        first = self._returned.setdefault(_memory(new), _memory(old))
        return new if first == _memory(old) else builder.unshared(torch.clone, new)

    def _follow(self, old: Node, new: Node) -> bool:
        """Whether all values downstream keep their strides; updates examples where they may not."""
        changed: dict[Node, Any] = {old: value(new)}
        pending = list(old.users)
        seen: set[Node] = set()
        while pending:
            node = pending.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node.op not in ("call_function", "call_method") or len(seen) > _MAX_FOLLOWED:
                return False
            if not isinstance(value(node), torch.Tensor) or _reads_strides(node):
                return False
            try:
                example = self._rerun(node, changed)
            except Exception as error:  # a view that needs the old strides
                swallow(error)
                return False
            if not isinstance(example, torch.Tensor) or example.shape != value(node).shape:
                return False
            if not _same_strides(value(node), example):
                changed[node] = example
                pending.extend(node.users)
        for node, example in changed.items():
            node.meta["example_value"] = example
        return True

    def _rerun(self, node: Node, changed: dict[Node, Any]) -> Any:
        look = lambda n: changed.get(n, value(n))  # noqa: E731
        args, kwargs = map_arg(node.args, look), map_arg(node.kwargs, look)
        with faked(self.fake_mode):
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _reads_strides(node: Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    if name in ("stride", "is_contiguous", "as_strided", "storage_offset") or name.endswith("_"):
        return True
    if isinstance(node.target, OpOverload):
        return node.target.namespace != "aten"
    return isinstance(node.target, HigherOrderOperator)


def _require_same(pattern: str, index: int, old: Any, new: Any) -> None:
    if not isinstance(new, torch.Tensor):
        raise ReplacementMismatchError(pattern, index, "type", "a tensor", type(new).__name__)
    if len(old.shape) != len(new.shape) or not all(
        known_true(a == b) for a, b in zip(old.shape, new.shape, strict=True)
    ):
        raise ReplacementMismatchError(pattern, index, "shape", tuple(old.shape), tuple(new.shape))
    for what in ("dtype", "device"):
        if getattr(old, what) != getattr(new, what):
            raise ReplacementMismatchError(
                pattern, index, what, getattr(old, what), getattr(new, what)
            )
    if old.requires_grad != new.requires_grad:
        raise ReplacementMismatchError(
            pattern, index, "requires_grad", old.requires_grad, new.requires_grad
        )


def _separate(
    builder: Builder,
    pattern: str,
    outputs: Sequence[Node],
    results: Sequence[Node],
    inputs: Sequence[Node],
) -> list[Node]:
    """Results that share memory only where the originals do: whoever writes to one must not
    change another."""
    kept = {_memory(node): _memory(builder.current(node)) for node in inputs}
    separate: list[Node] = []
    for index, (old, new) in enumerate(zip(outputs, results, strict=True)):
        if _memory(old) in kept and kept[_memory(old)] != _memory(new):
            raise ReplacementMismatchError(
                pattern, index, "memory", "a view of another tensor", "memory of its own"
            )
        if _memory(old) not in kept and _memory(new) in kept.values():
            new = builder.unshared(torch.clone, new)
        kept[_memory(old)] = _memory(new)
        separate.append(new)
    return separate


def _is_returned(node: Node) -> bool:
    """Whether a tensor, or a view of it, is an output of the graph."""
    memory, pending, seen = _memory(node), [node], set[Node]()
    while pending:
        users = [u for u in pending.pop().users if u not in seen]
        if any(u.op == "output" for u in users):
            return True
        seen.update(users)
        pending += [u for u in users if _memory(u) == memory]
    return False


def _memory(node: Node) -> Any:
    example = value(node)
    return memory(example) if isinstance(example, torch.Tensor) else node


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether nobody can tell; of no elements, nobody can."""
    if any(isinstance(size, int) and size == 0 for size in a.shape):
        return True
    for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True):
        if isinstance(size, int) and size == 1:
            continue
        if not known_true(x == y) and not same_size(_of_some(x), _of_some(y)):
            return False
    return True


def _of_some(stride: int | torch.SymInt) -> Any:
    """A stride of a tensor that is not empty: one that is has `Max(1, size)` in its strides."""
    found: Any = to_expr(stride)
    if isinstance(found, int):
        return found
    return found.replace(_is_at_least_one, lambda e: next(a for a in e.args if a != 1))


def _is_at_least_one(e: Any) -> bool:
    return type(e).__name__ == "Max" and len(e.args) == 2 and 1 in e.args


def _restride(builder: Builder, pattern: str, index: int, old: torch.Tensor, new: Node) -> Node:
    """A copy of `new` with the strides of `old`, which must be dense."""
    order = sorted(range(old.ndim), key=lambda d: _hint(old.stride(d)), reverse=True)
    if order == list(range(old.ndim)):
        node = builder.method("contiguous", new)
    else:
        back = [order.index(d) for d in range(old.ndim)]
        node = builder.method("permute", new, tuple(order))
        node = builder.method("contiguous", node)
        node = builder.method("permute", node, tuple(back))
    if not _same_strides(old, value(node)):
        raise ReplacementMismatchError(
            pattern, index, "strides", old.stride(), value(node).stride()
        )
    return node


def _hint(stride: Any) -> int:
    if isinstance(stride, int):
        return stride
    hint = stride.node.hint
    return int(hint) if hint is not None else 0
