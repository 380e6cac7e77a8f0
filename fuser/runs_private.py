"""What `dynamo_private` reads of loops over runs of sorted rows, whose lengths Python is told.

for e, count in enumerate(counts.tolist()):
    end = start + count
    if count == 0: continue
    outputs.append(experts[e](rows[start:end]))
    start = end
torch.cat(outputs)

Numbers, runs and what is kept in a list are marked in the graph (see `turns`). A list that is
longer here than where experts without tokens are left out may be put together, and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import np
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.builtin import BuiltinVariable
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.lists import (
    ListIteratorVariable,
    ListVariable,
    SliceVariable,
    TupleVariable,
)
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch.fx import Node, Proxy

from .bytecode import place
from .errors import NotWhole
from .torch_private import unbacked
from .turns import OVER_ALL, UNPROVED, counted_by, held, number, piece, run

_SHORT = f"{UNPROVED}: numbers of experts after the last one with tokens may be missing"
_KEPT = f"{UNPROVED}: a list of what experts gave is read"


class Pieces(ListVariable):
    """A list that is shorter where experts without tokens are left out."""

    @property
    def items(self) -> list[Any]:  # type: ignore[override]
        raise NotWhole(_KEPT, self.__dict__["place"], OVER_ALL)

    def as_proxy(self) -> Any:
        """For an operator, in whose arguments each of the pieces is marked."""
        return [item.as_proxy() for item in self.__dict__["items"]]

    def sq_length(self, tx: Any) -> Any:
        return wrap_fx_proxy(tx, _call(tx, held, *self.as_proxy()))


class Counts(VariableTracker):
    """Such numbers, of which Python has a list or NumPy an array, that may be iterated over,
    indexed and added up so far, and nothing else.

    Attributes:
        counts: the tensor that they were read from.
        read: the numbers.
        kind: its type.
        short: there are none for experts after the last one with tokens.
        told: of how many a loop over them was told so far.
    """

    def __init__(self, counts: Any, read: list[Any], kind: type, short: bool) -> None:
        super().__init__()
        self.counts, self.read, self.kind, self.short = counts, read, kind, short
        self.told = 0

    def python_type(self) -> type:
        return self.kind

    def has_unpack_var_sequence(self, tx: Any) -> bool:
        return not self.short

    def unpack_var_sequence(self, tx: Any) -> list[Any]:
        if self.short:
            raise NotWhole(_SHORT, place(tx), OVER_ALL)
        return list(self.read)

    def tp_iter_impl(self, tx: Any) -> Any:
        return ListIteratorVariable(self.unpack_var_sequence(tx), mutation_type=ValueMutationNew())

    def mp_subscript_impl(self, tx: Any, key: Any) -> Any:
        number = key.value if isinstance(key, ConstantVariable) else None
        if self.short and not (type(number) is int and 0 <= number < self.told):
            raise NotWhole(_SHORT, place(tx), OVER_ALL)
        return ListVariable(list(self.read)).mp_subscript_impl(tx, key)

    def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        axis = [a.value for a in (*args, *kwargs.values()) if isinstance(a, ConstantVariable)]
        given = len(args) + len(kwargs)
        known = name == "cumsum" and self.kind is not list and set(kwargs) <= {"axis"}
        if not known or len(axis) != given or axis not in ([], [0], [-1]):
            return super().call_method(tx, name, args, kwargs)
        return Counts(self.counts, so_far(tx, self.read), self.kind, self.short)


def so_far(tx: Any, numbers: list[Any]) -> list[Any]:
    """The sums of numbers up to each of them."""
    added = BuiltinVariable(operator.add)
    found = numbers[:1]
    for one in numbers[1:]:
        found.append(added.call_function(tx, [found[-1], one], {}))
    return found


def put_together(function: Any, args: Any) -> Any:
    """The arguments of `torch.cat`, to which a list of pieces is one like any other."""
    known = function.value in (torch.cat, torch.concat, torch.concatenate)
    if not known or not args or type(args[0]) is not Pieces:
        return args
    return [
        ListVariable(list(args[0].__dict__["items"]), mutation_type=ValueMutationNew()),
        *args[1:],
    ]


def read_by(tx: Any, counts: Any, name: str) -> Any:
    """How many tokens each expert has, as a list of Python's numbers, or as an array of NumPy's."""
    node, example = counts.as_proxy().node, counts.as_proxy().node.meta.get("example_value")
    known = name == "tolist" or (
        name == "numpy" and np is not None and example.device.type == "cpu"
    )
    found = counted_by(node) if known else None
    if found is None or found.experts < 2 or _is_empty(found.indices):
        return None  # a number that is known would leave no mark behind
    tracer = tx.output.current_tracer
    read = list[Any]()
    for expert in range(found.experts):
        given = (Proxy(found.counts, tracer), expert, found.experts, Proxy(found.indices, tracer))
        before = (one.as_proxy() for one in read)
        read.append(wrap_fx_proxy(tx, _call(tx, number, *given, *before)))
    read = so_far(tx, read) if found.summed else read
    if name == "numpy" or found.short:
        return Counts(counts, read, np.ndarray if name == "numpy" else list, found.short)
    return ListVariable(read, mutation_type=ValueMutationNew())


def _is_empty(indices: Node) -> bool:
    count = indices.meta["example_value"].numel()
    return type(count) is int and count == 0


def run_of(tx: Any, rows: Any, index: Any) -> Any:
    """`rows[start:end]`, where that is told by how many tokens experts have; and the same with
    further parts, which are taken of the run."""
    if type(rows) is TensorVariable and type(index) is TupleVariable and index.items:
        first, *rest = index.items
        found = run_of(tx, rows, first.realize())
        if found is None:
            return None
        whole = SliceVariable([ConstantVariable.create(None)] * 2)
        return found.call_method(tx, "__getitem__", [TupleVariable([whole, *rest])], {})
    if type(rows) is not TensorVariable or type(index) is not SliceVariable:
        return None
    start, end, step = (bound.realize() for bound in index.items)
    if isinstance(end, ConstantVariable) and end.value is None:
        return None
    ends = [_bound(bound) for bound in (start, end)]
    plain = isinstance(step, ConstantVariable) and step.value is None
    if not plain or any(bound is None for bound in ends):
        return None
    if not unbacked([getattr(bound, "sym_num", 0) for bound in (start, end)]):
        return None
    return wrap_fx_proxy(tx, _call(tx, run, rows.as_proxy(), *ends))


def _bound(found: Any) -> Any:
    if isinstance(found, SymNodeVariable):
        return found.as_proxy()
    number = found.value if isinstance(found, ConstantVariable) else None
    return 0 if number is None else number if type(number) is int else None


def kept(tx: Any, where: Any, given: Any, since: Node) -> bool:
    """Whether what a part made was appended to a list of this function, as a piece."""
    if type(where) not in (ListVariable, Pieces) or len(given) != 1:
        return False
    rows = given[0].realize() if isinstance(given[0], VariableTracker) else given[0]
    new = isinstance(where.mutation_type, ValueMutationNew) and isinstance(rows, TensorVariable)
    if not new or rows.as_proxy().node < since:
        return False
    where.__class__ = Pieces
    where.__dict__["place"] = place(tx)
    where.__dict__["items"].append(wrap_fx_proxy(tx, _call(tx, piece, rows.as_proxy())))
    return True


def _call(tx: Any, what: Callable[..., Any], *args: Any) -> Any:
    return tx.output.create_proxy("call_function", what, args, {})


def realized(found: Any) -> Any:
    return found.realize() if isinstance(found, VariableTracker) else found


def size(found: Any) -> Any:
    if isinstance(found, SymNodeVariable) and isinstance(found.sym_num, torch.SymInt):
        return found.as_proxy()
    number: Any = found.value if isinstance(found, ConstantVariable) else None
    return number if type(number) is int else None


def same(one: Any, other: Any) -> bool:
    """Whether two values are one: the same variable, or `None` and the like."""
    found = [realized(each) for each in (one, other)]
    plain = [each.value if isinstance(each, ConstantVariable) else each for each in found]
    return plain[0] is plain[1]
