"""What the figures are held against: one line a target, met or missed, printed after the table.

The bounds for bf16 hold where the CPU does not multiply it and the products of eager and Inductor
take 30 times as long as a flash kernel's. Where it does, no kernel can be 20 times faster; what is
asked there is the time of a plain library call. `ONEDNN_MAX_CPU_ISA=AVX2` makes oneDNN use no such
instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.figures import Result, error_ratio, geomean, spread
from benchmarks.limits import RATES
from benchmarks.providers import FUSER, INDUCTOR, LOOP, SDPA

BIAS_ONLY = ("alibi", "t5_bias", "sliding_window", "gqa_causal", "transformers_causal")
STRUCTURED = ("sliding_window", "gqa_causal", "transformers_causal")
CONSTANT_BIAS = ("alibi", "transformers_causal")
"""Biases without a gradient that Inductor does not recognise; `additive_mask` it gives to SDPA."""
ON_GPU: Mapping[str, tuple[float | None, float | None]] = {
    "plain_causal": (0.97, 0.97),
    "alibi_causal": (3.0, 2.0),
    "softcap_causal": (3.0, None),
    "sliding_window": (8.0, None),
    "t5_bias": (2.0, 2.0),
    "pair_bias": (3.0, None),
    "commuted_mask": (3.0, None),
    "decode": (1.5, None),
}
"""Times over Inductor that are asked for, forward, and forward and backward together: the lower end
of what the list of workloads says. A tie is asked for in the control."""
MOE_OVER_LOOP: Mapping[tuple[str, str], float] = {
    ("many_experts", "forward"): 10.0,
    ("many_experts", "full"): 15.0,
}
"""Times over a loop over the experts."""
MOE_MS: Mapping[tuple[str, str], float] = {
    ("many_experts", "forward"): 2.1,
    ("many_experts", "full"): 9.5,
    ("few_chosen", "forward"): 10.0,
    ("decode_1", "forward"): 0.06,
}
"""Milliseconds on an H200; `few_chosen` is to reach 60% of the 6 that the best known takes."""
MOE_SHARE: Mapping[tuple[str, str], float] = {
    ("mixtral", "forward"): 0.55,
    ("decode_16", "forward"): 0.85,
    ("decode_128", "forward"): 0.85,
}
"""Of the limit."""
NORM_ON_GPU: Mapping[tuple[str, str], float] = {
    ("residual_rms", "forward"): 0.97,
    ("layer_norm", "full"): 1.0,
    ("rms_norm", "full"): 1.5,
    ("group_norm_video", "forward"): 1.1,
    ("group_norm_last", "forward"): 1.1,
    ("qk_norm_rope", "full"): 1.2,
    ("adaptive", "forward"): 0.97,
    ("swiglu", "forward"): 0.97,
    ("cross_entropy", "full"): 1.3,
    ("rms_norm_fp8", "forward"): 1.3,
}
"""Times over Inductor that are asked of chains around norms."""
OF_DENSE, LOOP_CAPTURED = 0.6, 1.2
"""Of E / K, where all experts ran on all tokens; over Inductor, where a loop broke the graph for it
and was one region for us."""
LOSS_SPEED, LOSS_MEMORY = 1 / 1.05, 0.25
"""Of Inductor's speed at the least, and of its peak memory at the most."""
NEVER_BELOW = 0.97
"""Of the best peer, in any workload: less than a run's noise."""


@dataclass(frozen=True)
class Check:
    """A figure and the bound it is held against; `least` says which side is the good one."""

    text: str
    value: float
    bound: float
    least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.least else self.value <= self.bound

    def __str__(self) -> str:
        verdict = "met   " if self.met else "MISSED"
        sign = "≥" if self.least else "≤"
        return f"{verdict}  {self.text}: {self.value:.2f} ({sign} {self.bound:g})"


