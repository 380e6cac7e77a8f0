"""Errors that are caught and count as unknown: ours fail the tests, and stop no user's program."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser import swallowed
from fuser.graph.fold import Folder

_in_our_code: Any = eval("lambda do: do()", {"__name__": "fuser.anything"})


def undefined() -> None:
    """A user's mistake."""
    raise NameError("what")


def raised(do: Callable[[], Any]) -> Exception:
    """By a call from a module of the package."""
    try:
        _in_our_code(do)
    except Exception as error:
        return error
    raise RuntimeError("it raises nothing")


@pytest.mark.parametrize(
    ("do", "ours"),
    [
        (partial(getattr, object(), "gone"), True),
        (partial({}.__getitem__, 0), True),
        (partial(getattr, torch.nn.Identity(), "gone"), False),
        (partial(torch.add, torch.ones(2), torch.ones(3)), False),
        (partial(torch.add, 1, "x"), False),
        (undefined, False),
    ],
    ids=["attribute", "key", "in_torch", "runtime_error", "type_error", "in_users_code"],
)
def test_what_is_ours(do: Callable[[], Any], ours: bool) -> None:
    assert swallowed.is_ours(raised(do)) is ours


def masked(q: Tensor) -> Tensor:
    """Attention with a mask that is folded while compiling."""
    rows = torch.arange(q.shape[-2])
    scores = (q @ q.mT).masked_fill(rows > rows[:, None], -torch.inf)
    return scores.softmax(-1) @ q


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """Of `masked`, by a package that has lost a method."""
    torch._dynamo.reset()
    monkeypatch.delattr(Folder, "_evaluate")
    options = {"fuser.inner": "eager", "fuser.policy": "always", "fuser.strict": True}
    return torch.compile(masked, backend="fuser", options=options)


def test_a_bug_of_ours_fails_a_test(compiled: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Exception, match="'Folder' object has no attribute '_evaluate'"):
        compiled(torch.randn(1, 2, 16, 8))


def test_it_is_noted_and_stops_no_users_program(
    compiled: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = importlib.util.find_spec("fuser.swallowed")
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    monkeypatch.setattr(swallowed, "raise_ours", fresh.raise_ours)
    q = torch.randn(1, 2, 16, 8)
    with caplog.at_level(logging.DEBUG, logger="fuser"):
        torch.testing.assert_close(compiled(q), masked(q))
    assert any(
        record.name == "fuser.swallowed" and "'_evaluate'" in record.getMessage()
        for record in caplog.records
    )
