"""Generated attention kernels in Triton's interpreter: numbers, gradients, masks, dropout.

`FUSER_EVERY=1` takes float16 everywhere, too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fuser.graph.program import gather
from fuser.lowering.attention.generated import operator, problem, run_backward
from fuser.lowering.attention.generated.catalogue import recording
from fuser.lowering.attention.generated.run_backward import PROGRAMS, parts_of
from fuser.lowering.attention.generated.run_forward import forward, splits_of
from fuser.lowering.triton import launch
from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY, crossed, some
from tests.lowering.generated import Operands, check, generated, operands, outcome, reference, spec

torch.fx.wrap("gather")
DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if EVERY else [])]


def softcap(s0: Tensor) -> Tensor:
    return torch.tanh(s0 / 5.0) * 5.0


def plus(s0: Tensor, c0: Tensor) -> Tensor:
    return s0 * 0.3 + c0


def bent(s0: Tensor, c0: Tensor) -> Tensor:
    """Of which a softmax does not cancel what all keys have in common."""
    return torch.tanh(s0 * 0.3 + c0) * 2.0


def hidden(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0, s0 * 0.3, -math.inf)


def lowest(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0, s0 * 0.3, torch.finfo(torch.float16).min)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("features", "values"),
    [(16, 16), (24, 40), (64, 64), (72, 80), (96, 96), (128, 128), (192, 128), (256, 256)],
)
def test_head_dimensions(features: int, values: int, dtype: torch.dtype) -> None:
    x = operands(batch=1, heads=2, kv=1, features=features, values=values, dtype=dtype)
    scale = features**-0.5
    check(spec(lambda s0: s0 * scale, dtype=dtype), x)


@pytest.mark.parametrize(
    ("rows", "keys", "dtype"),
    some([
        (1, 1, torch.float32), (1, 1, torch.bfloat16), (1, 500, torch.float32),
        (1, 500, torch.float16), (3, 17, torch.bfloat16), (3, 17, torch.float16),
        (17, 3, torch.float32), (17, 3, torch.bfloat16), (127, 129, torch.float32),
        (129, 127, torch.float16), (3, 500, torch.float32), (3, 500, torch.bfloat16),
    ], 2, 1),
)  # fmt: skip
def test_odd_sizes(rows: int, keys: int, dtype: torch.dtype) -> None:
    """One query of many keys is split over programs, whose parts a second kernel adds up."""
    x = operands((2, rows, keys), batch=1, heads=2, kv=1, rows=rows, keys=keys, dtype=dtype)
    check(spec(plus, dtype=dtype), x)


@pytest.mark.parametrize(
    ("sizes", "name"),
    crossed([(1, 517), (5, 160), (5, 517), (40, 160)], ("none", "bottom right", "window")),
    ids=str,
)
def test_keys_are_split_over_all_processors(
    name: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts have the same number of tiles, but for the last one, which may end in one."""
    monkeypatch.setattr(launch, "INTERPRETER", replace(launch.INTERPRETER, processors=132))
    x = operands(batch=1, heads=2, kv=1, rows=sizes[0], keys=sizes[1])
    of = spec() if name == "none" else replace(_masked(name), dead_rows_are_zero=True)
    with recording() as entries:
        check(of, x)
    assert any(e.stage == "combine" for e in entries.values())