def attention_checks(results: Sequence[Result], *, half_in_hardware: bool) -> list[Check]:
    """The targets for attention on a CPU; those that nothing measured can tell are left out."""
    checks: list[Check] = []
    for dtype, bias, lone, cap, train in (
        (torch.float32, 2.0, 1.4, 1.2, 1.2),
        (torch.bfloat16, 20.0, None, 6.0, 3.5),
    ):
        slow = dtype is torch.float32 or not half_in_hardware
        label = str(dtype).removeprefix("torch.")
        inferred = [r for r in results if r.dtype == dtype and r.mode == "forward"]
        trained = [r for r in results if r.dtype == dtype and r.mode == "full"]
        only = _named(inferred, BIAS_ONLY)
        capped, constant = _named(inferred, ("softcap",)), _named(trained, CONSTANT_BIAS)
        if slow:
            text = f"{label} bias-only, fuser over inductor"
            checks += _at_least(f"{text}, geomean", _speedups(only), bias, geomean)
            if lone is not None:
                checks += _at_least(f"{text}, smallest", _speedups(only), lone, min)
            text = f"{label} softcap, fuser over inductor"
            checks += _at_least(text, _speedups(capped), cap, min)
            text = f"{label} forward+backward, constant bias, smallest over inductor"
            checks += _at_least(text, _speedups(constant), train, min)
        against = _ratios(only, FUSER, SDPA)
        checks += _at_most(f"{label} bias-only, fuser's time over sdpa, largest", against, 1.3, max)
    checks += _at_least("any workload, smallest over inductor", _speedups(results), 0.97, min)
    checks += _error_checks(results)
    structured = [r for r in _named(results, STRUCTURED) if r.mode == "forward"]
    sizes = [s for r in structured if (s := _largest_over_square(r)) is not None]
    checks += _at_most("structured mask, largest tensor over one S x S matrix", sizes, 0.99, max)
    return checks


def gpu_attention_checks(results: Sequence[Result]) -> list[Check]:
    """The targets at the sizes of GPUs: over Inductor, over the best peer, memory, errors."""
    checks: list[Check] = []
    for name, bounds in ON_GPU.items():
        for mode, bound in zip(("forward", "full"), bounds, strict=True):
            of = [r for r in _named(results, (name,)) if r.mode == mode]
            if bound is not None:
                text = f"{name} {mode}, fuser over inductor"
                checks += _at_least(text, _speedups(of), bound, min)
    checks += _peer_checks(results)
    window = [r for r in _named(results, ("sliding_window",)) if r.mode == "forward"]
    sizes = [s for r in window if (s := _peak_over_square(r)) is not None]
    checks += _at_most("sliding_window, peak memory over one S x S matrix", sizes, 0.99, max)
    return checks + _error_checks(results)


def moe_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for mixtures on a CPU, over Inductor; a bound for each dtype and number of
    experts where all of them ran."""
    checks: list[Check] = []
    dense = [r for r in results if r.workload.config["kind"] == "dense"]
    for r in dense:
        experts, each = (float(str(r.workload.config[name])) for name in ("E", "K"))
        text = f"{_label(r)}, fuser over inductor"
        checks += _at_least(text, _speedups([r]), OF_DENSE * experts / each, min)
    loops = [r for r in results if r.workload.config["kind"] == "loop"]
    captured = [r for r in loops if FUSER in r.measures and r.measures[FUSER].rewrites]
    text = "loops that became one region, smallest over inductor"
    checks += _at_least(text, _speedups(captured), LOOP_CAPTURED, min)
    checks += _at_least("any mixture, smallest over inductor", _speedups(results), 0.97, min)
    return checks + _error_checks(results)


def norm_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for normalisations on a CPU, over Inductor."""
    checks: list[Check] = []
    full = [r for r in results if r.mode == "full"]
    for name, bound in (("layer_norm", 1.6), ("group_norm_silu_128_last", 1.4)):
        text = f"{name}, forward and backward, smallest over inductor"
        checks += _at_least(text, _speedups(_named(full, (name,))), bound, min)
    checks += _at_least("any norm, smallest over inductor", _speedups(results), 0.97, min)
    return checks + _error_checks(results)


def activation_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for activations on a CPU, over Inductor: what does not pay is left to it."""
    text = "any activation, smallest over inductor"
    ours = [r for r in results if FUSER in r.measures and r.measures[FUSER].rewrites]
    return _at_least(text, _speedups(results), NEVER_BELOW, min) + _error_checks(ours)


def gpu_moe_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for mixtures at the sizes of GPUs; milliseconds are those of an H200."""
    checks: list[Check] = []
    for r in results:
        label, key = f"{r.workload.name} {r.mode}", (r.workload.name, r.mode)
        ours = r.measures.get(FUSER)
        if key in MOE_OVER_LOOP:
            text = f"{label}, fuser over the loop"
            checks += _at_least(text, _ratios([r], LOOP, FUSER), MOE_OVER_LOOP[key], min)
        if key in MOE_MS and ours is not None and ours.times_ms:
            text = f"{label}, fuser's ms"
            checks += _at_most(text, [spread(ours.times_ms)[1]], MOE_MS[key], max)
        if key in MOE_SHARE and (share := r.share_of_limit(FUSER, RATES["H200"])) is not None:
            text = f"{label}, fuser's share of the limit"
            checks += _at_least(text, [share[1]], MOE_SHARE[key], min)
    return checks + _peer_checks(results) + _error_checks(results)


