"""The work of a region, from its spec and the sizes of its operands."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..graph.axes import leaves, size_of
from ..graph.fold import Folder
from ..graph.ops import value
from ..graph.program import CASTS, SIZES, Program
from ..lowering.attention.positions import absorb
from ..lowering.attention.visible import visible
from ..lowering.base import size
from ..pattern import Call, Match
from ..specs import (
    ActivationSpec,
    AttentionSpec,
    LinearCrossEntropySpec,
    MoeSpec,
    NormSpec,
    RouterSpec,
)
from ..torch_private import eager_world
from .work import (
    ATTENTION_BACKWARD,
    PRODUCT_BACKWARD,
    Amount,
    Work,
    attention_flops,
    experts_chosen,
    size_bytes,
)

ROWS = 1024
"""Queries, spread evenly, at which a mask is looked at: at all of them where there are no more."""
STATISTIC = {True: 5, False: 3}
"""Operations of an element for the statistic of a norm that is centred (sum, difference, square,
sum, product with the root), or not (square, sum, product)."""
SOFTMAX = 3
"""The same for a softmax: difference, exponential, quotient."""


def work_of(match: Match, folder: Folder, *, training: bool) -> Work | None:
    """The work of a region; None where its pattern inserts something that has no spec.

    A backward reads what the region reads and the gradients of its results, an attention's the
    results too, and writes a gradient of every operand that wants one.
    """
    if not match.calls:
        return None
    calls = [_absorbed(call, folder) for call in match.calls]
    flops: Amount = sum(_flops(call, folder, training=training) for call in calls)
    operands = {op.node: (op, call) for call in calls for op in call.operands.values()}
    read = [_operand(op, call) for op, call in operands.values()]
    results = [value(node) for node in match.outputs]
    written: Amount = sum(size_bytes(x) for x in results)
    moved = sum(n for n, _ in read) + written
    if training:
        moved += sum(n for n, _ in read) + sum(n for n, wants in read if wants)
        kept = any(isinstance(call.spec, AttentionSpec) for call in calls)
        moved += (1 + kept) * sum(size_bytes(x) for x in results if x.requires_grad)
    return Work(flops, moved, 1 + training)


def _absorbed(call: Call, folder: Folder) -> Call:
    """With masks that follow from positions in the program: nobody reads those."""
    return absorb(call, folder) if isinstance(call.spec, AttentionSpec) else call


def _operand(operand: Any, call: Call) -> tuple[Amount, bool]:
    """Bytes of an operand that are read, and whether it wants a gradient."""
    example = value(operand.node)
    if not isinstance(example, torch.Tensor):
        return 0, False
    total = size_bytes(example)
    if isinstance(call.spec, MoeSpec) and _is_matrix(operand, call):
        total *= _share_of_experts(call)
    return total, example.requires_grad


def _is_matrix(operand: Any, call: Call) -> bool:
    names = {*call.spec.matrices, *call.spec.added}
    return any(place is operand for name, place in call.operands.items() if name in names)


def _share_of_experts(call: Call) -> Amount:
    """Share of the experts that somebody chose, on the average."""
    spec: MoeSpec = call.spec
    tokens = _size(call, "x", 0)
    return experts_chosen(spec.experts, _choices(call), tokens) / spec.experts


def _size(call: Call, name: str, dim: int) -> Any:
    return size_of(leaves((call.operands[name].target[dim],)))


def operators(program: Program) -> int:
    """Operators of a program that compute: casts, and what is made of sizes alone, do not."""
    casts = {"to", *CASTS}
    sized = {n for n in program.graph.nodes if n.op == "placeholder" and n.target in SIZES}
    count = 0
    for node in program.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if all(source in sized for source in node.all_input_nodes):
            sized.add(node)
        elif str(getattr(node.target, "__name__", node.target)) not in casts:
            count += 1
    return count


def _flops(call: Call, folder: Folder, *, training: bool) -> Amount:
    spec = call.spec
    backward: float = PRODUCT_BACKWARD
    if isinstance(spec, AttentionSpec):
        forward, backward = _attention(call, folder), ATTENTION_BACKWARD
    elif isinstance(spec, MoeSpec):
        forward = _mixture(call)
    elif isinstance(spec, LinearCrossEntropySpec):
        rows, features = _size(call, "x", 0), _size(call, "x", 1)
        forward = 2 * rows * features * _size(call, "weight", 0)
    elif isinstance(spec, NormSpec):
        forward = _norm(call)
    elif isinstance(spec, ActivationSpec):
        forward = operators(spec.program) * _broadcast(call, first=1)
    elif isinstance(spec, RouterSpec):
        forward = _router(call)
    else:
        forward = 0
    return forward + backward * forward if training else forward


def _attention(call: Call, folder: Folder) -> Amount:
    spec: AttentionSpec = call.spec
    heads = _size(call, "q0", 0) * _size(call, "q0", 1)
    rows, keys = _size(call, "q0", 2), _size(call, "k0", 2)
    features = sum(_size(call, f"q{i}", 3) for i in range(spec.contractions))
    share = density(call, folder)
    pairs = rows * keys if share == 1 else share * rows * keys
    found = attention_flops(heads, pairs, features, _size(call, "v", 3))
    return round(found) if isinstance(found, float) else found


def density(call: Call, folder: Folder) -> float:
    """Share of the pairs of a query and a key that a mask leaves, at the example's sizes.

    A mask that the data decides counts as leaving all.
    """
    spec: AttentionSpec = call.spec
    seen = visible(spec.score, spec.mask)
    if seen is None:
        return 1.0
    numbers = [size(call, *place) for place in (("q0", 0), ("q0", 1), ("q0", 2), ("k0", 2))]
    if any(number is None for number in numbers):
        return 1.0
    batches, heads, rows, keys = (int(number or 0) for number in numbers)
    inputs: dict[str, Any] = dict(zip(SIZES, (batches, heads, rows, keys), strict=True))
    step = max(1, rows // ROWS)
    inputs["iq"] = torch.arange(0, rows, step).view(1, 1, -1, 1)
    inputs["ik"] = torch.arange(keys).view(1, 1, 1, -1)
    inputs["ib"], inputs["ih"] = (torch.zeros(1, 1, 1, 1, dtype=torch.int64) for _ in range(2))
    wanted = seen.condition.inputs
    if any(name not in inputs for name in wanted):
        return 1.0
    with eager_world():
        kept = seen.condition(**{name: inputs[name] for name in wanted})
        if not isinstance(kept, torch.Tensor):
            return float(bool(kept))
        kept = kept.expand(1, 1, len(range(0, rows, step)), keys)
        return int(kept.sum()) / kept.numel()


def _choices(call: Call) -> Any:
    """How many experts a token takes."""
    spec: MoeSpec = call.spec
    if spec.runs:
        return 1
    return spec.sent if spec.sent else sum(_size(call, name, 1) for name in spec.indices)


def _mixture(call: Call) -> Amount:
    """Every product of an expert, for each choice of a token."""
    spec: MoeSpec = call.spec
    rows = _size(call, "x", 0) * _choices(call)
    names = [f"m{p}_0" if spec.separate else f"m{p}" for p in range(spec.products)]
    matrices = [call.operands[name].target for name in names]
    numbers = [math.prod(size_of(leaves((d,))) for d in dims[-2:]) for dims in matrices]
    return 2 * rows * sum(numbers)


def _broadcast(call: Call, first: int = 0) -> Any:
    """Elements that operands have together, from a dimension on."""
    sizes: list[Any] = []
    for operand in call.operands.values():
        each = [size_of(leaves((dim,))) for dim in operand.target[first:]]
        sizes = (
            each if not sizes else [b if a == 1 else a for a, b in zip(sizes, each, strict=True)]
        )
    return math.prod(sizes)


def _norm(call: Call) -> Amount:
    spec: NormSpec = call.spec
    each = 0 if spec.bare else STATISTIC[spec.centred]
    if spec.peak is not None:
        each += 1 + operators(spec.peak)
    members = len(spec.members)
    programs = [
        p for i in range(len(spec.dtypes)) if i not in spec.by_row for p in spec.programs(i)
    ]
    after = sum(map(operators, programs))
    return _broadcast(call) * (each + operators(spec.before)) + _broadcast(call) * after // members


def _router(call: Call) -> Amount:
    """A comparison of each score for its choice, and a sum over the choices where there is one."""
    spec: RouterSpec = call.spec
    tokens, experts = _size(call, "logits", 0), _size(call, "logits", 1)
    each = operators(spec.before) + operators(spec.compared) + 1
    each += SOFTMAX if spec.softmax is not None else 0
    chosen = operators(spec.taken) + operators(spec.weights)
    chosen += SOFTMAX if spec.top_softmax is not None else 0
    chosen += 1 if spec.total is not None else 0
    return tokens * experts * each + tokens * spec.choices * chosen