@pytest.mark.parametrize("dtype", some([torch.float32, torch.bfloat16], 2), ids=str)
@pytest.mark.parametrize(
    ("shape", "in_parts"),
    [((20, 28), True), ((1, 2, 20, 28), True), ((5, 1, 20, 28), False), ((5, 2, 20, 28), False)],
    ids=str,
)
def test_sums_over_the_batch_are_split_over_all_processors(
    shape: tuple[int, ...], in_parts: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not sums of two terms."""
    monkeypatch.setattr(launch, "INTERPRETER", replace(launch.INTERPRETER, processors=132))
    x = operands(shape, batch=5, heads=2, kv=1, dtype=dtype)
    with recording() as entries:
        check(spec(plus, dtype=dtype), x)
    (arguments,) = (e.arguments for e in entries.values() if e.stage == "tiles")
    assert arguments == (0, in_parts)


@pytest.mark.parametrize("processors", [1, 4, 132])
@pytest.mark.parametrize("programs", [1, 3, 64, 500])
@pytest.mark.parametrize("repeats", [1, 2, 5, 256])
def test_no_part_of_a_sum_is_empty(repeats: int, programs: int, processors: int) -> None:
    target = replace(launch.INTERPRETER, processors=processors)
    parts = parts_of(programs, repeats, target)
    each = -(-repeats // parts)
    assert (parts - 1) * each < repeats <= parts * each
    assert parts == 1 or programs * parts <= PROGRAMS * processors


@pytest.mark.parametrize("processors", range(1, 40))
@pytest.mark.parametrize("tiles", [1, 2, 9, 33])
def test_no_part_of_the_keys_is_empty(tiles: int, processors: int) -> None:
    target = replace(launch.INTERPRETER, processors=processors)
    layout = problem.problem(*_plain(), spec().to_text(), "").layout
    splits = splits_of(layout, 1, tiles, target)
    each = -(-tiles // splits)
    assert splits <= max(1, processors)
    assert (splits - 1) * each < tiles <= splits * each


def _plain() -> tuple[Any, ...]:
    x = operands()
    return x.q, x.k, x.v, [], None


def test_many_queries_and_keys() -> None:
    x = operands(batch=1, heads=1, kv=1, rows=500, keys=500)
    check(spec(mask=lambda iq, ik: (ik <= iq) & (iq - ik < 100)), x)


CAPTURED = [
    (2, 4, 20, 28), (1, 4, 20, 28), (2, 1, 20, 28), (20, 28), (2, 1, 1, 28), (1, 4, 1, 28),
    (28,), (4, 1, 1), (2, 1, 20, 1), (1, 4, 20, 1), (2, 1, 1, 1), (1,), (),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "dtype"), crossed(CAPTURED, DTYPES), ids=str)
def test_captured_tensors_of_any_shape_train(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    program = plus if shape[-1:] == (28,) else bent
    check(spec(program, dtype=dtype), operands(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize(("score", "kept"), [(hidden, 0.6), (hidden, 0.03), (lowest, 0.03)])
def test_masks_from_data(score: object, kept: float, dtype: torch.dtype) -> None:
    """Queries without any key give NaN where eager does, and a mean where it does that."""
    x = operands(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    x.captured.append(torch.rand((2, 1, 20, 28), generator=generator) < kept)
    out = check(spec(score, dtype=dtype), x).outputs[0]  # type: ignore[arg-type]
    assert bool(out.isnan().any()) == (score is hidden and kept < 0.1)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [(-1e9, torch.float32), (-1e9, torch.bfloat16), (-1e5, torch.bfloat16), (-3e4, torch.float16)],
)
def test_queries_whose_keys_are_all_hidden_by_a_number(fill: float, dtype: torch.dtype) -> None:
    """They attend to all keys alike, and the sum of their exponentials is not lost beside that."""
    x = operands(dtype=dtype)
    x.captured.append(torch.zeros(2, 1, 20, 28, dtype=torch.bool))
    x.captured[0][:, :, ::3] = True
    check(spec(lambda s0, c0: (s0 * 0.3).masked_fill(c0, fill), dtype=dtype), x)


def test_dead_rows_are_zero() -> None:
    x = operands()
    x.captured.append(torch.rand((2, 1, 20, 28), generator=torch.Generator().manual_seed(1)) < 0.03)
    out = check(spec(hidden, dead_rows_are_zero=True), x).outputs[0]
    assert (out == 0).all(-1).any()


SINKS = [(1, 4, 1, 1), (2, 4, 20, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "rows", "dtype"),
    crossed(SINKS, (20, 1), (torch.float32, torch.float16)), ids=str,
)  # fmt: skip
def test_sinks(rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    shape = tuple(rows if size == 20 else size for size in shape)
    x = operands(shape, rows=rows, keys=100, dtype=dtype)
    check(spec(sink="c0", dtype=dtype), x)


def test_a_sink_that_is_a_bias_too() -> None:
    check(spec(plus, sink="c0"), operands((1, 4, 1, 1)))


def test_softmax_plus_one() -> None:
    check(spec(sink="0"), operands())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_products(dtype: torch.dtype) -> None:
    x = operands((4, 1, 1), products=2, dtype=dtype)
    check(spec(lambda s0, s1, c0: (s0 + s1 * c0) * 0.2, dtype=dtype), x)


def test_products_of_different_depth() -> None:
    x = operands(products=2)
    x.q[1], x.k[1] = (t.detach()[..., :8].requires_grad_() for t in (x.q[1], x.k[1]))
    check(spec(lambda s0, s1: s0 * 0.2 + s1), x)


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize(
    "probs",
    [
        lambda p, c0: p * c0,
        lambda p, c0: p + c0,
        lambda p, c0: p * p / (c0 * c0 + 1.0),
        lambda p, c0: torch.where(p > 0.05, p, c0),
    ],
    ids=["scaled", "shifted", "squared", "chosen"],
)
def test_programs_after_the_softmax(probs: object, dtype: torch.dtype) -> None:
    check(spec(probs=probs, dtype=dtype), operands((4, 1, 28), dtype=dtype))  # type: ignore[arg-type]


def test_a_softcap_with_a_trained_scale_and_bias() -> None:
    def score(s0: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
        return torch.tanh(s0 * torch.exp(c0)) * 3.0 - torch.nn.functional.softplus(c1)

    check(spec(score), operands((4, 1, 1), (1, 1, 28)))


MASKS = {
    "causal": lambda iq, ik: ik <= iq,
    "bottom right": lambda iq, ik, nq, nk: ik <= iq + (nk - nq),
    "window": lambda iq, ik: (ik <= iq) & (iq - ik < 7),
    "two sides": lambda iq, ik: abs(iq - ik) < 19,
    "chunks": lambda iq, ik: iq // 17 == ik // 17,
    "prefix": lambda iq, ik: (ik <= iq) | (ik < 20),
    "dilated": lambda iq, ik: (ik <= iq) & ((iq - ik) % 3 == 0),
    "by head": lambda ih, iq, ik: (ik <= iq) & (iq - ik <= ih * 5),
    "documents": lambda ib, iq, ik, c0: (ik <= iq) & (gather(c0, ib, iq) == gather(c0, ib, ik)),
}


@pytest.mark.parametrize(("name", "rows"), crossed(MASKS, (50, 3)))
def test_structured_masks(name: str, rows: int) -> None:
    x = operands(rows=rows, keys=64)
    if name == "documents":
        lengths = torch.randint(0, 4, (2, 64), generator=torch.Generator().manual_seed(2))
        x.captured.append(lengths.sort(-1).values)
    of = replace(_masked(name), dead_rows_are_zero=name == "two sides")
    check(of, x)


def _masked(name: str):
    return spec(mask=MASKS[name])


def test_a_linear_bias_from_positions() -> None:
    def score(s0: Tensor, c0: Tensor, iq: Tensor, ik: Tensor) -> Tensor:
        return s0 * 0.3 + c0 * (ik - iq)

    check(spec(score, mask=MASKS["causal"]), operands((4, 1, 1), rows=40, keys=40))


def test_strided_operands() -> None:
    """Heads last in memory, reversed sizes, a broadcast batch."""
    x = operands((4, 20, 28))
    generator = torch.Generator().manual_seed(4)
    memory = torch.randn(20, 2, 16, 4, generator=generator)
    x.q[0] = memory.permute(1, 3, 0, 2).detach().requires_grad_()
    values = torch.randn(1, 2, 28, 32, generator=generator).expand(2, 2, 28, 32)[..., ::2]
    x.v = values.detach().requires_grad_()
    bias = torch.randn(28, 20, 4, generator=generator).permute(2, 1, 0)
    x.captured[0] = bias.detach().requires_grad_()
    check(spec(plus), x)


def test_coarse_rounding_is_kept_where_the_result_is_finer() -> None:
    def score(s0: Tensor) -> Tensor:
        return (s0 * 0.3).to(dtype=torch.bfloat16)

    of, x = spec(score), operands()
    ours, theirs = outcome(generated, of, x), outcome(reference, of, x)
    torch.testing.assert_close(ours.outputs[0], theirs.outputs[0], rtol=2e-2, atol=2e-3)
    wide = outcome(generated, spec(), x).outputs[0]
    near = (ours.outputs[0] - theirs.outputs[0]).abs().mean()
    assert near < 0.3 * (wide - theirs.outputs[0]).abs().mean()


class Largest(TorchDispatchMode):
    """The most bytes that an operator below this mode returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(found):
            if isinstance(t, Tensor):
                self.bytes = max(self.bytes, t.nbytes)
        return found


def test_nothing_of_queries_times_keys_is_made() -> None:
    x = operands((4, 1, 1), batch=1, rows=130, keys=130, features=8)
    text = spec(plus, mask=MASKS["causal"]).to_text()
    with torch.no_grad(), Largest() as largest:
        of = problem.problem(x.q, x.k, x.v, x.captured, None, text, "")
        out, row_max, row_sum = forward(of)
        run_backward.backward(of, torch.ones_like(out), out, row_max, row_sum, [True] * 4)
    assert largest.bytes == out.nbytes < 130 * 130 * 4


def test_gradients_are_the_same_in_every_run() -> None:
    of, x = spec(plus, mask=MASKS["causal"]), operands((4, 20, 28))
    first, second = outcome(generated, of, x), outcome(generated, of, x)
    assert all(torch.equal(a, b) for a, b in zip(first.grads, second.grads, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize(
    ("score", "shapes", "fields"),
    [
        (lambda s0: s0 * 0.3, (), {"mask": MASKS["causal"]}),
        (lambda s0, c0: s0 * c0, ((4, 1, 1),), {}),
        (lambda s0, c0: torch.exp(s0 * 0.1) + c0, ((2, 4, 20, 1),), {"sink": "0"}),
        (lambda s0, s1, c0: (s0 + s1) * c0, ((),), {}),
    ],
    ids=["causal", "scale", "unbounded", "products"],
)
def test_atomics(
    score: object, shapes: tuple[tuple[int, ...], ...], fields: dict[str, Any], dtype: torch.dtype
) -> None:
    """What queries own is added up by the programs that own keys; other gradients are the same."""
    of = spec(score, dtype=dtype, **fields)  # type: ignore[arg-type]
    x = operands(*shapes, products=of.contractions, dtype=dtype)
    check(of, x, atomics=True)


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize("shape", [(), (2, 1, 1, 28), (2, 4, 20, 28)], ids=str)
def test_dk_and_dv_apart(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where heads are wide; gradients that belong to keys come with dk."""
    monkeypatch.setattr(run_backward, "splits_keys", lambda *_: True)
    x = operands(*([shape] if shape else []), dtype=dtype, products=1 if shape else 2)
    score = plus if shape else (lambda s0, s1: (s0 + s1) * 0.2)
    with recording() as entries:
        check(spec(score, dtype=dtype), x)
    assert {"dk", "dv"} < {e.stage for e in entries.values()}


@pytest.mark.parametrize("part", ["k", "v"])
def test_one_of_dk_and_dv(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_backward, "splits_keys", lambda *_: True)
    x = operands()
    for t in (*x.q, *(x.k if part == "v" else [x.v])):
        t.requires_grad_(False)
    with recording() as entries:
        check(spec(), x)
    assert [e.stage for e in entries.values()] == ["forward", f"d{part}"]


def test_atomics_take_one_kernel() -> None:
    of, x = spec(plus, mask=MASKS["causal"]), operands((2, 4, 20, 1))
    with recording() as entries:
        outcome(partial(generated, atomics=True), of, x)
    assert [e.stage for e in entries.values()] == ["forward", "keys"]


@pytest.mark.parametrize("deterministic", [False, True])
def test_who_asks_for_atomics(deterministic: bool) -> None:
    x = operands(heads=2).placed()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with recording() as entries:
            options = {"fuser.lowering": "triton", "fuser.atomics": True}
            compiled(attention, (x.q[0], x.k[0], x.v), grad=True, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    found = [e.stage for e in entries.values()]
    assert found == (["forward", "rows", "keys"] if deterministic else ["forward", "keys"])


@pytest.mark.parametrize("shared", [True, False])
def test_a_bias_with_heads_last_is_read_with_keys_beside_each_other(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    strides: list[tuple[int, ...]] = []

    def noted(*arguments: Any) -> Any:
        found = problem.problem(*arguments)
        strides.extend(c.stride() for c in found.captured)
        return found

    def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) + bias.movedim(-1, -3), -1) @ v

    monkeypatch.setattr(operator, "problem", noted)
    x = operands((20, 28, 2) if shared else (2, 20, 28, 2), heads=2).placed()
    args = (x.q[0], x.k[0], x.v, x.captured[0])
    ours = compiled(biased, args, grad=True, **{"fuser.lowering": "triton"})
    assert_near(ours, run(biased, args, grad=True), run(biased, wide(args), grad=True))
    assert strides
    assert all(stride[-1] == 1 for stride in strides)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v


def test_a_symbolic_number_of_features() -> None:
    x, y = (operands(heads=2, features=n, values=24).placed() for n in (16, 40))
    arguments = [(z.q[0], z.k[0], z.v) for z in (x, y)]
    options: dict[str, Any] = {"fuser.lowering": "triton"}
    with recording() as entries:
        for args in arguments:
            ours = compiled(attention, args, grad=True, dynamic=True, **options)
            own, exact = run(attention, args, grad=True), run(attention, wide(args), grad=True)
            assert_near(ours, own, exact)
    assert [e.stage for e in entries.values()] == ["forward", "rows", "keys"] * 2


class TestDropout:
    """Philox at positions: forward and backward agree, and a seed reproduces."""

    rate = 0.3

    def probabilities(self, seed: int, rows: int = 24, keys: int = 40) -> Tensor:
        """The dropped probabilities themselves, since v is the identity."""
        x = operands(heads=2, kv=1, rows=rows, keys=keys, features=8)
        x.v = torch.eye(keys).expand(2, 1, keys, keys)
        return generated(spec(dropout=self.rate), x, torch.tensor([seed])).detach()

    def test_rate_and_scale(self) -> None:
        x = operands(heads=2, kv=1, rows=24, keys=40, features=8)
        x.v = torch.eye(40).expand(2, 1, 40, 40)
        p = reference(spec(), x)
        dropped = self.probabilities(5)
        kept = dropped != 0
        assert abs(kept.double().mean() - (1 - self.rate)) < 0.03
        torch.testing.assert_close(dropped[kept], (p / (1 - self.rate))[kept])
        # neither a row nor a column, head or batch repeats another
        flat = kept.flatten(0, 2)
        assert len(flat.unique(dim=0)) == len(flat)

    def test_seeds(self) -> None:
        first = self.probabilities(5)
        assert torch.equal(first, self.probabilities(5))
        assert not torch.equal(first, self.probabilities(6))
        assert not torch.equal(first, self.probabilities(5 + 2**32))

    def test_backward_drops_the_same(self) -> None:
        """Gradients are those of a multiplication with the mask that the forward drew."""
        kept = self.probabilities(5) != 0
        x = operands(heads=2, kv=1, rows=24, keys=40, features=8)
        seed = torch.tensor([5])
        ours = outcome(lambda of, x: generated(of, x, seed), spec(dropout=self.rate), x)
        masked = Operands(x.q, x.k, x.v, [kept.float() / (1 - self.rate)])
        theirs = outcome(reference, spec(probs=lambda p, c0: p * c0), masked)
        for a, b in zip(
            (*ours.outputs, *ours.grads), (*theirs.outputs, *theirs.grads), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [17, 1])
def test_opcheck(rows: int) -> None:
    x = operands((2, 1, 1), batch=1, heads=2, kv=1, rows=rows, keys=20, features=8)
    kinds = [(spec(plus), None), (spec(plus, dropout=0.2), torch.tensor([3]))]
    for of, seed in kinds if rows == 1 else kinds[:1]:
        args = (x.q, x.k, x.v, x.captured, seed, of.to_text(), "", False)
        torch.library.opcheck(torch.ops.fuser.generated_attention.default, args)
        detached = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, args)
        torch.library.opcheck(torch.ops.fuser.interpreted_attention.default, detached)
        out = torch.ops.fuser.generated_attention(*detached)
        given = (torch.ones_like(out[0]), *out, *detached, [True] * 4)
        torch.library.opcheck(torch.ops.fuser.generated_attention_backward.default, given)
        torch.library.opcheck(torch.ops.fuser.interpreted_attention_backward.default, given)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_tile_of_few_queries_reads_nothing_for_heads_that_are_not_there(rows: int) -> None:
    x = operands(rows=rows, keys=20)
    memory = torch.full((8,), torch.nan)
    memory[:4] = torch.arange(4.0)
    x.captured.append(memory[:4])
    check(spec(lambda s0, c0, ih: s0 * 0.3 + gather(c0, ih)), x)


def test_the_gradient_of_a_bias_in_bf16_is_no_smaller_than_it_should() -> None:
    """A store in the interpreter truncates, which takes a thousandth off."""
    x = operands((4, 20, 28), dtype=torch.bfloat16)
    ours = check(spec(plus, dtype=torch.bfloat16), x).grads[-1]
    exact = Operands(*(wide(part) for part in (x.q, x.k, x.v, x.captured)))
    wanted = outcome(reference, spec(plus, dtype=torch.bfloat16), exact).grads[-1]
    assert ours is not None
    assert wanted is not None
    outwards = (ours.double() - wanted) * wanted.sign()
    assert abs(outwards.mean()) < 3e-4 * wanted.abs().mean()


@pytest.mark.parametrize(
    "probs",
    [
        lambda p, c0: p.masked_fill(c0, 0.0),
        lambda p, c0: torch.where(c0, 0.0, p),
        lambda p, c0: torch.where(c0, 0.0, p * 2.0),
    ],
)
def test_queries_without_keys_whose_probabilities_are_cleared(probs: object) -> None:
    x = operands()
    gone = torch.rand((2, 1, 20, 28), generator=torch.Generator().manual_seed(1)) > 0.3
    gone[:, :, 4] = True
    x.captured.append(gone)
    of = spec(lambda s0, c0: s0.masked_fill(c0, -math.inf), probs=probs)  # type: ignore[arg-type]
    assert not check(of, x).outputs[0].isnan().any()


@pytest.mark.parametrize("keys", [24, 32])
@pytest.mark.parametrize(
    "probs",
    [
        lambda p: p.sqrt(),
        lambda p: p.log(),
        lambda p: p.rsqrt(),
        lambda p: p**0.7,
        lambda p: 1 / p,
    ],
    ids=["sqrt", "log", "rsqrt", "power", "reciprocal"],
)
def test_programs_with_a_pole_where_no_key_is(probs: object, keys: int) -> None:
    """What is beyond the last key has a probability of zero, and no say."""
    check(spec(probs=probs), operands(batch=1, heads=2, kv=1, keys=keys))  # type: ignore[arg-type]


def test_a_query_without_keys_that_nobody_looks_at() -> None:
    """Its own scores are all hidden, so that q gets zeros from it, not NaN, as in eager."""
    x = operands(batch=1, heads=2, kv=1)
    gone = torch.zeros(20, 28, dtype=torch.bool)
    gone[4] = True
    x.captured.append(gone)
    of = spec(lambda s0, c0: s0.masked_fill(c0, -math.inf))

    def seen(function: Any) -> Any:
        return lambda of, x: function(of, x)[:, :, ~gone.all(-1)]

    ours, theirs = outcome(seen(generated), of, x), outcome(seen(reference), of, x)
    for a, b in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert not ours.grads[0].isnan().any()  # type: ignore[union-attr]


def test_a_hidden_key_that_is_no_number() -> None:
    x = operands(batch=1, heads=2, kv=1)
    gone = torch.rand((20, 28), generator=torch.Generator().manual_seed(1)) > 0.7
    gone[:, 3] = True
    x.captured.append(gone)
    with torch.no_grad():
        x.k[0][:, :, 3] = math.nan
    x.q[0] = x.q[0].detach()
    of = spec(lambda s0, c0: s0.masked_fill(c0, -math.inf))
    ours, theirs = outcome(generated, of, x), outcome(reference, of, x)
    for a, b in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
