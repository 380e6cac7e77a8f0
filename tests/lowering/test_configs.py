"""How kernels are cut: by estimates that hold where compilers can be asked, on every architecture.

`python -m fuser kernels --strict` asks of all kernels that are benchmarked; here it is a few.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from fuser.lowering.attention.generated import config
from fuser.lowering.attention.generated.catalogue import Entry, builtin
from fuser.lowering.attention.generated.config import Config, choose, shared_bytes
from fuser.lowering.attention.generated.layout import Operand
from fuser.lowering.triton.aot import Failure, Resources
from fuser.lowering.triton.launch import TARGETS
from fuser.lowering.triton.pool import compile_all
from tests.lowering.generated import spec

ENTRIES = tuple(builtin())
ARCHS = sorted(TARGETS)
SAMPLE = {
    ("softcap, causal, 128 bfloat16", "forward"): ARCHS,
    ("softcap, causal, 128 bfloat16", "keys"): ARCHS,
    ("window, 128 bfloat16", "rows"): ["sm_100", "gfx942"],
    ("bias, 64 bfloat16", "keys"): ["sm_80"],
    ("mask of keys, 128 bfloat16, decoding", "forward"): ["sm_90"],
    ("mask of keys, 64 float32, decoding", "forward"): ["sm_80"],
    ("bias, 64 float32", "rows"): ["sm_80", "sm_100"],
}
"""Kernels that take the most there."""


def chosen(entry: Entry, arch: str) -> Config:
    layout = replace(entry.layout, interpreted=False)
    return choose(entry.stage, layout, TARGETS[arch], rows=entry.rows)


def entry(label: str, stage: str) -> Entry:
    return next(e for e in ENTRIES if (e.label, e.stage) == (label, stage))


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str, str], Resources | Failure]:
    names = [(*name, arch) for name, archs in SAMPLE.items() for arch in archs]
    kernels = [(entry(label, stage).kernel(arch), arch) for label, stage, arch in names]
    return dict(zip(names, compile_all(kernels, 2), strict=True))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_largest_kernels_have_room(
    compiled: dict[tuple[str, str, str], Resources | Failure], arch: str
) -> None:
    for (label, stage, on), found in compiled.items():
        if on == arch:
            assert isinstance(found, Resources), found.message
            assert (found.spills, found.launchable) == (0, True), (label, stage, found)
            of = entry(label, stage)
            most = shared_bytes(stage, of.layout, chosen(of, arch), TARGETS[arch])
            assert found.shared <= most + (2 << 10), (label, stage)  # barriers, reductions


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_chosen_fits_by_estimate(arch: str) -> None:
    target = TARGETS[arch]
    for e in ENTRIES:
        if e.stage not in config.SHAPES or e.layout.q[0].features > 128:
            continue
        layout, found = replace(e.layout, interpreted=False), chosen(e, arch)
        assert config._fits(e.stage, layout, found, target), (e.label, e.stage, found)
        assert (found.num_warps == 4) == (target.lanes == 64) or found.num_warps in (4, 8)


@pytest.mark.parametrize(
    ("arch", "stage", "features", "expected"),
    [
        ("sm_80", "forward", 64, Config(128, 64, 8, 3)),
        ("sm_80", "forward", 128, Config(128, 32, 8, 3)),
        ("sm_90", "forward", 64, Config(64, 64, 4, 3, tma=True)),
        ("sm_90", "forward", 256, Config(128, 64, 8, 2, tma=True)),
        ("sm_90", "keys", 64, Config(64, 64, 4, 2, tma=True)),
        ("sm_90", "keys", 128, Config(32, 64, 4, 2, tma=True)),
        ("sm_100", "rows", 128, Config(64, 64, 8, 3)),
        ("gfx942", "forward", 64, Config(128, 64, 4, 2)),
        ("gfx942", "keys", 128, Config(16, 64, 4, 2)),
    ],
)
def test_units_are_cut_for(arch: str, stage: str, features: int, expected: Config) -> None:
    assert chosen(entry(f"causal, {features} bfloat16", stage), arch) == expected


def test_descriptors_pay_where_much_is_read() -> None:
    of = entry("causal, 128 bfloat16", "forward")
    layout, target = replace(of.layout, interpreted=False), TARGETS["sm_90"]
    asked = {visits: choose("forward", layout, target, rows=4096, visits=visits).tma
             for visits in (256, 767, 768, math.inf)}  # fmt: skip
    assert asked == {256: False, 767: False, 768: True, math.inf: True}


@pytest.mark.parametrize(
    ("stage", "features", "visits", "expected"),
    [
        ("rows", 64, 1536, Config(128, 64, 8, 3)),
        ("rows", 64, 1535, Config(64, 64, 4, 3)),
        ("rows", 128, 1024, Config(64, 64, 4, 2, tma=True)),
        ("rows", 128, 512, Config(128, 64, 8, 3)),
        ("keys", 64, 512, Config(64, 64, 4, 1)),
    ],
)
def test_few_positions_are_cut_smaller(
    stage: str, features: int, visits: int, expected: Config
) -> None:
    of = entry(f"causal, {features} bfloat16", stage)
    layout = replace(of.layout, interpreted=False)
    assert choose(stage, layout, TARGETS["sm_90"], rows=4096, visits=visits) == expected


def test_functions_of_scores_take_registers() -> None:
    plain, capped = (entry(f"{label}, 128 bfloat16, decoding", "forward")
                     for label in ("causal", "softcap, causal"))  # fmt: skip
    assert [chosen(e, "sm_90").num_warps for e in (plain, capped)] == [4, 8]


@pytest.mark.parametrize("arch", ARCHS)
def test_wide_heads_have_a_kernel_for_dk_and_one_for_dv(arch: str) -> None:
    apart = arch in ("sm_80", "sm_90")
    for features, wide in ((128, False), (256, apart)):
        names = [k.name for k in entry(f"causal, {features} bfloat16", "keys").kernels(arch)]
        assert names == (["dk_kernel", "dv_kernel"] if wide else ["keys_kernel"])


def test_full_precision_is_cut_smaller() -> None:
    for arch, stage in itertools.product(ARCHS, ("forward", "rows", "keys")):
        half, full = (
            chosen(entry(f"causal, 64 {name}", stage), arch) for name in ("float16", "float32")
        )
        assert full.block_m * full.block_n < half.block_m * half.block_n


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("stage", "kept"), [("forward", False), ("rows", False), ("keys", True)])
def test_what_full_precision_keeps_over_a_loop(stage: str, arch: str, kept: bool) -> None:
    """Where products are unrolled, nothing waits for the end of a loop but in tiles of keys."""
    for dtype in ("float32", "bfloat16"):
        unrolled = dtype == "float32" and arch in ("sm_80", "sm_100")
        of = entry(f"causal, 64 {dtype}", stage)
        assert chosen(of, arch).hoists == (kept or not unrolled)
        assert ("disable_licm=True" in of.kernel(arch).source) == (unrolled and not kept)


@pytest.mark.parametrize(("features", "in_flight"), [(40, 1), (72, 2), (96, 2), (128, 1)])
def test_many_pieces_in_full_precision_pass_through_shared_memory(
    features: int, in_flight: int
) -> None:
    """Two products, each of which is cut where features are no power of two."""
    of = entry("plain, 64 float32", "forward")
    q = (Operand(torch.float32, features),) * 2
    score = spec(lambda s0, s1: (s0 + s1) * 0.1).score
    layout = replace(of.layout, q=q, k=q, spec=replace(of.layout.spec, contractions=2, score=score))
    kernel = replace(of, layout=layout).kernel("sm_100")
    assert kernel.num_stages == in_flight
    if features == 96:
        (found,) = compile_all([(kernel, "sm_100")])
        assert isinstance(found, Resources)
        assert found.spills <= 8  # ptxas's choice; held by threads, they were hundreds


def test_tf32_has_a_unit() -> None:
    of = entry("causal, 64 float32", "forward")
    coarse = Entry(of.label, replace(of.layout, precision="tf32"), of.stage, of.arguments, of.rows)
    assert chosen(coarse, "sm_90").block_m > chosen(of, "sm_90").block_m


def test_nothing_fits_a_tiny_device() -> None:
    of = entry("causal, 256 float32", "keys")
    target = replace(TARGETS["sm_90"], shared=1 << 10)
    assert choose("keys", of.layout, target, rows=4096) == Config(16, 16, 8, 1)


def test_entries_are_read_as_they_were_written() -> None:
    for e in ENTRIES[::7]:
        assert Entry.from_json(e.to_json()) == e


def test_only_wide_kernels_may_spill() -> None:
    wide = [e for e in ENTRIES if ", 256 " in e.label or ", 192/128 " in e.label]
    assert [e for e in ENTRIES if e.may_spill] == wide
