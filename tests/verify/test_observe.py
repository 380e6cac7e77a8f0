"""The graph runs once more than the program asks for, and nobody notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuser
from fuser.backend import listening
from fuser.errors import FuserWarning
from fuser.events import Record
from tests.compiled import compiled
from tests.moe.forms import EXPERTS, FEATURES, Stack

from .test_verify import BY_FAMILY, VERIFIED, attend


def compile_(fn: Any) -> Any:
    return torch.compile(fn, backend="fuser", options=VERIFIED)


def inputs() -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(1, 2, 8, 4) for _ in range(3)]


def verdicts(fn: Any, args: Any) -> list[tuple[str, str]]:
    found = compiled(fn, args, **VERIFIED).record.verdicts
    return [(v.outcome, v.reason) for v in found]


def test_inputs_are_changed_once() -> None:
    """A cache of keys that is written to, a buffer that counts, and an input in two places."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("keys", torch.zeros(1, 2, 8, 4))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.count.add_(1)
            self.keys[:, :, 4:] += k[:, :, :4]
            v.mul_(2)
            return attend(q, self.keys, v)

    plain, ours = Cached(), Cached()
    first, second = inputs(), inputs()
    with torch.no_grad():
        expected, found = plain(*first), compile_(ours)(*second)
    torch.testing.assert_close(found, expected)
    assert float(ours.count) == 1
    torch.testing.assert_close(ours.keys, plain.keys)
    torch.testing.assert_close(second, first)
    assert verdicts(Cached(), inputs()) == [("verified", "")]


def test_inputs_that_share_memory() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return attend(y, y, y)

    x = inputs()[0]
    expected = attend(*[x.clone() + 1] * 3)
    with torch.no_grad():
        found = compile_(model)(x, x.view_as(x))
    torch.testing.assert_close(found, expected)


def test_what_is_written_later_is_read_before() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k * 2
        y = attend(q, k, v)
        k.zero_()
        return y + k

    assert verdicts(model, inputs()) == [("verified", "")]


def test_random_streams_do_not_move() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(torch.dropout(q, 0.5, True), k, v)

    def drawn(options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(5)
        with torch.no_grad():
            found = torch.compile(model, backend="fuser", options=options)(*inputs())
        return found, torch.randn(3)

    for x, y in zip(drawn(VERIFIED), drawn({**VERIFIED, "fuser.verify": False}), strict=True):
        assert torch.equal(x, y)


def test_grad_mode_autocast_and_gradients_are_kept() -> None:
    q, k, v = (x.requires_grad_() for x in inputs())

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu"), torch.no_grad():
            y = attend(q, k, v)
        return y

    compile_(model)(q, k, v)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert q.grad is None


@torch._dynamo.allow_in_graph
def noted(x: Tensor) -> Tensor:
    NOTED.append(x.shape)
    return x * 2


NOTED: list[Any] = []


def test_what_may_do_more_is_not_run_twice() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(noted(q), k, v)

    ((outcome, reason),) = verdicts(model, inputs())
    assert outcome == "unverified"
    assert reason.startswith("`noted")
    del NOTED[:]
    with torch.no_grad():
        compile_(model)(*inputs())
    shapes = len([s for s in NOTED if all(type(n) is int for n in s)])
    torch._dynamo.reset()
    del NOTED[:]
    with torch.no_grad():
        plain = {**VERIFIED, "fuser.verify": False}
        torch.compile(model, backend="fuser", options=plain)(*inputs())
    assert len(NOTED) == shapes


class WrittenInPlace(Stack):
    """Weights of all experts, into zeros that are there before."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = weights.new_zeros(len(x), EXPERTS)
        dense.scatter_(1, chosen, weights)
        return dense


def test_gradients_begin_where_the_replacement_does() -> None:
    """The weights of the chosen experts are what both read, and not the dense ones."""
    x = torch.randn(10, FEATURES, requires_grad=True)
    for model in (Stack().eval(), WrittenInPlace().eval()):
        options = {**VERIFIED, "fuser.patterns": "moe"}
        found = fuser.verify(model, x, options=options).expect(moe=1)
        assert found.ok


def test_one_graph_for_all_sizes() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v) / q.shape[-2]

    options = {**VERIFIED, "fuser.inner": "aot_eager"}
    records: list[Record] = []
    call = torch.compile(model, backend="fuser", options=options, dynamic=True)
    with listening(records.append), torch.no_grad():
        for rows in (8, 12, 5):
            x = torch.randn(1, 2, rows, 4)
            torch.testing.assert_close(call(x, x, x), model(x, x, x))
    (record,) = records
    assert [v.outcome for v in record.verdicts] == ["verified"]


def test_dense_mixtures_may_lose_what_is_not_finite() -> None:
    """A NaN of an expert that was not chosen, as `fuser.dense_moe` allows."""
    broken = BY_FAMILY["moe"]
    model = broken.model
    x = broken.inputs()[0].detach()
    with torch.no_grad():
        kept = model.experts[1].down.bias.clone()
        model.experts[1].down.bias[0] = torch.nan
        try:
            found = fuser.verify(model, x, options={**broken.options, "fuser.inner": "eager"})
        finally:
            model.experts[1].down.bias.copy_(kept)
    assert found.ok, str(found)
    assert len(found.verified) == 1


def test_numbers_that_are_not_finite_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs()
    q[0, 0, 3] = torch.nan
    assert verdicts(attend, (q, k, v)) == [("verified", "")]
    from fuser.lowering.attention import reference

    usual = reference._softmax

    def lost(*args: Any) -> Tensor:
        return usual(*args).nan_to_num(0.0)

    monkeypatch.setattr(reference, "_softmax", lost)
    with pytest.warns(FuserWarning, match=r"output 0 at \[0, .*\] is finite elsewhere"):
        ((outcome, _),) = verdicts(attend, (q, k, v))
    assert outcome == "wrong"
