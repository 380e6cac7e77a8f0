"""Pointwise programs: FX graphs over scalars of one position, printable and hashable.

A program has named inputs and one result. It is kept as an FX graph of torch functions in the
order in which the user's code applied them, with the user's dtypes: interpreting it on whole
tensors *is* the reference. `to_json`/`from_json` move it through the string argument of an op.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from ..torch_private import BUILTIN_FUNCTIONS
from .ops import FUNCTIONS, Kind, Op, is_tensor
from .overwriting import Overwriting


def gather(table: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
    """`table[i_0, i_1, ...]`, one index for every dimension; indices broadcast against each other.

    Indices count from the start. They are within the table wherever the program is at a position
    that exists; a kernel that runs it beyond the last query or key must not read there.
    """
    return table[indices]


def rounded(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """`x.to(dtype)`, which `Program.widened` leaves: a captured value that is coarse as it is."""
    return x.to(getattr(torch, dtype))


POSITIONS = ("ib", "ih", "iq", "ik")
"""Inputs that are positions: batch, query head, query, key; int64 tensors, from 0 to the size - 1,
which is below 2**31. Arithmetic on them is that of int64, but an intermediate value stays below
2**31 too unless the user's own does not."""
SIZES = ("nb", "nh", "nq", "nk")
"""Inputs that are Python numbers: how many batches, query heads, queries and keys there are."""
_SOURCES = {
    "torch": torch,
    "F": F,
    "operator": operator,
    "program": SimpleNamespace(gather=gather, rounded=rounded),
}


def functional(op: Op) -> Any:
    """The out-of-place torch callable for a canonical pointwise operator."""
    name = {"bool": "to", "int": "to", "long": "to"}.get(op.name, op.name)
    for source in (torch, F, BUILTIN_FUNCTIONS):
        found = getattr(source, name, None)
        if callable(found) and not isinstance(found, type):
            return found
    raise KeyError(op.name)


CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "int": torch.int32,
    "long": torch.int64,
}
IDENTITIES = {"clone", "contiguous", "alias", "positive"}


