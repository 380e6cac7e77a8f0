"""A program run with less memory: a result goes where its first operand was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import Interpreter, Node

_IN_PLACE = {
    "add": "add_", "sub": "sub_", "mul": "mul_", "truediv": "div_", "neg": "neg_",
    "tanh": "tanh_", "exp": "exp_", "sigmoid": "sigmoid_", "masked_fill": "masked_fill_",
}  # fmt: skip
"""Operators whose result has the dtype of a floating first operand, and their in-place methods."""


class Overwriting(Interpreter):
    """Writes a result over its first operand, where nothing reads that again."""

    def __init__(self, module: torch.fx.GraphModule, owned: Collection[str]) -> None:
        super().__init__(module)
        self._owned = set(owned)

    def run_node(self, n: Node) -> Any:
        name = _IN_PLACE.get(str(getattr(n.target, "__name__", n.target)))
        if name is None or not n.args or not self._may_overwrite(n.args[0], n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        first, shapes = args[0], [a.shape for a in args if isinstance(a, torch.Tensor)]
        if torch.broadcast_shapes(*shapes) != first.shape or _promoted(args) is not first.dtype:
            return super().run_node(n)
        return getattr(first, name)(*args[1:], **kwargs)

    def _may_overwrite(self, source: Any, reader: Node) -> bool:
        if not isinstance(source, Node) or set(source.users) != {reader}:
            return False
        if reader.all_input_nodes.count(source) != 1 or list(reader.args).count(source) != 1:
            return False
        if source.op == "placeholder":
            return str(source.target) in self._owned
        # `to` may return what it was given
        return source.op == "call_function"


def _promoted(args: Sequence[Any]) -> torch.dtype | None:
    """Dtype of the result; None where the first operand is not floating."""
    floating = [a for a in args if isinstance(a, torch.Tensor) and a.dtype is not torch.bool]
    if not all(a.is_floating_point() for a in floating):
        return None
    found = args[0].dtype
    for other in args[1:]:
        found = torch.promote_types(found, torch.result_type(args[0], other))
    return found
