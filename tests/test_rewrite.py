"""What a rewrite may not change: which tensors share memory, and how often it is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import Node

from fuser import registry
from fuser.errors import FuserWarning
from fuser.graph.view import GraphView
from fuser.pattern import Match, Pattern
from fuser.registry import register_pattern
from tests.compiled import assert_near, compiled, run, wide

X = torch.rand(4)
EAGER = {"fuser.inner": "aot_eager", "fuser.policy": "always"}


def _noop(x: Tensor) -> Tensor:
    return x.exp().log()


def _two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.exp() * 2.0, (x.exp() * 2.0).clone() + 0.0


def _shared(x: Tensor) -> tuple[Tensor, Tensor]:
    found = x.exp() * 2.0
    return found, found


def _input_written(x: Tensor) -> tuple[Tensor, Tensor]:
    z = x * 3
    y = _noop(z)
    z.add_(1)
    return z, y


def _result_written(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _two(x)
    b.add_(1)
    return a, b


@pytest.mark.parametrize(
    ("find", "replace", "model"),
    [(_noop, lambda x: x, _input_written), (_two, _shared, _result_written)],
    ids=["an input", "another result"],
)
def test_a_result_is_separated_from(
    find: Callable[..., Any], replace: Callable[..., Any], model: Callable[..., Any]
) -> None:
    with register_pattern(find, replace, (X,), id="mine.shares"):
        ours = compiled(model, (X,))
        assert ours.rewrites("mine") == 1
        torch.testing.assert_close(ours.outputs, run(model, (X,)).outputs)


def test_a_caller_may_write_to_a_result() -> None:
    with register_pattern(_noop, lambda x: x, (X,), id="mine.noop"):
        torch._dynamo.reset()
        x = X.clone()
        torch.compile(_noop, backend="fuser", options=EAGER)(x).zero_()
    assert torch.equal(x, X)


@pytest.mark.parametrize("part", [lambda x: x, lambda x: x.mT], ids=["both", "a view of one"])
def test_equal_results_are_returned_apart(part: Callable[[Tensor], Tensor]) -> None:
    """They are computed once, and whoever writes to one does not change the other."""

    def norms(x: Tensor) -> tuple[Tensor, Tensor]:
        return part(F.rms_norm(x, (4,))), F.rms_norm(x, (4,))

    x = X.expand(3, 4).contiguous()
    ours = compiled(norms, (x,))
    assert ours.rewrites("norm") == 2
    one, other = ours.outputs
    one.zero_()
    torch.testing.assert_close(other, norms(x)[1])


def test_strides_of_no_elements_are_nobodys_business() -> None:
    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()

    x = torch.zeros(0, 8, 3, 3)
    ours = compiled(norm, (x,))
    assert ours.rewrites("norm") == 1
    assert ours.outputs[0].shape == x.shape


def test_a_view_stays_a_view() -> None:
    """Whoever writes to a view of an input writes to the input."""
    settings = {"fuser.strict": False}
    with register_pattern(lambda x: x.mT, lambda x: x.mT + 0.0, (X[None],), id="mine.copy"):
        with pytest.warns(FuserWarning, match="changes the memory of output 0"):
            ours = compiled(lambda x: x.mT, (torch.rand(2, 3),), **settings)
    assert ours.rewrites("mine") == 0
    with register_pattern(lambda x: x.mT, lambda x: x.transpose(-1, -2), (X[None],), id="mine.t"):
        x = torch.rand(2, 3)
        torch._dynamo.reset()
        torch.compile(lambda x: x.mT, backend="fuser", options=EAGER)(x).zero_()
    assert torch.equal(x, torch.zeros(2, 3))


def test_counted_once_where_dynamo_starts_again() -> None:
    """A 0-d float input makes Dynamo restart once it has seen the whole graph."""

    def model(q: Tensor, scale: Tensor) -> Tensor:
        return (q @ q.mT * scale.item()).softmax(-1) @ q

    q = torch.randn(1, 2, 16, 8)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        torch._dynamo.reset()
        counters["fuser"].clear()
        scale = torch.tensor(0.5, dtype=torch.float64)
        found = torch.compile(model, backend="fuser", options=EAGER)(q, scale)
    torch.testing.assert_close(found, model(q, scale))
    assert dict(counters["fuser"]) == {"attention.softmax": 1}


class _Attention(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        score = (q @ k.transpose(-1, -2) / 3.0).masked_fill(hidden, -torch.inf)
        p = torch.softmax(score, -1, dtype=torch.float32).to(q.dtype)
        return (torch.dropout(p, 0.1, False) @ v).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # run_decompositions, of itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decomposed", [False, True])
def test_exported_programs(decomposed: bool, dtype: torch.dtype) -> None:
    """ATen operators, and what `torch.export` asserts beside a cast."""
    inputs = [x.to(dtype) for x in torch.randn(3, 2, 2, 16, 8).unbind()]
    inputs.append(torch.ones(16, 16).triu(1).bool())
    exported = torch.export.export(_Attention(), tuple(inputs))
    if decomposed:
        exported = exported.run_decompositions()
    ours = compiled(exported.module(), inputs)
    assert ours.rewrites() == 1, ours.reasons()
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    assert_near(ours, run(_Attention(), inputs), run(_Attention(), exact))


def test_the_bits_of_another_dtype_are_other_numbers() -> None:
    def model(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.view(torch.float16).mT).softmax(-1) @ k.view(torch.float16)

    q = torch.randn(2, 3, 8).half()
    k = torch.randn(2, 5, 8).half()
    bits = k.view(torch.int16)
    ours = compiled(model, (q, bits))
    assert ours.rewrites() == 1
    assert_near(
        ours, run(model, (q, bits)), run(lambda a, b: (a @ b.mT).softmax(-1) @ b, wide((q, k)))
    )


class _Exp(Pattern):
    """Puts what `replacement` makes of the view and the exponential in its place."""

    id: ClassVar[str] = "mine.exp"

    def __init__(self, replacement: Callable[[GraphView, Node], Any], **fields: Any) -> None:
        self.replacement, self.fields = replacement, fields

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return [n for n in view.nodes if view.op(n).name == "exp"]

    def match(self, view: GraphView, anchor: Node) -> Match:
        put = self.replacement(view, anchor)
        fields: dict[str, Any] = {"replacement": put, "nodes": frozenset([anchor]), **self.fields}
        return Match(self.id, anchor, outputs=(anchor,), **fields)


def _later(view: GraphView) -> Node:
    return [n for n in view.nodes if view.op(n).name == "mul"][-1]


def _attention_then_exp(x: Tensor) -> Tensor:
    return (torch.softmax(x @ x.mT * 0.3, -1) @ x).exp() * 2.0


@pytest.mark.parametrize(
    ("replacement", "fields", "text"),
    [
        (lambda v, a: lambda b: [b.call(torch.exp, _later(v))], {}, "which is computed after"),
        (lambda v, a: lambda b: [_later(v)], {}, "which is computed after"),
        (lambda v, a: lambda b: [b.call(torch.exp_, a.args[0])], {}, "which it did not make"),
        (lambda v, a: lambda b: a, {}, "a list of 1 nodes, one for each output, is expected"),
        (lambda v, a: lambda b: [a.args[0], a.args[0]], {}, "returned 2 nodes"),
        (lambda v, a: lambda b: [5], {}, "a list of 1 nodes"),
        (lambda v, a: lambda b: None, {}, "returned None"),
        (lambda v, a: 5, {}, "replacement is 5, which cannot be called"),
        (lambda v, a: lambda b: [a.args[0]], {"facts": None}, "facts are no mapping"),
        (lambda v, a: lambda b: [a.args[0]], {"nodes": ["exp"]}, "nodes are no set"),
    ],
)
def test_a_replacement_that_cannot_be(
    replacement: Callable[..., Any], fields: dict[str, Any], text: str
) -> None:
    """One warning that says why; the model runs, and other patterns are not affected."""
    x = torch.rand(1, 2, 5, 8)
    pattern = _Exp(replacement, **fields)
    registry.add(pattern, "here")
    torch._dynamo.reset()
    counters["fuser"].clear()
    try:
        with pytest.warns(FuserWarning, match="mine.exp") as caught:
            ours = torch.compile(_attention_then_exp, backend="fuser", options=EAGER)(x)
    finally:
        registry.remove(pattern.id)
    assert len(caught) == 1
    assert text in str(caught[0].message)
    torch.testing.assert_close(ours, _attention_then_exp(x))
    assert counters["fuser"] == {"attention.softmax": 1, "failed: mine.exp": 1}


def test_anchors_that_are_no_nodes() -> None:
    class Bad(_Exp):
        def anchors(self, view: GraphView) -> Any:
            return ["exp"]

    pattern = Bad(lambda v, a: None)
    registry.add(pattern, "here")
    torch._dynamo.reset()
    try:
        with pytest.warns(FuserWarning, match="gave 'exp', which is no node of the graph"):
            torch.compile(_attention_then_exp, backend="fuser", options=EAGER)(torch.rand(2, 5, 8))
    finally:
        registry.remove(pattern.id)


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (lambda x: torch.nn.functional.gelu(x) * 2 + 1, (0, 8)),
        (lambda x: torch.nn.functional.gelu(x) * 2 + 1, (8, 0)),
        (lambda x: torch.nn.functional.silu(x[..., :4]) * x[..., 4:], (2, 0, 8)),
        (_rms, (0, 3, 8)),
    ],
    ids=["activation", "activation of no columns", "gate", "norm"],
)
def test_nothing_beside_a_size_that_is_not_known(
    fn: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """A reshape of no elements cannot be told to find out a size."""
    ours = compiled(fn, (torch.randn(shape),), dynamic=True)
    assert ours.record.failures == []
    assert ours.record.rewritten
    assert ours.outputs[0].shape == fn(torch.randn(shape)).shape