def gpu_norm_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for chains around norms at the sizes of GPUs, over Inductor and the best peer."""
    checks: list[Check] = []
    for r in results:
        bound = NORM_ON_GPU.get((r.workload.name, r.mode), NEVER_BELOW)
        text = f"{r.workload.name} {r.mode}, fuser over inductor"
        checks += _at_least(text, _speedups([r]), bound, min)
    return checks + _peer_checks(results) + _error_checks(results)


def loss_checks(results: Sequence[Result]) -> list[Check]:
    """The targets for the cross-entropy of a large vocabulary, over Inductor."""
    checks: list[Check] = []
    for r in results:
        text = f"{_label(r)}, fuser over inductor"
        checks += _at_least(text, _speedups([r]), LOSS_SPEED, min)
        ours, theirs = (r.measures.get(name) for name in (FUSER, INDUCTOR))
        if ours and theirs and ours.peak_mb and theirs.peak_mb:
            share = ours.peak_mb / theirs.peak_mb
            checks += _at_most(f"{text}, peak memory", [share], LOSS_MEMORY, max)
    return checks + _error_checks(results)


def model_checks(results: Sequence[Result], *, half_in_hardware: bool) -> list[Check]:
    """Targets for whole models: 1.15x over Inductor in fp32 inference, no worse in bf16."""
    fp32 = [r for r in results if r.dtype == torch.float32 and r.mode == "forward"]
    checks = _at_least("fp32 inference, smallest over inductor", _speedups(fp32), 1.15, min)
    checks += _at_least("any model, smallest over inductor", _speedups(results), 0.97, min)
    return checks + _error_checks(results)


def diffusion_checks(results: Sequence[Result]) -> list[Check]:
    """Targets for diffusion models on a CPU: steps of all 1.1x over Inductor."""
    checks = _at_least("any step, smallest over inductor", _speedups(results), 1.1, min)
    return checks + _error_checks(results)


def _peer_checks(results: Sequence[Result]) -> list[Check]:
    checks: list[Check] = []
    for r in results:
        best = r.best_peer()
        if best is not None:
            text = f"{r.workload.name} {r.mode}, fuser over the best peer ({best})"
            checks += _at_least(text, _ratios([r], best, FUSER), NEVER_BELOW, min)
    return checks


def _label(result: Result) -> str:
    dtype = str(result.dtype).removeprefix("torch.")
    return f"{result.workload.name} {result.mode} {dtype}"


def _error_checks(results: Sequence[Result]) -> list[Check]:
    errors = [e for r in results if (e := error_ratio(r, FUSER)) is not None]
    return _at_most("fuser's error over eager's, largest", errors, 3.0, max)


def _named(results: Iterable[Result], names: Sequence[str]) -> list[Result]:
    return [r for r in results if r.workload.name in names]


def _speedups(results: Iterable[Result]) -> list[float]:
    return _ratios(results, INDUCTOR, FUSER)


def _ratios(results: Iterable[Result], slow: str, fast: str) -> list[float]:
    return [ratio[1] for r in results if (ratio := r.ratio(slow, fast)) is not None]


def _largest_over_square(result: Result) -> float | None:
    """Largest allocation over a matrix of all pairs of positions, in the workload's dtype."""
    ours = result.measures.get(FUSER)
    return None if ours is None else _over_square(result, ours.largest_mb)


def _peak_over_square(result: Result) -> float | None:
    """What a step allocates at its peak, over the same matrix."""
    ours = result.measures.get(FUSER)
    return None if ours is None else _over_square(result, ours.peak_mb)


def _over_square(result: Result, size_mb: float | None) -> float | None:
    if size_mb is None:
        return None
    return size_mb * 2**20 / (result.workload.x[1] ** 2 * result.dtype.itemsize)


Pick = Callable[[Sequence[float]], float]


def _at_least(text: str, values: Sequence[float], bound: float, pick: Pick) -> list[Check]:
    return [Check(text, pick(values), bound, least=True)] if values else []


def _at_most(text: str, values: Sequence[float], bound: float, pick: Pick) -> list[Check]:
    return [Check(text, pick(values), bound, least=False)] if values else []
