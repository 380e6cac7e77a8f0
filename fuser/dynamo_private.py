"""What `torch_private` is for torch as a whole, for Dynamo's reading of bytecode.

While a frame is tried with its loops in one graph, a loop over a tensor of unknown length that
holds the experts that were hit is read as a loop over all experts, and a condition that data tells
as it is for an expert with tokens (see `turns`). The number of a turn is a tensor of which Dynamo
knows what it holds, so that it may choose a module or be part of a name.

Runs of rows, and numbers of them, are `runs_private`'s; names and iterators are `frames_private`'s.

Versions: written against torch 2.13. What another version does differently makes a try fail, and
nothing else.
"""

from __future__ import annotations

import contextlib
import dis
import functools
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch._dynamo import symbolic_convert
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.iter import IteratorVariable
from torch._dynamo.variables.lists import ListIteratorVariable, ListVariable, SliceVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from .bytecode import RETURNS, follow, place, returned
from .errors import NotWhole
from .frames_private import MADE, Iterators, Names, Supposed, Turns, iterating
from .runs_private import Counts, Pieces, kept, put_together, read_by, realized, run_of, same, size
from .torch_private import known_true, unbacked
from .turns import (
    OVER_ALL,
    UNPROVED,
    begin,
    over,
    turn,
    turns_of,
    with_tokens,
)

Handler = Callable[[Any, Any], None]
Method = Callable[..., Any]

_TRANSLATORS: list[Any] = [
    found
    for found in vars(symbolic_convert).values()
    if isinstance(found, type) and hasattr(found, "dispatch_table")
]

_NUMBERS = ("item", "tolist", "__int__", "__index__", "__bool__")
_MUTATORS = ("mutation", "store_attr", "store_cell", "store_global", "store_instance_dict_attr")


