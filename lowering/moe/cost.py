"""What mixtures are expected to take.

On a GPU it is counted in units of PyTorch's grouped product. Measured on an H200 in bf16
(`benchmarks/results/moe-generated-cuda.csv`), generated kernels over the grouped product: 1.3 to
1.5 times as fast while an expert has up to 8 rows, 1.03 at 512 rows, 0.94 at 2048 and 0.86 at 1024
rows of 4096 features; with gradients 0.69 to 0.92.

On a CPU experts that were not chosen are left out at the price of some overhead for each that was;
docs/decisions.md has the measurements behind the thresholds.
"""

from __future__ import annotations

from fuser.pattern import Call
from fuser.specs import MoeSpec

from ..base import size

LIBRARY = 1.0
FASTER, SLOWER = 0.8, 1.2
"""Generated kernels, for few rows of an expert and for many."""
FEW = 512
"""Rows of an expert up to which generated kernels are faster in inference."""
UNKNOWN = 1024.0
"""Rows of an expert where their number is not known while compiling."""


def rows_of_expert(call: Call) -> float:
    """How many rows an expert has on average."""
    found = _sizes(call)
    return UNKNOWN if found is None else found[0] * found[1] / call.spec.experts


def _sizes(call: Call) -> tuple[int, int] | None:
    """Tokens, and the choices of each, as far as they are known."""
    spec: MoeSpec = call.spec
    tokens = size(call, "x", 0)
    choices = 1 if spec.runs else spec.sent or _chosen(call)
    return None if tokens is None or choices is None else (tokens, choices)


def _chosen(call: Call) -> int | None:
    found = [size(call, name, 1) for name in call.spec.indices]
    known = [n for n in found if n is not None]
    return sum(known) if len(known) == len(found) else None


def uncounted(call: Call) -> str:
    """Why nothing may be gained where a mask tells the experts of a token; else empty."""
    known = call.spec.sent == 0 or "combine" in call.operands
    return "" if known else "how many experts a token goes through is known while running alone"


def generated(call: Call, *, training: bool) -> float:
    """Work of generated kernels."""
    return FASTER if not training and rows_of_expert(call) <= FEW else SLOWER


SAVED = 1 << 28
"""Fewest multiplications that are left out."""
ROWS = 4
"""Fewest rows that an expert has on average: matrices are read for fewer as for many."""
UNREAD = 64 << 20
"""Bytes of matrices, more than a cache holds, that need not be read, where few experts are hit."""


def pays_on_cpu(call: Call) -> bool:
    """Whether computing the chosen experts alone is faster than all of them."""
    spec: MoeSpec = call.spec
    found = _sizes(call)
    if found is None:
        return False
    tokens, choices = found
    each = spec.experts if spec.separate else 1
    numbers = 0
    for name in spec.matrices[::each]:
        rows, columns = (size(call, name, dim) for dim in (-2, -1))
        numbers += (rows or 0) * (columns or 0)
    saved = tokens * (spec.experts - choices) * numbers
    if tokens * choices >= ROWS * spec.experts and saved >= SAVED:
        return True
    unread = (spec.experts - tokens * choices) * numbers * spec.product_dtype.itemsize
    return 4 * tokens * choices <= spec.experts and unread >= UNREAD
