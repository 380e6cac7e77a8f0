"""Record a function as a graph, and refuse what a graph would silently leave out."""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn
from unittest import mock

import torch
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode

from ..errors import PatternError, UntraceablePatternError
from ..torch_private import pytree

_ONCE = "it is called once, when the pattern is registered, and not when a model runs"


class Recorder(Tracer):
    """Records a function, or a bound method, over the arguments that have examples.

    Attributes:
        written: values that stand on the left of `+=` and the like. Numbers may; for tensors that
            is a write, which the caller refuses when it knows which is which.
    """

    def __init__(self, pattern_id: str, role: str, function: Any, names: Sequence[str]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.pattern_id, self.role = pattern_id, role
        self.function, self.names = function, names
        self.modes = _modes()
        self.written: list[Node] = []

    def record(self) -> Graph:
        """The function's graph.

        Raises:
            PatternError: it cannot be recorded, or does what the graph would not hold.
        """
        before = dict(_outside(self.function))
        try:
            with _recorded_functions(self), _RecordedFactories(self):
                graph = self.trace(getattr(self.function, "__func__", self.function))
        except PatternError:
            raise
        except Exception as error:
            raise UntraceablePatternError(self.pattern_id, self.role, error) from error
        after = dict(_outside(self.function))
        for name in after:
            if name not in before or not _is_same(before[name], after[name]):
                self.refuse(f"changes `{name}`, which outlives it; {_ONCE}.")
        return graph

    def refuse(self, text: str) -> NoReturn:
        raise PatternError(f"pattern {self.pattern_id!r}: `{self.role}` {text}")

    def refuse_write(self) -> NoReturn:
        self.refuse(
            "writes to a tensor in place; write it out of place "
            "(in-place forms in a model are found all the same)."
        )

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.names]
        return self.function, proxies

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _modes() != self.modes:
            self.refuse(
                "switches gradients or autocast for some of its operators, which a pattern cannot; "
                "use detach() or casts, or a torch.autograd.Function."
            )
        return super().create_node(*args, **kwargs)

    def proxy(self, node: Node) -> Proxy:
        return _RecordedProxy(node, self)


class _RecordedProxy(Proxy):
    """A value that is being recorded; writes that `Proxy` takes for something else are noticed."""

    tracer: Any

    def __getattr__(self, k: str) -> Attribute:
        return _AttributeProxy(self, k)

    def __setattr__(self, name: str, given: Any) -> None:
        if name not in ("tracer", "node", "root", "attr") and not name.startswith("_"):
            self.tracer.refuse(f"sets the attribute `{name}` of a tensor, which no graph holds.")
        super().__setattr__(name, given)

    def __setitem__(self, index: Any, given: Any) -> None:
        self.tracer.refuse_write()

    def __str__(self) -> str:
        return self.tracer.refuse(
            "prints or formats a tensor, which has no values yet; leave that out."
        )

    def __format__(self, spec: str) -> str:
        return str(self)


class _AttributeProxy(_RecordedProxy, Attribute):
    pass


def _inplace(function: Callable[..., Any]) -> Callable[..., Any]:
    def write(self: _RecordedProxy, other: Any) -> Any:
        self.tracer.written.append(self.node)
        return function(self, other)

    return write


for _name in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split():
    setattr(_RecordedProxy, f"__i{_name}__", _inplace(getattr(operator, f"__{_name}__")))


def _modes() -> tuple[bool, ...]:
    """What changes the meaning of an operator without standing in a graph."""
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _outside(function: Any, seen: set[Any] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """Variables that a function and its helpers read but do not own, and what is in them."""
    seen = set() if seen is None else seen
    function = getattr(function, "__func__", function)
    if function in seen or str(function.__module__).partition(".")[0] in ("torch", "fuser"):
        return
    seen.add(function)
    variables: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a cell that is still empty
        closure = inspect.getclosurevars(function)
        variables = {**closure.globals, **closure.nonlocals}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            variables.setdefault(parameter.name, parameter.default)
    for name, given in variables.items():
        yield name, [given, *_items(given)]
        if inspect.isfunction(given):
            yield from _outside(given, seen)


def _items(given: Any) -> list[Any]:
    if isinstance(given, dict):
        return [*given.keys(), *given.values()]
    return list(given) if isinstance(given, (list, set)) else []


def _is_same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


@contextlib.contextmanager
def _recorded_functions(tracer: Tracer) -> Generator[None]:
    """Record a torch.autograd.Function as one call: traced through, its backward would be lost."""
    original: Any = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        bound: Callable[..., Any] = original.__get__(None, cls)
        if any(isinstance(a, Proxy) for a in pytree.tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", bound, args, kwargs)
        return bound(*args, **kwargs)

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)):
        yield


_FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange empty eye full linspace logspace ones rand randint randn randperm scalar_tensor "
        "tensor tril_indices triu_indices zeros"
    ).split()
}


class _RecordedFactories(TorchFunctionMode):
    """Record `torch.ones(3)` as a call: made while tracing, it would be a constant of the graph."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
