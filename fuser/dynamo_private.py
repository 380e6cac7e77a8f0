"""What `torch_private` is for torch as a whole, for Dynamo's reading of bytecode.

While a frame is tried with its loops in one graph, a loop over a tensor of unknown length that
holds the experts that were hit is read as a loop over all experts (see `turns`). Each number is a
tensor of which Dynamo knows what it holds, so that it may choose a module or be part of a name.

Versions: written against torch 2.13. What another version does differently makes a try fail, and
nothing else.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import linecache
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch._dynamo import symbolic_convert
from torch._dynamo.bytecode_analysis import livevars_analysis
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.iter import IteratorVariable
from torch._dynamo.variables.lists import ListIteratorVariable, SliceVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from .errors import NotWhole
from .torch_private import unbacked
from .turns import OVER_ALL, UNPROVED, begin, over, turn, turns_of

Handler = Callable[[Any, Any], None]
Method = Callable[..., Any]

_TRANSLATORS: list[Any] = [
    found
    for found in vars(symbolic_convert).values()
    if isinstance(found, type) and hasattr(found, "dispatch_table")
]

_NUMBERS = ("item", "tolist", "__int__", "__index__", "__bool__")
_MUTATORS = ("mutation", "store_attr", "store_cell", "store_global", "store_instance_dict_attr")


class Turns(VariableTracker):
    """What a loop over the experts that were hit iterates over, and nothing else may look at.

    Attributes:
        hit: the tensor.
        count: how many numbers it may hold.
        as_numbers: whether it was asked for as a list of numbers.
        done: how many turns have begun.
        before: the names of the function that loops, before it.
        changed: how many changes there had been before it.
    """

    def __init__(self, hit: Any, count: int, as_numbers: bool) -> None:
        super().__init__()
        self.hit, self.count, self.as_numbers = hit, count, as_numbers
        self.done, self.changed = 0, 0
        self.before: dict[str, Any] = {}


class Reader:
    """Reads loops over experts that were hit, while a frame is tried.

    Attributes:
        changed: objects that were written to, one for each time.
    """

    def __init__(self) -> None:
        self.changed: list[Any] = []

    def noted(self, usual: Method, effects: Any, item: Any, *rest: Any, **named: Any) -> Any:
        """An object is written to; that iterators move on is no effect of a loop."""
        if not isinstance(item, IteratorVariable):
            self.changed.append(item)
        return usual(effects, item, *rest, **named)

    def get_iter(self, usual: Handler, tx: Any, inst: Any) -> None:
        top = tx.stack[-1].realize()
        if isinstance(top, Turns):
            return
        count = _turns(top)
        if count is None:
            usual(tx, inst)
        else:
            tx.stack[-1] = Turns(top, count, as_numbers=False)

    def for_iter(self, usual: Handler, tx: Any, inst: Any) -> None:
        loop = tx.stack[-1]
        if not isinstance(loop, Turns):
            usual(tx, inst)
            return
        hit = loop.hit.as_proxy()
        if loop.done == 0:
            loop.before, loop.changed = dict(tx.symbolic_locals), self._changes(tx)
            _mark(tx, begin, hit)
        if loop.done < loop.count:
            proxy = tx.output.create_proxy("call_function", turn, (hit, loop.done), {})
            number = wrap_fx_proxy(tx, proxy)
            tx.push(ConstantVariable.create(loop.done) if loop.as_numbers else number)
            loop.done += 1
            return
        _mark(tx, over, hit)
        tx.stack[-1] = ListIteratorVariable([], mutation_type=ValueMutationNew())
        usual(tx, inst)
        self._require_nothing_else(tx, loop)

    def subscript(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`mask[e]`, `modules[e]`: by a number that is known."""
        if inst.opname == "BINARY_SUBSCR" or inst.argrepr == "[]":
            whole, known = _example(tx.stack[-2].realize()), _known(tx.stack[-1].realize())
            if isinstance(known, list) and whole is not None:
                first, last = (ConstantVariable.create(n) for n in (known[0], known[0] + 1))
                tx.stack[-1] = SliceVariable([first, last])
            elif known is not None:
                tx.stack[-1] = ConstantVariable.create(_alone(known))
        usual(tx, inst)

    def format(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`f"expert_{e}"`, where a tensor without dimensions is its number."""
        known = _known(tx.stack[-1].realize())
        if type(known) is int:
            tx.stack[-1] = ConstantVariable.create(known)
        usual(tx, inst)

    def jump(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`if e == n:`, with a number that is known."""
        known = _known(tx.stack[-1].realize())
        if known is not None:
            tx.stack[-1] = ConstantVariable.create(bool(_alone(known)))
        usual(tx, inst)

    def number(self, usual: Method, found: Any, tx: Any) -> Any:
        """`int(e)`, and a tensor as an index."""
        known = _known(found)
        return usual(found, tx) if known is None else ConstantVariable.create(int(_alone(known)))

    def call_method(self, usual: Method, found: Any, tx: Any, name: str, *rest: Any) -> Any:
        """`hit.tolist()`, and numbers of what is known."""
        if name in _NUMBERS and not any(rest):
            known = _known(found)
            if known is not None:
                value = known if name == "tolist" else _alone(known)
                return VariableTracker.build(tx, value)
            count = _turns(found) if name == "tolist" and _example(found).ndim == 1 else None
            if count is not None:
                return Turns(found, count, as_numbers=True)
        return usual(found, tx, name, *rest)

    def _changes(self, tx: Any) -> int:
        """How often objects were written to, or a number was drawn by Python's `random`."""
        return len(self.changed) + len(tx.output.random_calls)

    def _require_nothing_else(self, tx: Any, loop: Turns) -> None:
        """What a loop leaves behind must be in the graph, where it can be proved.

        Raises:
            NotWhole: it changed objects, or names that are read later and are no tensors.
        """
        if self._changes(tx) > loop.changed:
            raise NotWhole(f"{UNPROVED}: it changes objects of Python's", _place(tx), OVER_ALL)
        following = tx.instructions[tx.instruction_pointer]
        for name in livevars_analysis(tx.instructions, following):
            now = tx.symbolic_locals.get(name)
            if now is not loop.before.get(name) and not _is_made_since(now, loop):
                why = f"{UNPROVED}: `{name}` is read after it"
                raise NotWhole(why, _place(tx), OVER_ALL)


@contextlib.contextmanager
def hits_read() -> Generator[None]:
    """Read loops over the experts that were hit as loops over all, in what Dynamo traces within the
    block, of which nobody else traces anything: Dynamo's own lock is held."""
    reader = Reader()
    handlers: dict[str, Callable[..., None]] = {
        "GET_ITER": reader.get_iter, "FOR_ITER": reader.for_iter,
        "BINARY_SUBSCR": reader.subscript, "BINARY_OP": reader.subscript,
        "FORMAT_VALUE": reader.format, "FORMAT_SIMPLE": reader.format,
        "POP_JUMP_IF_FALSE": reader.jump, "POP_JUMP_IF_TRUE": reader.jump,
        "POP_JUMP_FORWARD_IF_FALSE": reader.jump, "POP_JUMP_FORWARD_IF_TRUE": reader.jump,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for table in {id(t.dispatch_table): t.dispatch_table for t in _TRANSLATORS}.values():
            for name, handler in handlers.items():
                code = dis.opmap.get(name)
                if code is not None and table[code] is not None:
                    stack.callback(table.__setitem__, code, table[code])
                    table[code] = functools.partial(handler, table[code])
        for name in _MUTATORS:
            if hasattr(SideEffects, name):
                _patch(stack, SideEffects, name, reader.noted)
        _patch(stack, TensorVariable, "call_method", reader.call_method)
        for name in ("nb_int_impl", "nb_index_impl"):
            if hasattr(TensorVariable, name):
                _patch(stack, TensorVariable, name, reader.number)
        yield


def _patch(stack: contextlib.ExitStack, owner: Any, name: str, instead: Callable[..., Any]) -> None:
    usual = getattr(owner, name)
    stack.callback(setattr, owner, name, usual)

    @functools.wraps(usual)
    def method(*args: Any, **kwargs: Any) -> Any:
        return instead(usual, *args, **kwargs)

    setattr(owner, name, method)


def _is_made_since(found: Any, loop: Turns) -> bool:
    """Whether a variable is a tensor that the loop has computed."""
    if not isinstance(found, TensorVariable):
        return False
    node = found.as_proxy().node
    first = next(
        n for n in node.graph.nodes if n.target is begin and n.args[0] is loop.hit.as_proxy().node
    )
    return first < node


def _place(tx: Any) -> str:
    """Of a loop that has ended."""
    file, line = str(tx.f_code.co_filename), int(tx.lineno)
    return f"{file}:{line}: `{linecache.getline(file, line).strip()}`"


def _mark(tx: Any, what: Callable[..., Any], hit: Any) -> None:
    proxy = tx.output.create_proxy("call_function", what, (hit,), {})
    proxy.node.meta["example_value"] = None


def _turns(found: Any) -> int | None:
    """The turns of a loop over a tensor that holds the experts that were hit, of unknown length."""
    example = _example(found)
    if example is None or example.ndim not in (1, 2) or not unbacked(example.shape[:1]):
        return None
    if example.dtype is not torch.int64 or (example.ndim == 2 and example.shape[1] != 1):
        return None
    return turns_of(found.as_proxy().node)


def _example(found: Any) -> Any:
    if type(found) is not TensorVariable:
        return None
    return found.as_proxy().node.meta.get("example_value")


def _known(found: Any) -> Any:
    """The number that a tensor of a turn is known to hold, as a list where it has a dimension; None
    for others: users' own constants are read as always."""
    constant = getattr(_example(found), "constant", None)
    if constant is None or constant.numel() != 1 or constant.ndim > 1:
        return None
    if not _is_of_turn(found.as_proxy().node):
        return None
    if constant.dtype not in (torch.int64, torch.bool):
        return None
    with _disable_current_modes():
        return constant.tolist()


def _is_of_turn(node: Node) -> bool:
    return node.target is turn or any(_is_of_turn(n) for n in node.all_input_nodes)


def _alone(known: Any) -> Any:
    return known[0] if isinstance(known, list) else known
