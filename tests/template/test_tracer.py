"""What a recorded function may not do, because the graph would silently leave it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.errors import PatternError
from fuser.registry import register_pattern

X = torch.ones(3, 4)
CALLS: list[Any] = []
KNOWN: dict[str, Any] = {}
COUNT = 0


def plain(x: Tensor) -> Tensor:
    return x.exp().sin()


def to_a_list(x: Tensor) -> Tensor:
    CALLS.append(x)
    return plain(x)


def to_a_dict(x: Tensor) -> Tensor:
    KNOWN["x"] = x
    return plain(x)


def to_a_global(x: Tensor) -> Tensor:
    global COUNT
    COUNT += 1
    return plain(x)


def in_a_helper(x: Tensor) -> Tensor:
    return to_a_list(x)


def to_a_default(x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
    seen.append(1)
    return plain(x)


def to_a_closure() -> Callable[[Tensor], Tensor]:
    count = 0

    def function(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return plain(x)

    return function


def augmented(x: Tensor) -> Tensor:
    x += 1
    return plain(x)


def of_a_view(x: Tensor) -> Tensor:
    y = x.mT
    y *= 2
    return plain(x)


def of_an_attribute(x: Tensor) -> Tensor:
    x.data.mul_(2)
    return plain(x)


def item(x: Tensor) -> Tensor:
    x[0] = 1
    return plain(x)


def data(x: Tensor) -> Tensor:
    x.data = x + 1
    return plain(x)


def printed(x: Tensor) -> Tensor:
    print("x:", x)
    return plain(x)


def formatted(x: Tensor) -> Tensor:
    str(f"{x.mean():.3f}")
    return plain(x)


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
    return y.sin()


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return plain(x)


IN_PLACE = "writes to a tensor in place; write it out of place"
ONCE = "which outlives it; it is called once, when the pattern is registered"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "list": (to_a_list, f"changes `CALLS`, {ONCE}"),
    "dict": (to_a_dict, f"changes `KNOWN`, {ONCE}"),
    "global": (to_a_global, f"changes `COUNT`, {ONCE}"),
    "helper": (in_a_helper, f"changes `CALLS`, {ONCE}"),
    "default": (to_a_default, f"changes `seen`, {ONCE}"),
    "closure": (to_a_closure(), f"changes `count`, {ONCE}"),
    "augmented": (augmented, IN_PLACE),
    "view": (of_a_view, IN_PLACE),
    "attribute": (of_an_attribute, IN_PLACE),
    "item": (item, IN_PLACE),
    "data": (data, "sets the attribute `data` of a tensor, which no graph holds"),
    "print": (printed, "prints or formats a tensor, which has no values yet"),
    "format": (formatted, "prints or formats a tensor, which has no values yet"),
    "no_grad": (without_gradients, "switches gradients or autocast .* use detach"),
    "autocast": (autocast, "switches gradients or autocast .* or casts"),
}


@pytest.mark.parametrize("role", ["find", "replace"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_in_the_graph_is_refused(name: str, role: str) -> None:
    function, text = REFUSED[name]
    functions = {"find": plain, "replace": plain, role: function}
    with pytest.raises(PatternError, match=f"`{role}` {text}"):
        register_pattern(functions["find"], functions["replace"], (X,), id="mine.pattern")


def test_what_is_only_read_may_be_outside() -> None:
    scales, table = [2.0, 3.0], {"eps": 1e-6}

    def find(x: Tensor) -> Tensor:
        half = x.shape[-1]
        half //= 2  # a number, no tensor
        return x[..., :half] * scales[0] + table["eps"]

    register_pattern(find, lambda x: find(x), (X,), id="mine.pattern").unregister()
    with torch.no_grad():  # of the caller, not of the function
        register_pattern(find, lambda x: find(x), (X,), id="mine.pattern").unregister()


def test_a_tensor_is_no_constant() -> None:
    with pytest.raises(PatternError, match="`find` holds a tensor from elsewhere"):
        register_pattern(lambda x: x * X, plain, (X,), id="mine.pattern")
