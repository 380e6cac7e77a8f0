"""The model that a command is about: `module:callable`, or `path/to/file.py:callable`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from .error import CommandError


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that names a model."""
    parser.add_argument(
        "target",
        metavar="MODULE:CALLABLE",
        help="returns (model, inputs) or (model, inputs, keywords); inputs are a tuple, a dict of "
        "keywords or one tensor. MODULE may be a path to a .py file. A module in training mode is "
        "run with gradients",
    )


@contextlib.contextmanager
def running(target: str) -> Generator[None]:
    """What goes wrong within the block is told of the model.

    Raises:
        CommandError: something was raised.
    """
    from ..errors import FuserError

    try:
        yield
    except FuserError as error:
        raise CommandError(str(error)) from error
    except Exception as error:
        traceback.print_exc()
        raise CommandError(
            f"the model of {target} raised {type(error).__name__} on its inputs"
        ) from error


def with_gradients(model: Any, training: bool) -> bool:
    """Whether a model runs with gradients: it is in training mode, or put there.

    Args:
        model: a module or function.
        training: put it there.
    """
    if training and hasattr(model, "train"):
        model.train()
    return training or bool(getattr(model, "training", False))


def load(target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The model, its arguments and its keyword arguments from `module:callable`.

    Raises:
        CommandError: there is no such thing, it raises, or it returns something else.
    """
    make = _callable(target)
    try:
        made = make()
    except Exception as error:
        traceback.print_exc()
        raise CommandError(f"{target} raised {type(error).__name__}: {error}") from error
    match made:
        case (model, inputs, dict(keywords)) if callable(model):
            return model, _positional(inputs), _keywords(keywords)
        case (model, Mapping() as inputs) if callable(model):
            return model, (), _keywords(inputs)
        case (model, inputs) if callable(model):
            return model, _positional(inputs), {}
        case _:
            size = f" of {len(made)}" if isinstance(made, tuple) else ""
            raise CommandError(
                f"{target} must return (model, inputs) or (model, inputs, keywords), but returned "
                f"{type(made).__name__}{size}"
            )


def _positional(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _keywords(inputs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in inputs.items()}


def _callable(target: str) -> Callable[[], Any]:
    name, _, path = target.rpartition(":")
    if not name or not path:
        raise CommandError(
            f"{target!r} does not name a callable; write module:callable, as in my.models:tiny"
        )
    found: Any = _module(name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:12])
            raise CommandError(f"{name} has no {path!r}; it has: {near or 'nothing'}")
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{target} is not a callable: {type(found).__name__}")
    return found


def _module(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script, unlike `python -m`, does not add it
    try:
        if name.endswith(".py"):
            return _file(Path(name))
        return importlib.import_module(name)
    except CommandError:
        raise
    except ModuleNotFoundError as error:
        raise CommandError(f"cannot import {name!r}: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise CommandError(f"importing {name} raised {type(error).__name__}: {error}") from error


def _file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise CommandError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
