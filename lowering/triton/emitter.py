"""Prints a graph of ATen pointwise operators as Triton, one assignment a node.

Half precision is held in fp32 registers, rounded to its dtype wherever eager would have stored it;
every other dtype is held as it is. Operands are cast to the dtype in which eager computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from .pointwise import RULES
from .trace import NotPrintable
from .values import EIGHTHS, HALVES, Number, Value, held, literal, type_name

_CALL = re.compile(r"(?<![\w.])(?!float\()([a-z]\w*)\(")
"""Functions that are not `tl.something`."""
_ATOM = re.compile(r"\w+(\[[^\]]*\])?|-?[\d.]+(e[-+]?\d+)?|float\(\"-?\w+\"\)")
__all__ = ["Emitter", "NotPrintable", "Value", "held"]


@dataclass
class Emitter:
    """Writes Triton, a line an assignment; equal expressions are assigned once.

    What names stand for must not change while an emitter is in use.

    Attributes:
        write: receives one line of source.
        prefix: of the names that are assigned.
        functions: names from `functions.py` that the text uses.
    """

    write: Callable[[str], None]
    prefix: str = "t"
    functions: set[str] = field(default_factory=set[str])
    _made: dict[str, str] = field(default_factory=dict[str, str])

    def run(self, graph: Graph, inputs: Mapping[str, Value]) -> list[Value]:
        """Emit a graph of `trace`; the values of its outputs, in order, some perhaps literals.

        Args:
            graph: of ATen pointwise operators.
            inputs: a value for each placeholder that is read, held as this module says; they may
                broadcast.

        Raises:
            NotPrintable: an operator or a dtype has no Triton text here.
        """
        values: dict[Node, Value] = {}
        outputs: list[Value] = []
        for node in graph.nodes:
            if node.op == "placeholder" and not node.users:
                continue
            if node.op == "placeholder":
                given = inputs[str(node.target)]
                values[node] = Value(_atom(given.text), given.dtype)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], (tuple, list)) else node.args
                outputs = [values[result] for result in results]  # type: ignore[index]
            else:
                values[node] = self._node(node, values)
        return outputs

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The value in another dtype, as `Tensor.to` converts it."""
        source, target = held(value.dtype), held(dtype)
        if value.dtype == dtype:
            return value
        if value.dtype in EIGHTHS:
            raise NotPrintable(f"{value.dtype} is only stored by a generated kernel")
        if dtype in EIGHTHS:
            wide = self.cast(value, torch.float32)
            return self.let(f"{str(dtype).removeprefix('torch.')}({self.tensor(wide).text})", dtype)
        if value.number is not None:
            return literal(value.number, dtype)
        if dtype is torch.bool:
            return self.let(f"{value.text} != {literal(0, source).text}", dtype)
        if source != target:
            value = self.let(f"{value.text}.to(tl.{type_name(target)})", target)
        if dtype in HALVES:
            return self.let(self.rounded(value.text, dtype), dtype)
        return Value(value.text, dtype)

    def rounded(self, text: str, dtype: torch.dtype) -> str:
        """An fp32 expression rounded to half precision; the same text for other dtypes."""
        return f"{type_name(dtype)}({text})" if dtype in HALVES else text

    def let(self, text: str, dtype: torch.dtype) -> Value:
        """Assign an expression to a fresh name, or find the name that it has."""
        if text not in self._made:
            self._made[text] = f"{self.prefix}{len(self._made)}"
            self.functions.update(_CALL.findall(text))
            self.write(f"{self._made[text]} = {text}")
        return Value(self._made[text], dtype)

    def tensor(self, value: Value) -> Value:
        """A literal as one of Triton's scalars, which alone have a dtype; others as they are."""
        if value.number is None:
            return value
        return self.let(
            f"tl.full([], {value.text}, tl.{type_name(held(value.dtype))})", value.dtype
        )

    def _node(self, node: Node, values: Mapping[Node, Value]) -> Value:
        target: Any = node.target
        name = str(target.overloadpacket.__name__)
        if name not in RULES:
            raise NotPrintable(f"{name} has no Triton text")
        return RULES[name](Site(self, node, values))


def _atom(text: str) -> str:
    """A name, a name with a subscript and a literal as they are, all else in parentheses."""
    return text if _ATOM.fullmatch(text) else f"({text})"


class Site:
    """One node on its way to text: its operands in the dtype that a rule asks for.

    Attributes:
        emitter: to which the text goes.
        dtype: of the node.
    """

    def __init__(self, emitter: Emitter, node: Node, values: Mapping[Node, Value]) -> None:
        self.emitter = emitter
        self.dtype: torch.dtype = node.meta["val"].dtype
        self._node, self._values = node, values

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """A literal argument of the operator; a node where a tensor was given."""
        args, kwargs = self._node.args, self._node.kwargs
        return args[position] if position < len(args) else kwargs.get(name, default)

    @property
    def gathered(self) -> list[Value]:
        """A table and the indices of an element of it."""
        table, indices = self._node.args
        return [self._values[n] for n in (table, *indices)]  # type: ignore[index, misc]

    @property
    def promoted(self) -> torch.dtype:
        """In which the first two operands are compared."""
        x, y = (a.meta["val"] if isinstance(a, Node) else a for a in self._node.args[:2])
        return torch.result_type(x, y)  # type: ignore[arg-type]

    @property
    def source(self) -> torch.dtype:
        """Of the first operand."""
        return self._node.args[0].meta["val"].dtype  # type: ignore[union-attr]

    def operand(self, argument: Any, dtype: torch.dtype | None = None) -> Value:
        """An argument in `dtype`, that of the node if not given."""
        if isinstance(argument, Node):
            return self.emitter.cast(self._values[argument], dtype or self.dtype)
        return literal(argument, dtype or self.dtype)

    def wide(self, argument: Any) -> Value:
        """An operand of + - * /: eager on a GPU does not round numbers to half; nor 0-d tensors
        here, which numbers may have become."""
        if self.dtype in HALVES and not isinstance(argument, Node):
            return literal(argument, torch.float32)
        if self.dtype in HALVES and argument.meta["val"].ndim == 0:
            return self.emitter.cast(self._values[argument], torch.float32)
        return self.operand(argument)

    def operands(self, count: int, dtype: torch.dtype | None = None) -> list[Value]:
        """The first arguments in `dtype`, or as operands of + - * /; one at least no literal."""
        get = self.wide if dtype is None else lambda a: self.operand(a, dtype)
        found = [get(argument) for argument in self._node.args[:count]]
        if all(value.number is not None for value in found):
            found[0] = self.emitter.tensor(found[0])
        return found

    def tensors(self, count: int, dtype: torch.dtype | None = None) -> list[Value]:
        """As `operands`, with no bare numbers."""
        return [self.emitter.tensor(value) for value in self.operands(count, dtype)]

    def plain(self, values: Sequence[Value]) -> list[Value]:
        """Values whose dtype Triton gets right by itself: a bare number is fp32 to it."""
        return [v if held(v.dtype) is torch.float32 else self.emitter.tensor(v) for v in values]

    def constant(self, number: Number) -> Value:
        """The node's value, known already."""
        return literal(number, self.dtype)

    def exact(self, text: str) -> Value:
        """The node's value, of an expression that cannot leave its dtype."""
        return self.emitter.let(text, self.dtype)

    def result(self, text: str) -> Value:
        """The node's value, rounded to its dtype."""
        return self.emitter.let(self.emitter.rounded(text, self.dtype), self.dtype)
