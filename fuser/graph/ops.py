"""Canonical operators: many spellings, one vocabulary.

`x.softmax(-1)`, `F.softmax(x, -1)` and `torch.softmax(x, -1)` are one `Op` with bound arguments.
The tables below are all there is to add for a new spelling; matchers only see `Op`.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch.fx import Node

from ..torch_private import BUILTIN_FUNCTIONS, OpOverload
from . import statistics
from .indexing import INDEXING, KEYWORDS


class Kind(Enum):
    """What an operator does to positions: the question that every structural matcher asks."""

    POINTWISE = auto()
    """Output element i depends on element i (after broadcasting) of every tensor input."""
    VIEW = auto()
    """Same elements, other arrangement; `expand` and `repeat` included."""
    CONTRACT = auto()
    SOFTMAX = auto()
    REDUCE = auto()
    SLICE = auto()
    CAT = auto()
    DROPOUT = auto()
    ATTENTION = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Op:
    """A node read canonically. `args` are bound by the names in the tables below."""

    kind: Kind
    name: str
    args: dict[str, Any]
    inplace: bool = False


_POINTWISE_UNARY = """
abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1
floor frac isfinite isinf isnan lgamma log log10 log1p log2 logical_not bitwise_not neg negative
positive rad2deg reciprocal round rsqrt sigmoid sign signbit sin sinc sinh softsign sqrt square
tan tanh tanhshrink trunc logsigmoid
""".split()
_POINTWISE_BINARY = """
add sub mul div pow eq ne lt le gt ge maximum minimum fmax fmin atan2 remainder fmod floor_divide
logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor copysign hypot logaddexp
bitwise_left_shift bitwise_right_shift xlogy true_divide rsub float_power
""".split()
# name: parameters in the functional spelling (methods drop the first)
_POINTWISE_OTHER: dict[str, str] = {
    "where": "condition input other",
    "masked_fill": "input mask value",
    "clamp": "input min max",
    "clip": "input min max",
    "clamp_min": "input min",
    "clamp_max": "input max",
    "lerp": "input end weight",
    "addcmul": "input tensor1 tensor2",
    "addcdiv": "input tensor1 tensor2",
    "nan_to_num": "input nan posinf neginf",
    "gelu": "input",
    "relu": "input inplace",
    "relu6": "input inplace",
    "selu": "input inplace",
    "silu": "input inplace",
    "mish": "input inplace",
    "hardsigmoid": "input inplace",
    "hardswish": "input inplace",
    "elu": "input alpha inplace",
    "celu": "input alpha inplace",
    "leaky_relu": "input negative_slope inplace",
    "softplus": "input beta threshold",
    "hardtanh": "input min_val max_val inplace",
    "hardshrink": "input lambd",
    "softshrink": "input lambd",
    "threshold": "input threshold value inplace",
    "clone": "input",
    "contiguous": "input",
    "alias": "input",
    "to": "input a b c",
    "type_as": "input other",
    "type": "input dtype",
    "float": "input",
    "double": "input",
    "half": "input",
    "bfloat16": "input",
    "bool": "input",
    "int": "input",
    "long": "input",
}
_ALIASES = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "negative": "neg",
    "greater": "gt",
    "less": "lt",
    "greater_equal": "ge",
    "less_equal": "le",
    "not_equal": "ne",
    "and_": "bitwise_and",
    "or_": "bitwise_or",
    "xor": "bitwise_xor",
    "invert": "bitwise_not",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "clip": "clamp",
    "absolute": "abs",
    "arccos": "acos",
    "arctan": "atan",
    "view_as": "reshape_as",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "concat": "cat",
    "concatenate": "cat",
    "broadcast_to": "expand",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "_to_copy": "to",
    "permute_copy": "permute",
    "special_softmax": "softmax",
    "_softmax": "softmax",
    "linalg_vector_norm": "vector_norm",
}
_VIEWS: dict[str, str] = {
    "reshape": "input shape",
    "reshape_as": "input other",
    "flatten": "input start_dim end_dim",
    "unflatten": "input dim sizes",
    "squeeze": "input dim",
    "unsqueeze": "input dim",
    "permute": "input dims",
    "transpose": "input dim0 dim1",
    "movedim": "input source destination",
    "t": "input",
    "T": "input",
    "mT": "input",
    "expand": "input sizes",
    "expand_as": "input other",
    "repeat": "input repeats",
    "tile": "input repeats",
    "repeat_interleave": "input repeats dim",
}
_OTHERS: dict[str, tuple[Kind, str]] = {
    "matmul": (Kind.CONTRACT, "input other"),
    "bmm": (Kind.CONTRACT, "input other"),
    "mm": (Kind.CONTRACT, "input other"),
    "baddbmm": (Kind.CONTRACT, "input batch1 batch2"),
    "einsum": (Kind.CONTRACT, "equation operands"),
    "softmax": (Kind.SOFTMAX, "input dim dtype"),
    "log_softmax": (Kind.OTHER, "input dim dtype"),
    "sum": (Kind.REDUCE, "input dim keepdim"),
    "amax": (Kind.REDUCE, "input dim keepdim"),
    "max": (Kind.REDUCE, "input dim keepdim"),
    "min": (Kind.REDUCE, "input dim keepdim"),
    "logsumexp": (Kind.REDUCE, "input dim keepdim"),
    "getitem": (Kind.SLICE, "input index"),
    "narrow": (Kind.SLICE, "input dim start length"),
    "cat": (Kind.CAT, "tensors dim"),
    "dropout": (Kind.DROPOUT, "input p training inplace"),
    "pad": (Kind.OTHER, "input pad mode value"),
    "stack": (Kind.OTHER, "tensors dim"),
    "chunk": (Kind.OTHER, "input chunks dim"),
    "split": (Kind.OTHER, "input sizes dim"),
    "unbind": (Kind.OTHER, "input dim"),
    "select": (Kind.OTHER, "input dim index"),
    "linear": (Kind.OTHER, "input weight bias"),
    "topk": (Kind.OTHER, "input k dim largest sorted"),
    "argmax": (Kind.OTHER, "input dim keepdim"),
    "sort": (Kind.OTHER, "input dim descending"),
    "argsort": (Kind.OTHER, "input dim descending"),
    "gather": (Kind.OTHER, "input dim index"),
    "index_select": (Kind.OTHER, "input dim index"),
    "index_add": (Kind.OTHER, "input dim index source"),
    "scatter": (Kind.OTHER, "input dim index src"),
    "scatter_add": (Kind.OTHER, "input dim index src"),
    "one_hot": (Kind.OTHER, "input num_classes"),
    "cumsum": (Kind.OTHER, "input dim dtype"),
    "histc": (Kind.OTHER, "input bins min max"),
    "bincount": (Kind.OTHER, "input weights minlength"),
    "scaled_dot_product_attention": (
        Kind.ATTENTION,
        "query key value attn_mask dropout_p is_causal scale enable_gqa",
    ),
}
# Where a spelling orders its parameters differently from the table.
_ORDER_OVERRIDES: dict[Any, str] = {
    **statistics.ORDERS,
    F.softmax: "input dim _stacklevel dtype",
    F.dropout: "input p training inplace",
    torch.dropout: "input p training",
    ("method", "where"): "input condition other",
    ("function", "dropout"): "input p training inplace",
    ("aten", "dropout"): "input p training",
    ("aten", "_softmax"): "input dim half_to_float",
}
_VARIADIC = {"reshape", "permute", "expand", "repeat", "tile"}
_KEYWORDS = {
    **KEYWORDS,
    "repeat": {"size": "repeats"},
    "expand": {"size": "sizes"},
    "reshape": {"size": "shape"},
    "tile": {"dims": "repeats"},
    "sum": {"axis": "dim"},
    "max": {"axis": "dim", "other": "dim"},
    "min": {"axis": "dim", "other": "dim"},
    "softmax": {"axis": "dim"},
    "cat": {"axis": "dim"},
    "stack": {"axis": "dim"},
    "split": {"split_size_or_sections": "sizes", "split_size": "sizes"},
    "scatter": {"value": "src"},
}
_OPERATORS: dict[str, str] = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floor_divide",
    "pow": "pow", "mod": "remainder", "neg": "neg", "pos": "positive", "abs": "abs",
    "matmul": "matmul", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
    "and_": "bitwise_and", "or_": "bitwise_or", "xor": "bitwise_xor", "invert": "bitwise_not",
    "getitem": "getitem", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_ELEMENTWISE = {"max": "maximum", "min": "minimum"}
"""Reductions that compare element by element where a second tensor stands in place of `dim`."""
_INPLACE_OPERATORS: dict[str, str] = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ipow": "pow",
    "iand": "bitwise_and", "ior": "bitwise_or", "ixor": "bitwise_xor",
    "ifloordiv": "floor_divide", "imod": "remainder",
}  # fmt: skip


def _signatures() -> dict[str, tuple[Kind, tuple[str, ...]]]:
    table: dict[str, tuple[Kind, tuple[str, ...]]] = {}
    for name in _POINTWISE_UNARY:
        table[name] = (Kind.POINTWISE, ("input",))
    for name in _POINTWISE_BINARY:
        table[name] = (Kind.POINTWISE, ("input", "other"))
    for name, params in _POINTWISE_OTHER.items():
        table[name] = (Kind.POINTWISE, tuple(params.split()))
    for name, params in _VIEWS.items():
        table[name] = (Kind.VIEW, tuple(params.split()))
    tables = {**INDEXING, **statistics.STATISTICS}
    others = {name: (Kind.OTHER, params) for name, params in tables.items()}
    for name, (kind, params) in {**others, **_OTHERS}.items():
        table[name] = (kind, tuple(params.split()))
    return table


SIGNATURES = _signatures()


def _functions() -> dict[Callable[..., Any], tuple[str, bool]]:
    """Callable -> (canonical name, works in place)."""
    table: dict[Callable[..., Any], tuple[str, bool]] = {}
    for source in (torch, F, BUILTIN_FUNCTIONS, torch.special):
        for name in [*SIGNATURES, *_ALIASES]:
            for suffix in ("", "_"):
                function = getattr(source, name + suffix, None)
                if callable(function) and not isinstance(function, type):
                    table.setdefault(function, (_ALIASES.get(name, name), bool(suffix)))
    for name, canonical in _OPERATORS.items():
        table[getattr(operator, name)] = (canonical, False)
    for name, canonical in _INPLACE_OPERATORS.items():
        table[getattr(operator, name)] = (canonical, True)
    table.update({function: (name, False) for function, name in statistics.FUNCTIONS.items()})
    return table


FUNCTIONS = _functions()
_LETTERS = string.ascii_letters
_OTHER = Op(Kind.OTHER, "", {})


def is_tensor(node: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and isinstance(node.meta.get("example_value"), torch.Tensor)


def value(node: Node) -> Any:
    """The fake example value of a node: shape, dtype, strides and device."""
    return node.meta.get("example_value")


def read(node: Node) -> Op:
    """Read a node canonically; `Kind.OTHER` where the tables do not know it."""
    extra: tuple[str, ...] = ()
    if node.op == "call_function" and isinstance(node.target, OpOverload):
        namespace, _, raw = node.target._schema.name.partition("::")
        if namespace != "aten":
            return _OTHER
        inplace = raw.endswith("_")
        raw = raw.removesuffix("_")
        name, order = _ALIASES.get(raw, raw), _ORDER_OVERRIDES.get(("aten", raw))
        extra = tuple(argument.name for argument in node.target._schema.arguments)
    elif node.op == "call_function":
        if node.target is getattr and len(node.args) == 2 and is_tensor(node.args[0]):
            name = str(node.args[1])
            if name in ("T", "mT"):
                return Op(Kind.VIEW, name, {"input": node.args[0]})
            return _OTHER
        try:
            found = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
        except TypeError:
            return _OTHER
        if found is None:
            return _OTHER
        name, inplace = found
        order = _ORDER_OVERRIDES.get(node.target)
    elif node.op == "call_method":
        raw = str(node.target)
        inplace = raw.endswith("_") and not raw.endswith("__")
        raw = raw[:-1] if inplace else raw
        name = _ALIASES.get(raw, raw)
        order = _ORDER_OVERRIDES.get(("method", name))
    else:
        return _OTHER
    signature = SIGNATURES.get(name)
    if signature is None:
        return _OTHER
    kind, params = signature
    names = tuple(order.split()) if order else params
    return _bind(node, kind, name, (*names, *extra[len(names) :]), inplace)


def _bind(node: Node, kind: Kind, name: str, names: tuple[str, ...], inplace: bool) -> Op:
    positional = node.args
    if name in _VARIADIC and len(positional) > 1 and not isinstance(positional[1], (tuple, list)):
        positional = (positional[0], tuple(positional[1:]))
    if name == "einsum":
        positional = _einsum_arguments(positional)
    args: dict[str, Any] = dict(zip(names, positional, strict=False))
    for extra in range(len(names), len(positional)):
        args[f"_{extra}"] = positional[extra]
    renames = _KEYWORDS.get(name, {})
    for key, argument in node.kwargs.items():
        args[renames.get(key, key)] = argument
    if args.get("inplace") is True:
        inplace = True
    if args.get("out") is not None:
        return Op(Kind.OTHER, name, args, True)
    if name in _ELEMENTWISE and is_tensor(args.get("dim")):
        name, kind = _ELEMENTWISE[name], Kind.POINTWISE
        args = {"input": args["input"], "other": args["dim"]}
    first = args.get("input")
    if kind in (Kind.POINTWISE, Kind.VIEW, Kind.SLICE) and not any(map(is_tensor, node.args)):
        if not any(map(is_tensor, node.kwargs.values())):
            return Op(Kind.OTHER, name, args)  # arithmetic on sizes
    if kind is Kind.VIEW and is_tensor(first) and value(first).dtype is not value(node).dtype:
        return Op(Kind.OTHER, name, args, inplace)  # the same bits as other numbers
    if kind is Kind.SLICE and not is_tensor(first):
        return Op(Kind.OTHER, name, args)
    if kind is Kind.SLICE and name == "getitem" and _only_new_axes(args["index"]):
        kind, name = Kind.VIEW, "getitem"
    return Op(kind, name, args, inplace)


def _einsum_arguments(positional: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bring `einsum(equation, *operands)` and the sublist form to `(equation, operands)`."""
    if positional and isinstance(positional[0], str):
        operands = positional[1:]
        single = len(operands) == 1 and isinstance(operands[0], (tuple, list))
        return (positional[0], tuple(operands[0]) if single else tuple(operands))
    lists = [x for x in positional if isinstance(x, (tuple, list))]
    operands = tuple(x for x in positional if isinstance(x, Node))
    if not all(isinstance(i, int) and i < len(_LETTERS) for x in lists for i in x):
        return ("", ())
    terms = ["".join(_LETTERS[i] for i in x) for x in lists]
    left = ",".join(terms[: len(operands)])
    return (f"{left}->{terms[-1]}" if len(terms) > len(operands) else left, operands)


def data_inputs(op: Op, node: Node) -> list[Node]:
    """The tensor inputs whose elements are read: `x.to(other)` reads `x` alone."""
    if op.name in ("to", "type_as", "type"):
        return [op.args["input"]]
    return [n for n in node.all_input_nodes if is_tensor(n)]


def _only_new_axes(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None or part is Ellipsis or (isinstance(part, slice) and part == slice(None))
        for part in parts
    )
