"""Values known while compiling: what counts as known, and that it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from fuser.graph.fold import Folder

from .capture import captured, last, named

X = torch.randn(2, 5, 5)


def _mask(x: Tensor) -> Tensor:
    i = torch.arange(x.shape[-1], device=x.device)
    return (i[:, None] >= i) & (i[:, None] - i < 3)


def test_a_mask_is_computed() -> None:
    view = captured(lambda x: x.masked_fill(~_mask(x), -torch.inf), (X,))
    folder = Folder(view)
    node = named(view, "bitwise_and")
    assert folder.is_known(node)
    found = folder.tensor(node)
    assert found is not None
    assert type(found) is Tensor
    assert torch.equal(found, _mask(X))
    assert not folder.is_known(last(view))
    assert folder.tensor(last(view)) is None


def test_autocast_and_modes_around_do_not_matter() -> None:
    view = captured(lambda x: x + torch.full((5, 5), 0.1) @ torch.full((5, 5), 0.2), (X,))
    folder = Folder(view)
    with torch.autocast("cpu", torch.bfloat16):
        found = folder.tensor(named(view, "matmul"))
    assert found is not None
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, torch.full((5, 5), 0.1))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x + torch.rand(5, 5).sin(),
        lambda x: x + torch.zeros_like(x[0]).sin(),
        lambda x: x + torch.full((5,), x.shape[0] * 1.0).bernoulli_().sin(),
        lambda x: x + torch.zeros(5).geometric_(0.5).sin(),
        lambda x: x + torch.zeros(5).cauchy_().sin(),
        lambda x: x + torch.zeros(5, 5).copy_(x[0]).sin(),
        lambda x: x + _filled(x[0, 0], 1.0).sin(),
        lambda x: x + _filled(1.0, x[0, 0, 0]).sin(),
    ],
    ids=[
        "random",
        "of an input",
        "random in place",
        "random by another name",
        "random from a distribution",
        "written from an input",
        "an element from an input",
        "a later element from an input",
    ],
)
def test_unknown(fn: Callable[[Tensor], Tensor]) -> None:
    view = captured(fn, (X,))
    assert Folder(view).tensor(named(view, "sin")) is None


def _filled(first: Tensor | float, second: Tensor | float) -> Tensor:
    mask = torch.zeros(5, 5)
    mask[0] = first
    mask[1, 2:] = second
    return mask


def _filled_through_views() -> Tensor:
    mask = torch.full((5, 5), -3.0)
    part = mask[1:]
    part *= torch.arange(5.0)
    part.T.masked_fill_(torch.ones(5, 4).triu().bool(), 7.0)
    before = mask.clone()
    mask.diagonal().fill_(2.0)
    return torch.cat([mask, before])


WRITTEN: dict[str, Callable[[], Tensor]] = {
    "filled": lambda: torch.zeros(5, 5).fill_(1.0),
    "elements": lambda: _filled(3.0, -1e9),
    "views": _filled_through_views,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_filled_in_place(name: str) -> None:
    make = WRITTEN[name]
    view = captured(lambda x: x.sum() + make().sin(), (X,))
    found = Folder(view).tensor(named(view, "sin"))
    assert found is not None
    assert torch.equal(found, make().sin())


def test_a_reader_before_the_last_write_makes_it_unknown() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(5, 5)
        early = x + mask
        mask[0] = 2.0
        return early, x + mask.sin()

    view = captured(fn, (X,))
    folder = Folder(view)
    assert folder.tensor(named(view, "sin")) is None


def test_memory_that_outlives_the_call_is_unknown() -> None:
    counter = nn.Module()
    counter.register_buffer("seen", torch.zeros(5))

    def fn(x: Tensor) -> Tensor:
        counter.seen += 1
        return x + counter.seen.sin()

    view = captured(fn, (X,))
    assert Folder(view).tensor(named(view, "sin")) is None


def test_parameters_are_inputs() -> None:
    """Weights change between calls."""
    layer = nn.Linear(5, 5)
    view = captured(lambda x: x + layer.weight.sin(), (X,))
    assert Folder(view).tensor(named(view, "sin")) is None


def test_symbolic_sizes_are_unknown() -> None:
    view = captured(lambda x: x + torch.arange(x.shape[-1]).sin(), (X,), dynamic=True)
    assert Folder(view).tensor(named(view, "sin")) is None


def test_what_fails_is_unknown() -> None:
    view = captured(lambda x: x + torch.full((5, 5), 1.0).sin(), (X,))
    node = named(view, "sin")
    (source,) = node.all_input_nodes
    node.args = (source, "no such argument")
    folder = Folder(view)
    assert folder.tensor(node) is None
    assert not folder.is_known(node)


@pytest.mark.parametrize("shape", [(5, 5), (1,), ()])
def test_evaluated_once(shape: Sequence[int]) -> None:
    view = captured(lambda x: x + torch.ones(shape).sin(), (X,))
    folder = Folder(view)
    node = named(view, "sin")
    assert folder.tensor(node) is folder.tensor(node)
