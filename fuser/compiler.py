"""`fuser.compile`: torch.compile with this backend, and what mixtures of experts need beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import nn
from torch.fx import GraphModule

from .backend import fuser
from .capture import caller_of, capture_whole
from .errors import FuserError
from .experts import use_experts

F = TypeVar("F", bound=Callable[..., Any])


def loops(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """The backend under another identity, so that what `torch.compile(model, backend="fuser")` has
    compiled is not taken for what `fuser.compile` would."""
    return fuser(gm, example_inputs, **kwargs)


@overload
def compile(model: F, /, **kwargs: Any) -> F: ...
@overload
def compile(model: None = None, /, **kwargs: Any) -> Callable[[F], F]: ...


def compile(model: Any = None, /, **kwargs: Any) -> Any:
    """Compile a module or function with the fuser backend, loops over experts included.

        model = fuser.compile(model, options={"fuser.policy": "always"})

    It is `torch.compile(model, backend="fuser", **kwargs)`, and for this model alone:

    - loops over experts with a fixed number of turns are captured in one graph, where that works;
      functions for which it fails are compiled as `torch.compile` would. No setting of Dynamo is
      changed outside of the compilation of this model's functions.
    - loops over the experts that were hit, and conditions that leave out experts without tokens,
      are captured for all experts where that is proved to be the same, also where Python is told
      how many tokens each expert has. Parameters of an expert without tokens then have a gradient
      of zeros, not None.
    - experts of transformers' models for which `experts_implementation="eager"` was chosen, a loop
      over the experts that were hit, run as a loop over all experts within compiled code. The
      configuration still says "eager", and so does the model when it is called without compiling.

    Args:
        model: a module or function; None makes a decorator.
        kwargs: what torch.compile takes, but for `backend`.

    Returns:
        what torch.compile returns: a module that shares its parameters with `model`, or a function.

    Raises:
        FuserError: `model` is a class or nothing that can be called, or another backend is named.
    """
    backend = kwargs.pop("backend", "fuser")
    if backend != "fuser":
        raise FuserError(
            f"fuser.compile compiles with the backend 'fuser', but was given {backend!r}. Use "
            "torch.compile for another backend, or the option 'fuser.inner' for what compiles the "
            "rewritten graph."
        )
    if model is None:
        return lambda given: _compile(given, kwargs)
    return _compile(model, kwargs)


def _compile(model: Any, kwargs: dict[str, Any]) -> Any:
    if isinstance(model, type):
        raise FuserError(
            f"fuser.compile takes a module or function, but was given the class {model.__name__}; "
            "make an instance of it first."
        )
    if not callable(model):
        raise FuserError(
            f"fuser.compile takes a module or function, but was given {model!r}, which cannot be "
            "called."
        )
    plain = getattr(model, "_orig_mod", getattr(model, "_torchdynamo_orig_callable", model))
    strict = bool(kwargs.get("fullgraph", False))
    if not isinstance(plain, nn.Module):
        called = functools.update_wrapper(caller_of(plain), plain)
        compiled: Any = torch.compile(called, backend=loops, **kwargs)
        owner = getattr(plain, "__self__", None)
        if capture_whole(compiled, strict) and isinstance(owner, nn.Module):
            use_experts(owner)
        return compiled
    compiled = torch.compile(plain, backend=loops, **kwargs)
    if capture_whole(compiled, strict):
        use_experts(plain)
        name = "_forward" if hasattr(plain, "_initialize_hook") else "forward"
        usual, own = getattr(compiled, name), compiled.dynamo_ctx(caller_of(plain))
        setattr(compiled, name, _either(plain, usual, own))
    return compiled


def _either(
    module: nn.Module, usual: Callable[..., Any], own: Callable[..., Any]
) -> Callable[..., Any]:
    """A module's hooks may come and go, and are run by torch.compile's own way."""

    @functools.wraps(usual)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (usual if _is_hooked(module) else own)(*args, **kwargs)

    return forward


def _is_hooked(module: nn.Module) -> bool:
    """Whether more than its `forward` runs, which Dynamo is not shown, or torch's own wrapper of a
    module, which it knows."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or type(module).__module__.partition(".")[0] == "torch"
