"""Generated kernels of norms, in Triton's interpreter or on the device of `FUSER_DEVICE`.

`FUSER_EVERY=1` takes float16 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.lowering.norm.generated import catalogue
from fuser.lowering.norm.generated.layout import Layout, layout_of
from fuser.lowering.norm.generated.problem import problem
from fuser.lowering.norm.reference import normalise
from fuser.specs import NormSpec
from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY
from tests.lowering.generated import DEVICE, FACTOR, INTERPRETED
from tests.lowering.norms import (
    FP32,
    HALF,
    check,
    generated,
    itself,
    modulated,
    norm,
    operands,
    outcome,
    permuted,
    row_norm,
    scaled,
    total,
)

DTYPES = [FP32, HALF, *([torch.float16] if EVERY else [])]
ROWS = {"whole": (3, 5, 40), "long": (2, 2, 600), "split": (1, 2, 600)}
"""Shapes that are read in different ways."""
TRITON: dict[str, Any] = {"fuser.lowering": "triton"}


def launched(spec: NormSpec, x: Sequence[Tensor]) -> list[str]:
    """Stages of a step of training."""
    with catalogue.recording() as found:
        outcome(generated, spec, x)
    return [entry.stage for entry in found.values()]


@INTERPRETED
def test_shapes_are_read_in_different_ways() -> None:
    stages = {name: launched(norm(), operands(*row_norm(*s))) for name, s in ROWS.items()}
    assert stages == {
        "whole": ["whole", "whole_backward"],
        "long": ["long", "long_backward"],
        "split": ["part", "apply", "part_backward", "apply_backward"],
    }


def gated(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return c0 + c1 * c2


def modulated_after_gate(n: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
    return n * (1 + c3) + c4


def by_row(n: Tensor, c1: Tensor) -> Tensor:
    return torch.tanh(n) * c1


def read_again(n: Tensor, c0: Tensor, c2: Tensor) -> Tensor:
    return n * c2 + torch.relu(c0)


def in_half(n: Tensor, c2: Tensor) -> Tensor:
    return n.to(torch.bfloat16) * c2


def _kinds(dtype: torch.dtype, b: int, t: int, d: int) -> dict[str, tuple[NormSpec, list[Any]]]:
    x, weight, each = (b, t, d), (1, 1, d), (b, 1, d)
    rms: dict[str, Any] = {"centred": False, "dtype": dtype}
    return {
        "layer": (norm(dtype=dtype), [x, weight, weight]),
        "residual": (norm(total, scaled, kept=dtype, **rms), [x, x, weight]),
        "modulate": (norm(itself, modulated, norm_dtype=dtype, dtype=dtype), [x, each, each]),
        "positions": (norm(itself, modulated, norm_dtype=dtype, dtype=dtype), [x, (1, t, d), each]),
        "gate": (
            norm(gated, modulated_after_gate, norm_dtype=dtype, dtype=dtype, kept=dtype),
            [x, x, each, each, each],
        ),
        "by row": (norm(itself, by_row, norm_dtype=dtype, dtype=dtype), [x, (b, t, 1)]),
        "by batch": (norm(itself, by_row, norm_dtype=dtype, dtype=dtype), [x, (b, 1, 1)]),
        "again": (norm(total, read_again, norm_dtype=dtype, dtype=dtype), [x, x, weight]),
        "unit": (norm(itself, lambda n: n * 2, summed=True, floor=True, eps=1e-12, **rms), [x]),
        "floor": (norm(itself, lambda n: n, floor=True, eps=0.98, **rms), [x]),
        "summed": (norm(itself, lambda n, c1: n * c1, summed=True, **rms), [x, weight]),
        "variance summed": (norm(itself, lambda n: n + 1, summed=True, dtype=dtype), [x]),
    }


KINDS = list(_kinds(FP32, 1, 1, 1))


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, way: str) -> None:
    spec, shapes = _kinds(FP32, *ROWS[way])[kind]
    check(spec, operands(*shapes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_kinds_in_half(kind: str, dtype: torch.dtype) -> None:
    spec, shapes = _kinds(dtype, *ROWS["whole"])[kind]
    check(spec, operands(*shapes, dtype=dtype))


@pytest.mark.parametrize("way", ["long", "split"])
@pytest.mark.parametrize("kind", ["layer", "residual", "gate"])
def test_long_rows_in_half(kind: str, way: str) -> None:
    spec, shapes = _kinds(HALF, *ROWS[way])[kind]
    check(spec, operands(*shapes, dtype=HALF))


def test_operands_of_several_dtypes() -> None:
    """Autocast: x in bf16, parameters in fp32."""
    x, *rest = operands(*row_norm(5, 40))
    check(norm(dtype=HALF), [x.detach().to(HALF).requires_grad_(), *rest])


def test_a_product_in_half() -> None:
    spec = norm(total, in_half, centred=False, dtype=HALF, kept=HALF)
    check(spec, operands((7, 40), (7, 40), (1, 40), dtype=HALF))


@pytest.mark.parametrize("rows", [0, 1, 19])
@pytest.mark.parametrize("columns", [1, 3, 17, 127, 129, 500])
def test_sizes(rows: int, columns: int) -> None:
    check(norm(), operands(*row_norm(rows, columns)))


@pytest.mark.parametrize("shape", [(1, 8195), (4, 8192), (9, 1025)], ids=str)
def test_long_rows(shape: tuple[int, int]) -> None:
    check(norm(), operands(*row_norm(*shape)))


def test_no_columns() -> None:
    x = operands((3, 0), (1, 0), (1, 0))
    ours = outcome(generated, norm(), x)
    assert [t.shape for t in (*ours.outputs, *ours.grads) if t is not None] == [
        (3, 0), (3, 0), (1, 0), (1, 0),
    ]  # fmt: skip


def test_rows_of_one_element_may_have_no_dimension() -> None:
    x, weight = operands((5,), (1,))
    spec = norm(itself, lambda n, c1: n * c1 + c1, inner=0)
    ours = outcome(generated, spec, [x, weight])
    torch.testing.assert_close(ours.outputs[0], weight.detach().expand(5))
    assert ours.grads[0] is not None
    assert not ours.grads[0].any()


@pytest.mark.parametrize("shape", [(2, 3, 5, 33), (2, 1, 3, 2, 21), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("inner", [1, 2, 3])
def test_ranks(shape: tuple[int, ...], inner: int) -> None:
    along = (*(1 for _ in shape[:-inner]), *shape[-inner:])
    check(norm(inner=inner), operands(shape, along, along))


@pytest.mark.parametrize("order", [(2, 1, 0, 3), (3, 0, 1, 2), (1, 3, 2, 0)], ids=str)
def test_orders_in_memory(order: tuple[int, ...]) -> None:
    x, *rest = operands((2, 3, 5, 33), (1, 3, 1, 33), (2, 1, 1, 33))
    ours = check(norm(), [permuted(x, *order), *rest])
    assert ours.outputs[0].stride() == permuted(x, *order).stride()


def test_strided_operands() -> None:
    x, *rest = operands((6, 4, 80), (6, 1, 80), (1, 1, 80))
    with torch.no_grad():
        cut = [t[::2, ..., 10:73].requires_grad_() if t.shape[0] > 1 else
               t[..., 10:73].requires_grad_() for t in (x, *rest)]  # fmt: skip
    check(norm(), [t.detach().requires_grad_() for t in cut])


def test_expanded_operands_have_full_gradients() -> None:
    x, weight, bias = operands((5, 40), (1, 40), (1, 1))
    weight, bias = (t.detach().expand(5, 40).requires_grad_() for t in (weight, bias))
    ours = check(norm(), [x, weight, bias])
    assert [g.shape for g in ours.grads if g is not None] == [(5, 40)] * 3


def test_x_may_be_broadcast_itself() -> None:
    """Where all elements of a row are equal its gradient is zero: 40 terms of the size of the
    reciprocal deviation cancel."""
    spec = norm(itself, modulated)
    check(spec, operands((1, 40), (5, 40), (5, 1)))
    check(spec, operands((5, 1), (5, 40), (1, 40)), added={0: 40 * spec.eps**-0.5})


GROUPS = {
    "whole": (2, 3, 4, 30),
    "odd": (2, 3, 5, 49),
    "split": (1, 3, 4, 200),
    "one": (3, 4, 1, 7),
    "long": (2, 2, 5, 150),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype"), [*((g, FP32) for g in GROUPS), *(("odd", d) for d in DTYPES[1:])]
)
def test_groups(name: str, channels_last: bool, dtype: torch.dtype) -> None:
    shape = GROUPS[name]
    along = (1, *shape[1:3], 1)
    x, *rest = operands(shape, along, along, dtype=dtype)
    x = permuted(x, 0, 3, 1, 2) if channels_last else x
    ours = check(norm(inner=2, dtype=dtype), [x, *rest])
    assert ours.outputs[0].stride() == x.stride()


def test_groups_with_a_scale_for_each_batch() -> None:
    check(norm(inner=2), operands((2, 3, 4, 30), (2, 3, 4, 1), (2, 3, 4, 1)))
    check(norm(inner=2), operands((2, 2, 4, 150), (2, 2, 4, 1), (1, 1, 1, 150)))


def test_columns_of_three_dimensions() -> None:
    shapes = [(2, 3, 4, 25), (1, 3, 1, 25), (1, 1, 4, 1)]
    check(norm(inner=3), operands(*shapes))
    x, *rest = operands((4, 3, 6, 40), (1, 3, 1, 40), (1, 1, 6, 1))
    check(norm(inner=3), [permuted(x, 0, 3, 2, 1), *rest])


@pytest.mark.parametrize("shape", [(5, 40), (2, 700)], ids=str)
@pytest.mark.parametrize("groups", [False, True])
def test_sizes_that_are_symbols(
    shape: tuple[int, int], groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that they have: sizes are arguments, and positions may need 64 bits."""

    def symbolic(*given: Any) -> Layout:
        known = layout_of(*given)
        return replace(known, inner=(None,) * len(known.inner), wide=True)

    monkeypatch.setattr("fuser.lowering.norm.generated.problem.layout_of", symbolic)
    x, along = ((shape[0], 3, 4, shape[1] // 4), (1, 3, 4, 1)) if groups else (shape, (1, shape[1]))
    given = operands(x, along, along)
    check(norm(inner=2 if groups else 1), given)
    if groups:
        check(norm(inner=2), [permuted(given[0], 0, 3, 1, 2), *given[1:]])


@pytest.mark.parametrize("shape", [*ROWS.values(), (1, 1, 4100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_large_mean(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Squares of means are a hundred million times the variance: as near as PyTorch's kernel."""

    def kernel(_: NormSpec, given: Sequence[Tensor]) -> list[Tensor]:
        x, weight, bias = given
        return [F.silu(F.layer_norm(x, shape[-1:], weight.flatten(), bias.flatten()))]

    check(norm(dtype=dtype), operands(*row_norm(*shape), dtype=dtype, mean=1e4), kernel)


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
@pytest.mark.parametrize("centred", [True, False])
def test_what_is_no_number_stays_in_its_row(way: str, number: float, centred: bool) -> None:
    spec = norm(centred=centred)
    x, *rest = operands(*row_norm(*ROWS[way]))
    x = x.detach().clone()
    x[0, 1, 7] = number
    ours, theirs = (f(spec, [x, *rest])[0].detach() for f in (generated, normalise))
    torch.testing.assert_close(ours, theirs, equal_nan=True, atol=1e-5, rtol=1e-5)
    leaves = [x.requires_grad_(), *rest]
    mine, other = (outcome(f, spec, leaves).grads for f in (generated, normalise))
    for a, b in zip(mine, other, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("way", ROWS)
def test_rows_of_zeros(way: str) -> None:
    """Their divisor is eps, and the gradient that of a division by a number."""
    spec = norm(itself, lambda n: n, centred=False, summed=True, floor=True, eps=1e-3)
    (x,) = operands(ROWS[way])
    with torch.no_grad():
        x[0, 1] = 0
    ours = outcome(generated, spec, [x])
    eager = run(lambda t: F.normalize(t, dim=-1, eps=1e-3), [x])
    torch.testing.assert_close(ours.outputs[0], eager.outputs[0])
    (grad,) = ours.grads
    assert grad is not None
    cotangent = torch.linspace(-1.0, 1.5, x.numel(), device=DEVICE).sin().reshape(x.shape)
    torch.testing.assert_close(grad[0, 1], cotangent[0, 1] / 1e-3)


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("wanted", [[0], [2, 3], [1, 4]], ids=str)
def test_gradients_of_a_part(wanted: list[int], way: str) -> None:
    """Where others are frozen, gradients are the same."""
    spec, shapes = _kinds(FP32, *ROWS[way])["gate"]
    x = operands(*shapes)
    every = outcome(generated, spec, x).grads
    found = outcome(generated, spec, [t.detach().requires_grad_(i in wanted)
                                      for i, t in enumerate(x)]).grads  # fmt: skip
    for place, grad in zip(wanted, found, strict=True):
        full = every[place]
        assert full is not None
        assert grad is not None
        torch.testing.assert_close(grad, full, atol=1e-6, rtol=1e-6)


def test_the_gradient_of_one_result_alone() -> None:
    spec, shapes = _kinds(FP32, *ROWS["whole"])["residual"]
    x = operands(*shapes)
    for which in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(spec, x)[which].sin().sum(), x, allow_unused=True)
            for f in (generated, normalise)
        )
        for a, b in zip(ours, theirs, strict=True):
            b = torch.zeros_like(a) if b is None else b
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ROWS)
def test_the_backward_computes_again_what_was_not_kept(way: str) -> None:
    x = operands(*row_norm(*ROWS[way]))
    check(norm(), x, keep=False)


@pytest.mark.parametrize("way", ROWS)
def test_results_are_the_same_in_every_run(way: str) -> None:
    spec, shapes = _kinds(FP32, *ROWS[way])["gate"]
    x = operands(*shapes)
    once, twice = outcome(generated, spec, x), outcome(generated, spec, x)
    for a, b in zip([*once.outputs, *once.grads], [*twice.outputs, *twice.grads], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_an_operand_that_no_program_reads_has_no_gradient() -> None:
    spec = norm(itself, lambda n, c1: n * c1)
    spec = NormSpec.from_text(spec.to_text().replace('"captured":2', '"captured":3'))
    ours = outcome(generated, spec, operands((5, 40), (1, 40), (1, 1)))
    assert ours.grads[2] is not None
    assert ours.grads[2].tolist() == [[0]]


@pytest.mark.parametrize("mask", [torch.bool, torch.int64], ids=str)
def test_operands_that_are_no_floats(mask: torch.dtype) -> None:
    def hidden(n: Tensor, c1: Tensor) -> Tensor:
        return torch.where(c1 > 0, n, -1.0)

    (x,) = operands((5, 40))
    check(norm(itself, hidden), [x, (x > 0)[:, :1].to(mask)])


def test_what_has_no_kernels() -> None:
    text = norm().to_text()
    for dtype, reason in ((torch.float64, "not in float64"), (torch.complex64, "no dtype of its")):
        with pytest.raises(match=reason):
            problem([torch.ones(3, 4, dtype=dtype)] * 3, text, "")


@INTERPRETED
def test_opcheck() -> None:
    x = operands((2, 3, 4, 30), (1, 3, 4, 1), (1, 3, 4, 1))
    x[0] = permuted(x[0], 0, 3, 1, 2)
    text = norm(inner=2, kept=FP32).to_text()
    torch.library.opcheck(torch.ops.fuser.generated_norm.default, (x, text, "", True))
    plain = [t.detach() for t in x]
    torch.library.opcheck(torch.ops.fuser.interpreted_norm.default, (plain, text, "", True))
    y, kept, *saved = torch.ops.fuser.generated_norm(plain, text, "", True)
    grads = [torch.ones_like(y), torch.ones_like(kept)]
    given = (grads, [0, 1], plain, saved, text, "", [True, False, True])
    torch.library.opcheck(torch.ops.fuser.interpreted_norm_backward.default, given)


@pytest.mark.parametrize("way", ROWS)
def test_entries_are_read_as_they_are_written(way: str) -> None:
    spec, shapes = _kinds(FP32, *ROWS[way])["gate"]
    with catalogue.recording() as found:
        outcome(generated, spec, operands(*shapes))
    assert found
    for line, entry in found.items():
        again = catalogue.Entry.from_json(line)
        assert again == entry
        assert again.kernels("sm_90") == entry.kernels("sm_90")


# -- through the backend


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x, x.shape[-1:], weight, bias))


def residual(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    hidden = x + y
    return F.rms_norm(hidden, x.shape[-1:], weight), hidden


def group(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 3, weight, bias))


def unit(x: Tensor, scale: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) * scale


PROGRAMS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "layer": (layer, [(4, 7, 33), (33,), (33,)]),
    "residual": (residual, [(4, 7, 33), (4, 7, 33), (33,)]),
    "group": (group, [(2, 12, 5, 6), (12,), (12,)]),
    "group in 5-D": (group, [(2, 12, 3, 5, 2), (12,), (12,)]),
    "unit": (unit, [(4, 7, 33), (33,)]),
}


@INTERPRETED
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, dynamic: bool) -> None:
    fn, shapes = PROGRAMS[name]
    x = operands(*shapes)
    if dynamic:  # but for channels, which groups must divide
        torch._dynamo.maybe_mark_dynamic(x[0], [0, *range(2, x[0].dim())])
    ours = compiled(fn, x, grad=True, **TRITON)
    assert [r.lowering for r in ours.record.rewritten] == ["triton, interpreted"], ours.reasons()
    exact = run(fn, wide(x), grad=True)
    assert_near(ours, run(fn, x, grad=True), exact, factor=FACTOR)


@INTERPRETED
def test_channels_last_survives() -> None:
    x, *rest = operands((2, 12, 5, 6), (12,), (12,))
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours = compiled(group, [x, *rest], grad=True, **TRITON)
    assert ours.rewrites("norm") == 1
    assert ours.outputs[0].is_contiguous(memory_format=torch.channels_last)


@INTERPRETED
def test_one_compilation_for_all_numbers_of_rows() -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {
        **TRITON, "fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True
    }  # fmt: skip
    target = torch.compile(layer, backend="fuser", options=options, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 9, 2):
            x = operands((rows, 7, 33), (33,), (33,))
            torch.testing.assert_close(target(*x), layer(*x))


@INTERPRETED
def test_it_is_left_alone_unless_asked_for() -> None:
    x = operands((4, 7, 33), (4, 7, 33), (33,))
    assert compiled(residual, x, policy="auto").rewrites("norm") == 0
    assert compiled(residual, x, policy="always").rewrites("norm") == 1
