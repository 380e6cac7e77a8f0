"""Opens the operator of generated norms as AOTAutograd does on a GPU, with none present.

Run as a process of its own, since what is interpreted never opens. Prints JSON: by case, the
kernels that are launched in the forward and in the backward, in order.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch

import fuser.lowering  # noqa: F401  registers the operators
from fuser.specs import NormSpec
from tests.lowering.norms import (
    itself,
    modulated,
    modulated_again,
    norm,
    rotated,
    rotated_back,
    row_norm,
    scaled,
    total,
)
from tests.lowering.open_operators import operands, pretend, trained

HALF = torch.bfloat16


def training(
    spec: NormSpec, *shapes: Sequence[int], symbols: Sequence[int] = (), order: Sequence[int] = ()
) -> dict[str, Any]:
    """Launches of forward and backward, and the order of the result in memory.

    Args:
        spec: what is computed.
        shapes: of the operands.
        symbols: sizes that are symbols.
        order: of the dimensions of the first operand in memory.
    """

    def function(*x: Any) -> Any:
        results = torch.ops.fuser.generated_norm(x, spec.to_text(), "a test", True)
        return results[: len(spec.results)]

    mode, x = operands(shapes, symbols, order)
    with mode:
        found, results = trained(function, x)
    last = [[d for d, s in enumerate(y.stride()) if s == 1] for y in results]
    return {**found, "fastest": last}


def main() -> None:
    pretend()
    layer = norm(dtype=HALF)
    residual = norm(total, scaled, centred=False, dtype=HALF, kept=HALF)
    modulate = norm(itself, modulated, norm_dtype=HALF, dtype=HALF)
    group = norm(inner=2, dtype=HALF)
    twice = norm(itself, modulated, modulated_again, norm_dtype=HALF, dtype=HALF)
    pairs = norm(itself, rotated, rotated_back, norm_dtype=HALF, dtype=HALF, paired=True)
    heads = [(2, 16, 512, 64, 2), (1, 1, 1, 64, 2), *[(1, 1, 512, 64, 2)] * 2]
    large, along = (2, 32, 4, 65536), (1, 32, 4, 1)
    found = {
        "layer": training(layer, *row_norm(8192, 1024)),
        "residual": training(residual, (8192, 1024), (8192, 1024), (1, 1024)),
        "modulate": training(modulate, (4, 4096, 1024), (4, 1, 1024), (4, 1, 1024)),
        "long": training(layer, *row_norm(8192, 20000)),
        "group": training(group, large, along, along),
        "channels_last": training(group, large, along, along, order=(0, 3, 1, 2)),
        "twice": training(twice, (8192, 1024), *[(1, 1024)] * 4),
        "halves": training(pairs, *heads, order=(0, 1, 2, 4, 3)),
        "neighbours": training(pairs, *heads, order=(0, 2, 1, 3, 4)),
        "dynamic": training(layer, *row_norm(8192, 1024), symbols=(8192,)),
        "dynamic group": training(group, large, along, along, symbols=(2, 65536)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your compiler for AOTAutograd")
        main()