class ProgramBuilder:
    """Builds one program; nodes of the program stand for values of the region."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.inputs: list[str] = []

    def input(self, name: str) -> Node:
        """A new input; the JSON form lists inputs first, wherever they were added."""
        self.inputs.append(name)
        return self.graph.placeholder(name)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(function, args, kwargs)

    def pointwise(self, op: Op, node: Node, mapped: Mapping[Node, Node]) -> Node:
        """Append the operator of `node`, its node arguments replaced by program nodes; what is
        written in place is rounded to the dtype that is there."""
        made, dtype = self._pointwise(op, node, mapped), node.meta["example_value"].dtype
        read = [n.meta["example_value"].dtype for n in node.all_input_nodes if is_tensor(n)]
        if op.inplace and any(other is not dtype for other in read):
            return self.graph.call_method("to", (made,), {"dtype": dtype})
        return made

    def _pointwise(self, op: Op, node: Node, mapped: Mapping[Node, Node]) -> Node:
        source: Any = op.args.get("input")
        if op.name in IDENTITIES:
            return mapped[source]
        dtype = node.meta["example_value"].dtype
        if op.name in ("to", "type_as", "type", *CASTS):
            if is_tensor(source) and source.meta["example_value"].dtype == dtype:
                return mapped[source]
            return self.graph.call_method("to", (mapped[source],), {"dtype": dtype})
        mapped = self._natural(op, node, mapped, dtype)
        args = {k: v for k, v in op.args.items() if k != "inplace"}
        swap = lambda v: mapped.get(v, v) if isinstance(v, Node) else v  # noqa: E731
        order = _POSITIONAL.get(op.name, ("input", "other"))
        positional = [swap(args[n]) for n in order if n in args]
        keywords = {n: swap(a) for n, a in args.items() if n not in order}
        if op.name == "rsub":
            alpha = keywords.pop("alpha", 1)
            scaled = positional[0] if alpha == 1 else self.call(torch.mul, positional[0], alpha)
            return self.call(operator.sub, positional[1], scaled)
        if op.name in _OPERATORS and not keywords:
            return self.call(_OPERATORS[op.name], *positional)
        return self.call(functional(op), *positional, **keywords)

    def _natural(
        self, op: Op, node: Node, mapped: Mapping[Node, Node], dtype: torch.dtype
    ) -> Mapping[Node, Node]:
        """Spell out the cast that autocast made: operands in the dtype of the result."""
        dtypes = [n.meta["example_value"].dtype for n in node.all_input_nodes if is_tensor(n)]
        if (
            not dtype.is_floating_point
            or dtype in dtypes
            or not any(d.is_floating_point for d in dtypes)
        ):
            return mapped
        return {
            source: self.graph.call_method("to", (inner,), {"dtype": dtype})
            if is_tensor(source) and source.meta["example_value"].dtype.is_floating_point
            else inner
            for source, inner in mapped.items()
        }

    def finish(self, result: Node) -> Program:
        self.graph.output(result)
        self.graph.eliminate_dead_code()
        return Program(to_json(self.graph))


_POSITIONAL = {
    "where": ("condition", "input", "other"),
    "masked_fill": ("input", "mask", "value"),
    "lerp": ("input", "end", "weight"),
    "addcmul": ("input", "tensor1", "tensor2"),
    "addcdiv": ("input", "tensor1", "tensor2"),
}
# Python scalars may stand on either side of these, which torch.add and its kin do not all take.
_OPERATORS: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "pow": operator.pow, "remainder": operator.mod, "floor_divide": operator.floordiv,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "bitwise_and": operator.and_,
    "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
}  # fmt: skip


class Program:
    """An immutable pointwise program; equal and hashable by its text.

    Attributes:
        text: the JSON form.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def graph(self) -> Graph:
        return from_json(self.text)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, in order."""
        return list(_names(self.text))

    def __call__(self, **inputs: Any) -> Any:
        """Run the program on tensors that broadcast against each other."""
        return _run(self.text, inputs)

    def consume(self, owned: Collection[str], **inputs: Any) -> Any:
        """Run the program without gradients; the inputs named in `owned` may be overwritten."""
        return Overwriting(_module(self.text), owned).run(*_in_order(self.text, inputs))

    def without(self, names: Collection[str]) -> Program:
        """The program with the named steps left out: their first operand that is no mask or bias.

        An operand counts as such where it depends on a score or probability (`s0`, `p`); inputs
        that nothing reads any more are dropped.
        """
        if not names:
            return self
        graph, copies = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.graph, copies))
        dropped = [copy for node, copy in copies.items() if node.name in names]
        live: set[Node] = set()
        for node in graph.nodes:
            is_score = node.op == "placeholder" and str(node.target)[0] in "sp"
            if is_score or live & set(node.all_input_nodes):
                live.add(node)
        for node in dropped:
            node.replace_all_uses_with(next(n for n in node.all_input_nodes if n in live))
            graph.erase_node(node)
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if node.op == "placeholder" and not node.users and node not in live:
                graph.erase_node(node)
        return Program(to_json(graph))

    def masked(self, keep: str) -> Program:
        """The program with its result at -inf where the new, boolean input `keep` is false."""
        data = json.loads(self.text)
        fill = _encode(-math.inf)
        data["inputs"].append(keep)
        data["body"].append(["kept", "torch:where", [{"$": keep}, {"$": data["out"]}, fill], {}])
        return Program(json.dumps({**data, "out": "kept"}, separators=(",", ":")))

    def scaled(self, factors: Mapping[str, float]) -> Program:
        """The program of inputs that are multiplied with numbers first, by name."""
        graph, copies = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.graph, copies))
        first = next(node for node in graph.nodes if node.op != "placeholder")
        for node in copies.values():
            if node.op == "placeholder" and node.target in factors:
                users = list(node.users)
                with graph.inserting_before(first):
                    product = graph.call_function(torch.mul, (node, factors[str(node.target)]))
                for user in users:
                    user.replace_input_with(node, product)
        return Program(to_json(graph))

    def widened(self) -> Program:
        """The program with its casts to half precision read as casts to fp32."""
        text = self.text
        for name in ("bfloat16", "float16"):
            text = text.replace(f'{{"dtype":"{name}"}}', '{"dtype":"float32"}')
        return Program(text)

    def formula(self) -> str:
        """One line of readable algebra."""
        return _formula(self.graph)

    __str__ = formula
    __repr__ = formula


IDENTITY_TEXT = json.dumps({"inputs": ["p"], "body": [], "out": "p"})


def _target_name(node: Node) -> str:
    if node.op == "call_method":
        return f"method:{node.target}"
    own = str(getattr(node.target, "__name__", ""))
    for name in (own, FUNCTIONS.get(node.target, (own,))[0]):  # type: ignore[call-overload]
        for prefix, source in _SOURCES.items():
            if getattr(source, name, None) is node.target:
                return f"{prefix}:{name}"
    raise KeyError(f"no stable name for {node.target}")


def _encode(argument: Any) -> Any:
    if isinstance(argument, Node):
        return {"$": argument.name}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if isinstance(argument, float):
        return {
            "float": argument.hex()
            if argument == argument and abs(argument) != float("inf")
            else str(argument)
        }
    if argument is None or isinstance(argument, (bool, int, str)):
        return argument
    raise KeyError(f"an argument that cannot be serialised: {argument!r}")


def _decode(argument: Any, nodes: Mapping[str, Node]) -> Any:
    if not isinstance(argument, dict):
        return argument
    ((kind, content),) = argument.items()
    if kind == "$":
        return nodes[content]
    if kind == "dtype":
        return getattr(torch, content)
    return float.fromhex(content) if "0x" in content else float(content)


def to_json(graph: Graph) -> str:
    body: list[Any] = []
    inputs: list[str] = []
    out = ""
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "output":
            out = node.args[0].name
        else:
            kwargs = {k: _encode(v) for k, v in node.kwargs.items()}
            body.append([node.name, _target_name(node), [_encode(a) for a in node.args], kwargs])
    return json.dumps({"inputs": inputs, "body": body, "out": out}, separators=(",", ":"))


@lru_cache(maxsize=4096)
def from_json(text: str) -> Graph:
    data = json.loads(text)
    graph = Graph()
    nodes: dict[str, Node] = {name: graph.placeholder(name) for name in data["inputs"]}
    for name, target, args, kwargs in data["body"]:
        source, _, attribute = target.partition(":")
        positional = tuple(_decode(a, nodes) for a in args)
        keywords = {k: _decode(v, nodes) for k, v in kwargs.items()}
        if source == "method":
            node = graph.call_method(attribute, positional, keywords)
        else:
            node = graph.call_function(getattr(_SOURCES[source], attribute), positional, keywords)
        nodes[name] = node
    graph.output(nodes[data["out"]])
    return graph


@lru_cache(maxsize=4096)
def _module(text: str) -> torch.fx.GraphModule:
    return torch.fx.GraphModule({}, from_json(text))


def _in_order(text: str, inputs: Mapping[str, Any]) -> list[Any]:
    return [inputs[name] for name in _names(text)]


@lru_cache(maxsize=1024)
def _names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text)["inputs"])


def _run(text: str, inputs: Mapping[str, Any]) -> Any:
    return _module(text).forward(*_in_order(text, inputs))


_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "lt": "<", "le": "<=",
            "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and_": "&", "or_": "|"}  # fmt: skip


def _formula(graph: Graph) -> str:
    text: dict[Node, str] = {}

    def show(argument: Any) -> str:
        if isinstance(argument, Node):
            return text[argument]
        if isinstance(argument, float):
            return f"{argument:.6g}"
        return str(argument).removeprefix("torch.")

    for node in graph.nodes:
        if node.op == "placeholder":
            text[node] = str(node.target)
        elif node.op == "output":
            return show(node.args[0])
        else:
            name = str(getattr(node.target, "__name__", node.target))
            parts = [show(a) for a in node.args]
            parts += [show(v) if k == "dtype" else f"{k}={show(v)}" for k, v in node.kwargs.items()]
            if name in _SYMBOLS and len(parts) == 2:
                text[node] = f"({parts[0]} {_SYMBOLS[name]} {parts[1]})"
            else:
                text[node] = f"{name}({', '.join(parts)})"
    return ""


__all__ = [
    "CASTS", "IDENTITIES", "IDENTITY_TEXT", "POSITIONS", "SIZES", "Kind", "Program",
    "ProgramBuilder", "gather", "rounded",
]  # fmt: skip
