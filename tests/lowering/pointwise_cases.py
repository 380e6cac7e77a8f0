"""Pointwise programs and the numbers on which they are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, symbolic_trace

from fuser.graph.ops import _POINTWISE_BINARY, _POINTWISE_OTHER, _POINTWISE_UNARY
from fuser.graph.program import Program, to_json

Function = Callable[..., Any]


def program(function: Function) -> Program:
    """What a function of tensors does; its parameters are the inputs."""
    return Program(to_json(symbolic_trace(function).graph))


def one(function: Function) -> Function:
    return lambda x: function(x)


def two(function: Function) -> Function:
    return lambda x, y: function(x, y)


UNARY: dict[str, Function] = {
    name: one(getattr(torch, name, None) or getattr(F, name))
    for name in _POINTWISE_UNARY
    if name != "bitwise_not"
}
BINARY: dict[str, Function] = {
    name: two(getattr(torch, name))
    for name in _POINTWISE_BINARY
    if name != "rsub" and not name.startswith("bitwise_")  # those are of integers, below
}
ACTIVATIONS: dict[str, Function] = {
    "gelu": one(F.gelu),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": one(F.relu),
    "relu6": one(F.relu6),
    "selu": one(F.selu),
    "silu": one(F.silu),
    "mish": one(F.mish),
    "hardsigmoid": one(F.hardsigmoid),
    "hardswish": one(F.hardswish),
    "elu": lambda x: F.elu(x, 0.7),
    "celu": lambda x: F.celu(x, 1.3),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "softplus": lambda x: F.softplus(x, 2.0, 10.0),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
}
WITH_NUMBERS: dict[str, Function] = {
    "clamp": lambda x: torch.clamp(x, -0.3, 1.7),
    "clamp_min": lambda x: torch.clamp_min(x, -0.3),
    "clamp_max": lambda x: torch.clamp(x, max=0.3),
    "clip": lambda x: torch.clip(x, -0.3),
    "nan_to_num": lambda x: torch.nan_to_num(x, 0.5, 2.0, -3.0),
    "nan_to_num_plain": lambda x: torch.nan_to_num(x),
    "round_decimals": lambda x: torch.round(x, decimals=2),
    "round_hundreds": lambda x: torch.round(x, decimals=-2),
    "square_of_difference": lambda x: (x - 0.3) ** 2,
    "cubed": lambda x: x**3,
    "fourth": lambda x: x**4,
    "root": lambda x: x**0.5,
    "inverse_root": lambda x: x**-0.5,
    "inverse_square": lambda x: x**-2,
    "inverse": lambda x: 1 / x,
    "seventh": lambda x: x**7,
    "odd_power": lambda x: x**1.7,
    "power_of_two": lambda x: 2**x,
    "power_of_three": lambda x: 3.0**x,
    "fmod_number": lambda x: torch.fmod(x, 0.7),
    "remainder_number": lambda x: x % 0.7,
    "floor_number": lambda x: x // 0.7,
    "reversed": lambda x: torch.rsub(x, 0.3),
    "unscaled": lambda x: (x * 1 - 0) / 1,
    "compared": lambda x: x > 0.1,
    "where_literals": lambda x: torch.where(x > 0.1, 1.0, -torch.inf),
    "scaled_bool": lambda x: (x > 0.1) * x,
    "constants": lambda x: torch.where(x > 0, torch.ones_like(x), torch.full_like(x, 0.1) * 0.3),
    "constant_function": lambda x: torch.tanh(torch.full_like(x, 0.3)) + x,
}
CASTS: dict[str, Function] = {
    "float": lambda x: x.to(torch.float32),
    "half": lambda x: x.to(torch.float16),
    "bfloat16": lambda x: x.to(torch.bfloat16),
    "double": lambda x: x.to(torch.float64) * 0.1,
    "to_bool": lambda x: x.to(torch.bool),
    "to_long": lambda x: torch.nan_to_num(x, 0, 9, -9).clamp(-1e4, 1e4).to(torch.int64),
    "to_int8": lambda x: torch.nan_to_num(x, 0, 9, -9).clamp(-100, 100).to(torch.int8),
}
TERNARY: dict[str, Function] = {
    "rsub": lambda x, y: torch.rsub(x, y, alpha=0.3),
    "add_alpha": lambda x, y: torch.add(x, y, alpha=0.3),
    "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "div_floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp_tensor": lambda x, y: torch.lerp(x, y, y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.3),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.3),
    "where": lambda x, y: torch.where(x > y, x, y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, -torch.inf),
    "clamp_tensors": lambda x, y: torch.clamp(x, y - 0.5, y + 0.5),
}
ONE = {**UNARY, **ACTIVATIONS, **WITH_NUMBERS, **CASTS}
TWO = {**BINARY, **TERNARY}
# c: 0-d fp64, as numbers are captured; i: int64; j: int32; b: bool; d: fp64
MIXED: dict[str, Function] = {
    "x * c": lambda x, c: x * c,
    "x + c": lambda x, c: x + c,
    "c - x": lambda x, c: c - x,
    "x / c": lambda x, c: x / c,
    "c / x": lambda x, c: c / x,
    "x % c": lambda x, c: x % c,
    "maximum(x, c)": lambda x, c: torch.maximum(x, c),
    "hypot(x, c)": lambda x, c: torch.hypot(x, c),
    "copysign(x, -c)": lambda x, c: torch.copysign(x, -c),
    "x > c": lambda x, c: x > c,
    "c <= x": lambda x, c: c <= x,
    "abs(x) ** c": lambda x, c: torch.abs(x) ** c,
    "c ** x": lambda x, c: c**x,
    "clamp(x, -c, c)": lambda x, c: torch.clamp(x, -c, c),
    "where(b, x, c)": lambda b, x, c: torch.where(b, x, c),
    "where(b, c, x)": lambda b, x, c: torch.where(b, c, x),
    "where(c, x, -x)": lambda c, x: torch.where(c > 0.5, x, -x),
    "where(c, 1, 0)": lambda c: torch.where(c > 0.2, 1.0, 0.0),
    "scalars alone": lambda c: torch.maximum(c, c * 0.5) - torch.tanh(c),
    "b | c": lambda b, c: b | (c > 0.5),
    "c & b": lambda b, c: (c > 0.1) & b,
    "~c | b": lambda b, c: (~(c > 0.1)) | b,
    "~b": lambda b: ~b,
    "b & x": lambda b, x: b & (x > 0),
    "b ^ x": lambda b, x: b ^ (x > 0),
    "b + x > 0": lambda b, x: b + (x > 0),
    "b * x > 0": lambda b, x: b * (x > 0),
    "b < x > 0": lambda b, x: b < (x > 0),
    "b == x > 0": lambda b, x: b == (x > 0),
    "maximum of bools": lambda b, x: torch.maximum(b, x > 0),
    "b + x": lambda b, x: b + x,
    "b * 3": lambda b: b.to(torch.int64) * 3,
    "x + i": lambda x, i: x + i,
    "x > i": lambda x, i: x > i,
    "i / 3": lambda i: i / 3,
    "i // 3": lambda i: i // 3,
    "i // -3": lambda i: i // -3,
    "i % 3": lambda i: i % 3,
    "i % -3": lambda i: i % -3,
    "i ** 2": lambda i: i**2,
    "i ** 5": lambda i: i**5,
    "i ** j": lambda i, j: i ** torch.abs(j),
    "sign(i) ** j": lambda i, j: torch.pow(torch.sign(i), j),
    "2 ** i": lambda i: 2 ** torch.abs(i),
    "abs(i) ** 0.5": lambda i: torch.abs(i) ** 0.5,
    "i * j": lambda i, j: i * j,
    "i - j": lambda i, j: i - j,
    "i < j": lambda i, j: i < j,
    "i >= 2.5": lambda i: i >= 2.5,
    "maximum(i, j)": lambda i, j: torch.maximum(i, j),
    "i & 7": lambda i: i & 7,
    "i ^ j": lambda i, j: i ^ j,
    "i | j": lambda i, j: i | j,
    "~i": lambda i: ~i,
    "-i": lambda i: -i,
    "abs(i)": lambda i: torch.abs(i),
    "sign(i)": lambda i: torch.sign(i),
    "signbit(i)": lambda i: torch.signbit(i),
    "i << 2": lambda i: torch.bitwise_left_shift(i, 2),
    "i << j": lambda i, j: torch.bitwise_left_shift(i, j),
    "i >> j": lambda i, j: torch.bitwise_right_shift(i, j),
    "fmod(i, 3)": lambda i: torch.fmod(i, 3),
    "remainder(i, j)": lambda i, j: torch.remainder(i, torch.abs(j) + 1),
    "div trunc": lambda i, j: torch.div(i, -torch.abs(j) - 1, rounding_mode="trunc"),
    "div floor": lambda i, j: torch.div(i, -torch.abs(j) - 1, rounding_mode="floor"),
    "exp(i / 10)": lambda i: torch.exp(i * 0.1),
    "sin(i)": lambda i: torch.sin(i),
    "floor(i)": lambda i: torch.floor(i),
    "isnan(i)": lambda i: torch.isnan(i),
    "isfinite(i)": lambda i: torch.isfinite(i),
    "clamp(i, -2, 5)": lambda i: torch.clamp(i, -2, 5),
    "relu(i)": lambda i: torch.relu(i),
    "i.half": lambda i: i.to(torch.float16),
    "i.bfloat16": lambda i: i.to(torch.bfloat16),
    "i.int8 clamped": lambda i: torch.clamp(i.to(torch.int8), -2, 5),
    "i.uint8 // 3": lambda i: torch.abs(i).to(torch.uint8) // 3,
    "i.bool": lambda i: i.to(torch.bool),
    "where(b, 1, 2)": lambda b: torch.where(b, 1, 2),
    "x < d": lambda x, d: x < d,
    "d / x": lambda d, x: d / x,
    "tanh(d)": lambda d: torch.tanh(d),
    "gelu(d)": lambda d: F.gelu(d),
    "log1p(d)": lambda d: torch.log1p(d),
    "d * 0.1": lambda d: d * 0.1 + 1e-300,
    "maximum(d, 0.1)": lambda d: torch.maximum(d, d * 0 + 0.1),
    "clamp(d, -0.1, 0.1)": lambda d: torch.clamp(d, -0.1, 0.1),
    "where(b, d, 0.1)": lambda b, d: torch.where(b, d, 0.1),
}
TESTED = {name.partition("_")[0] for name in {**ONE, **TWO}} | {*ONE, *TWO}
UNTESTED = {*_POINTWISE_UNARY, *_POINTWISE_BINARY, *_POINTWISE_OTHER} - TESTED
"""Operators of the table that no case is named after."""


def numbers(dtype: torch.dtype) -> Tensor:
    """256 numbers: special, tiny, huge, halves and ordinary ones."""
    info, generator = torch.finfo(dtype), torch.Generator().manual_seed(0)
    special = [0.0, torch.inf, torch.nan, info.max, info.tiny, info.smallest_normal / 4, info.eps]
    special += [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 10.0, 1e-3, 88.0, 89.5, 100.0, 1e3, 1e4]
    wide = 10.0 ** torch.empty(40, dtype=torch.float64).uniform_(-6, 6, generator=generator)
    plain = torch.randn(128 - 60, dtype=torch.float64, generator=generator).abs() * 2
    found = torch.cat([torch.tensor(special, dtype=torch.float64), wide, plain])
    found = torch.cat([found, -found])
    return torch.where(found.abs() > info.max, found.sign() * torch.inf, found).to(dtype)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1024 pairs: every two of 24 numbers, and ordinary ones."""
    x = numbers(dtype)
    few = torch.cat([x[:4], x[7:12], x[20:23], -x[:4], -x[7:12], -x[20:23]])
    a, b = (g.flatten() for g in torch.meshgrid(few, few, indexing="ij"))
    plain = x[70:128].repeat(20)[: 1024 - a.numel()]
    other = x[190:].repeat(20)[: 1024 - a.numel()].roll(7)
    return torch.cat([a, plain]), torch.cat([b, other])


def mixed(dtype: torch.dtype) -> dict[str, Tensor]:
    """256 operands of every kind for `MIXED`."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": numbers(dtype),
        "c": torch.tensor(0.3, dtype=torch.float64),
        "b": torch.rand(256, generator=generator) > 0.4,
        "i": torch.randint(-9, 10, (256,), generator=generator),
        "j": torch.randint(-5, 6, (256,), generator=generator).to(torch.int32),
        "d": torch.randn(256, generator=generator, dtype=torch.float64),
    }


def result_dtype(graph: Graph) -> torch.dtype:
    """Of a traced program."""
    (out,) = (n for n in graph.nodes if n.op == "output")
    return out.args[0].meta["val"].dtype