class Reader:
    """Reads what is done for experts with tokens, while a frame is tried.

    Attributes:
        supposed: how often something was.
        changed: objects that were written to, one for each time.
        branches: that have begun and not ended, for each function that is being read.
    """

    def __init__(self) -> None:
        self.supposed = 0
        self.changed: list[Any] = []
        self.iterators = Iterators()
        self.branches: dict[int, list[Supposed]] = {}

    def noted(self, usual: Method, effects: Any, item: Any, *rest: Any, **named: Any) -> Any:
        """An object is written to."""
        if not isinstance(item, IteratorVariable):
            self.changed.append(item)
        return usual(effects, item, *rest, **named)

    def moved(self, usual: Method, found: Any, *rest: Any, **named: Any) -> Any:
        """An iterator moves on."""
        self.changed.append(found)
        return usual(found, *rest, **named)

    def get_iter(self, usual: Handler, tx: Any, inst: Any) -> None:
        top = tx.stack[-1].realize()
        if isinstance(top, Turns):
            return
        if isinstance(top, Counts) and top.short:
            tx.stack[-1] = Turns(top.counts, len(top.read), as_numbers=True, counts=top)
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
        if loop.loop is None:
            loop.loop = self._begin(tx, hit)
        if loop.counts is not None:  # turns are those of the first experts
            loop.counts.told = (loop.done + 1) % (loop.count + 1)
        elif loop.done:
            self._require_apart(tx, loop)
        loop.names = Names(tx)
        if loop.done < loop.count and loop.counts is not None:
            tx.push(loop.counts.read[loop.done])
            loop.done += 1
            return
        if loop.done < loop.count:
            proxy = tx.output.create_proxy("call_function", turn, (hit, loop.done), {})
            number = wrap_fx_proxy(tx, proxy)
            tx.push(ConstantVariable.create(loop.done) if loop.as_numbers else number)
            loop.done += 1
            return
        tx.stack[-1] = ListIteratorVariable([], mutation_type=ValueMutationNew())
        usual(tx, inst)
        self._end(tx, loop.loop, ended=True)

    def subscript(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`mask[e]`, `modules[e]`: by a number that is known."""
        if inst.opname == "BINARY_SUBSCR" or inst.argrepr == "[]":
            whole, known = _example(tx.stack[-2].realize()), _known(tx.stack[-1].realize())
            if isinstance(known, list) and whole is not None:
                first, last = (ConstantVariable.create(n) for n in (known[0], known[0] + 1))
                tx.stack[-1] = SliceVariable([first, last])
            elif known is not None:
                tx.stack[-1] = ConstantVariable.create(_alone(known))
            rows = (
                run_of(tx, *(each.realize() for each in tx.stack[-2:])) if self.supposed else None
            )
            if rows is not None:
                tx.stack[-2:] = [rows]
                return
        usual(tx, inst)

    def format(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`f"expert_{e}"`, where a tensor without dimensions is its number."""
        known = _known(tx.stack[-1].realize())
        if type(known) is int:
            tx.stack[-1] = ConstantVariable.create(known)
        usual(tx, inst)

    def truth(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`if e == n:`, with a number that is known; `if outputs:`, of a list of pieces."""
        if type(tx.stack[-1].realize()) is Pieces:
            tx.stack[-1] = tx.stack[-1].realize().sq_length(tx)
        known = _known(tx.stack[-1].realize())
        if known is not None:
            tx.stack[-1] = ConstantVariable.create(bool(_alone(known)))
        usual(tx, inst)

    def jump(self, usual: Handler, tx: Any, inst: Any) -> None:
        """`if mask.any():`, `if idx.numel() == 0: continue`: as for an expert with tokens."""
        top = tx.stack[-1].realize()
        condition = None if type(top) is Pieces else _condition(top)
        taken = None if condition is None else with_tokens(condition.node)
        if taken is not None:
            jumps = inst.opname.endswith("TRUE") is not taken
            other = inst.target if jumps else tx.instructions[tx.instruction_pointer]
            branch = self._begin(tx, condition, taken)
            branch.end = tx.instructions[follow(tx, tx.indexof[other])]
            self.branches.setdefault(id(tx), []).append(branch)
            tx.stack[-1] = ConstantVariable.create(taken)
        self.truth(usual, tx, inst)

    def step(self, usual: Method, tx: Any) -> Any:
        """One instruction; before it may end what another path has jumped over, or left early."""
        branches, at = self.branches.get(id(tx)), tx.instruction_pointer
        while branches and at is not None:
            inst = tx.instructions[at]
            if inst is branches[-1].end:
                self._end(tx, branches.pop())
            elif inst.opname in RETURNS:
                self._left(tx, branches.pop(), at)
            else:
                break
        return usual(tx)

    def number(self, usual: Method, found: Any, tx: Any) -> Any:
        """`int(e)`, and a tensor as an index."""
        known = _known(found)
        return usual(found, tx) if known is None else ConstantVariable.create(int(_alone(known)))

    def call_method(self, usual: Method, found: Any, tx: Any, name: str, *rest: Any) -> Any:
        """`hit.tolist()`, and numbers of what is known."""
        if name in (*_NUMBERS, "numpy") and not any(rest):
            known = _known(found)
            if known is not None:
                value = known if name == "tolist" else _alone(known)
                return VariableTracker.build(tx, value)
            count = _turns(found) if name == "tolist" and _example(found).ndim == 1 else None
            if count is not None:
                return Turns(found, count, as_numbers=True)
            read = read_by(tx, found, name)
            if read is not None:
                self.supposed += 1
                return read
        return usual(found, tx, name, *rest)

    def append(self, usual: Method, found: Any, tx: Any, name: str, *rest: Any) -> Any:
        """`outputs.append(rows)`, within what is done for experts with tokens."""
        open_ = self.branches.get(id(tx))
        if name == "append" and open_ and rest and kept(tx, found, rest[0], open_[-1].mark):
            return ConstantVariable.create(None)
        return usual(found, tx, name, *rest)

    def call_function(self, usual: Method, found: Any, tx: Any, args: Any, *rest: Any) -> Any:
        return usual(found, tx, put_together(found, args), *rest)

    def _begin(self, tx: Any, condition: Any, *taken: bool) -> Supposed:
        self.supposed += 1
        mark = _mark(tx, begin, condition, *taken)
        since = len(self.changed), len(tx.output.random_calls), self.iterators.later()
        return Supposed(condition, mark, Names(tx), since)

    def _require_apart(self, tx: Any, loop: Turns) -> None:
        """What a turn leaves to the next one is in tensors: in eager the turn before it may be that
        of another expert.

        Raises:
            NotWhole: it is not.
        """
        assert loop.names is not None
        for name, before, now in loop.names.changed():
            found = [realized(one) for one in (before, now)]
            if not all(isinstance(one, TensorVariable) for one in found):
                why = f"`{name}` goes on from one turn to the next"
                raise NotWhole(f"{UNPROVED}: {why}", place(tx), OVER_ALL)

    def _end(self, tx: Any, part: Supposed, ended: bool = False) -> None:
        """What is left behind must be in the graph, where it can be proved: beside each tensor that
        a name is given, the one that it has where this is left out.

        Raises:
            NotWhole: objects were changed, or names that are read later and are no tensors.
        """
        pairs = list[Any]()
        for name, before, now in part.names.changed(ended):
            pairs += self._pair(tx, part, before, now, f"`{name}` is read after it")
        self._over(tx, part, pairs)

    def _left(self, tx: Any, part: Supposed, at: int) -> None:
        """A function returns at the end of a part, and where that is left out as well.

        Raises:
            NotWhole: not the same, as far as that is known.
        """
        early, last = returned(tx, part.end), tx.instructions[at]
        why = "what is returned without it is another thing"
        if early is None:
            raise NotWhole(f"{UNPROVED}: {why}", place(tx), OVER_ALL)
        before = early.constant if early.name is None else part.names.get(early.name)
        now = last.argval if last.opname == "RETURN_CONST" else tx.stack[-1]
        alike = same(before, now)
        self._over(tx, part, [] if alike else [*self._pair(tx, part, before, now, why)])

    def _pair(self, tx: Any, part: Supposed, before: Any, now: Any, why: str) -> tuple[Any, Any]:
        """A tensor or a size of a part, and what stands for it where the part is left out."""
        found = [realized(one) for one in (before, now)]
        tensors = all(isinstance(one, TensorVariable) for one in found)
        if tensors and not found[1].as_proxy().node < part.mark:
            return found[0].as_proxy(), found[1].as_proxy()
        sizes = [size(one) for one in found]
        if any(one is None for one in sizes) or all(type(one) is int for one in sizes):
            raise NotWhole(f"{UNPROVED}: {why}", place(tx), OVER_ALL)
        return sizes[0], sizes[1]

    def _over(self, tx: Any, part: Supposed, pairs: list[Any]) -> None:
        _mark(tx, over, part.condition, *pairs)
        changes, drawn, since = part.since
        own = functools.partial(self.iterators.is_own, since=since, names=part.names)
        changed = [one for one in self.changed[changes:] if not own(one)]
        if changed or len(tx.output.random_calls) > drawn:
            raise NotWhole(f"{UNPROVED}: it changes objects of Python's", place(tx), OVER_ALL)

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """Suppose that there are tokens, in what Dynamo traces within the block, of which nobody
        else traces anything: Dynamo's own lock is held."""
        handlers: dict[str, Callable[..., None]] = {
            "GET_ITER": self.get_iter, "FOR_ITER": self.for_iter,
            "BINARY_SUBSCR": self.subscript, "BINARY_OP": self.subscript,
            "TO_BOOL": self.truth, "FORMAT_VALUE": self.format, "FORMAT_SIMPLE": self.format,
            "POP_JUMP_IF_FALSE": self.jump, "POP_JUMP_IF_TRUE": self.jump,
            "POP_JUMP_FORWARD_IF_FALSE": self.jump, "POP_JUMP_FORWARD_IF_TRUE": self.jump,
            "POP_JUMP_BACKWARD_IF_FALSE": self.jump, "POP_JUMP_BACKWARD_IF_TRUE": self.jump,
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
                    _patch(stack, SideEffects, name, self.noted)
            _patch(stack, symbolic_convert.InstructionTranslatorBase, "step", self.step)
            _patch(stack, TensorVariable, "call_method", self.call_method)
            _patch(stack, ListVariable, "call_method", self.append)
            for owner in MADE:
                _patch(stack, owner, "__init__", self.iterators.made)
            for owner, name in iterating():
                _patch(stack, owner, name, self.moved)
            _patch(stack, TorchInGraphFunctionVariable, "call_function", self.call_function)
            for name in ("nb_int_impl", "nb_index_impl"):
                if hasattr(TensorVariable, name):
                    _patch(stack, TensorVariable, name, self.number)
            yield


def _patch(stack: contextlib.ExitStack, owner: Any, name: str, instead: Callable[..., Any]) -> None:
    usual = getattr(owner, name)
    stack.callback(setattr, owner, name, usual)

    @functools.wraps(usual)
    def method(*args: Any, **kwargs: Any) -> Any:
        return instead(usual, *args, **kwargs)

    setattr(owner, name, method)


def _condition(found: Any) -> Any:
    """What a branch depends on, if nothing but data tells it."""
    if isinstance(found, SymNodeVariable):
        symbol = found.sym_num
        kind, told = isinstance(symbol, (torch.SymBool, torch.SymInt)), unbacked([symbol])
        sure = known_true(symbol != 0 if isinstance(symbol, torch.SymInt) else symbol)
        return found.as_proxy() if kind and told and not sure else None
    example = _example(found)
    if example is None or example.ndim != 0 or example.dtype not in (torch.bool, torch.int64):
        return None
    return found.as_proxy() if getattr(example, "constant", None) is None else None


def _mark(tx: Any, what: Callable[..., Any], *args: Any) -> Node:
    node: Node = tx.output.create_proxy("call_function", what, args, {}).node
    node.meta["example_value"] = None
    return node


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
