"""Which spellings are equal, and which only up to rounding.

A last bit may differ almost anywhere; but where an operator with steps reads the result (a round, a
comparison, an argmax), it can become a whole step, so that there only exact equality counts.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..graph.effects import is_foreign
from ..graph.ops import value
from ..graph.view import GraphView
from . import form

_STEPS = set(
    "round floor ceil trunc fix frac sign sgn floor_divide remainder fmod copysign heaviside histc "
    "nextafter hardshrink threshold atan2 angle bernoulli gumbel_softmax "
    "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine".split()
)


def exacting(template: GraphView) -> frozenset[Node]:
    """The values of a template that an operator with steps reads, directly or not."""
    found = _exacting.get(template)
    if found is None:
        reached: set[Node] = set()
        for node in reversed(template.nodes):
            if node in reached or _has_steps(template, node):
                reached.update(node.all_input_nodes)
        found = _exacting[template] = frozenset(reached)
    return found


_exacting: WeakKeyDictionary[GraphView, frozenset[Node]] = WeakKeyDictionary()


def _has_steps(view: GraphView, node: Node) -> bool:
    """Whether a result may jump where the inputs move a little; what is unknown may."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(form.head(view, node))
    if name in _STEPS or node.kwargs.get("rounding_mode") is not None or _is_unknown(node):
        return True
    if name.endswith("_like") or name.startswith("new_"):  # what it is like does not matter
        return False
    sources = [value(n) for n in node.all_input_nodes]
    return any(map(_is_fine, _tensors(sources))) and not all(map(_is_fine, _tensors(value(node))))


def _is_unknown(node: Node) -> bool:
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return not str(node.target).startswith("aten.")
    return is_foreign(node)


def _tensors(values: object) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor)]


def _is_fine(tensor: torch.Tensor) -> bool:
    """Whether numbers lie close together: not integers, truth values or eight bits."""
    dtype = tensor.dtype
    return (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize > 1


def reciprocal(number: float, dtype: torch.dtype, *, exact: bool) -> float | None:
    """1 / c where dividing by it is multiplying by c in a dtype, up to the last rounding.

    Args:
        exact: without that rounding, which leaves powers of two.
    """
    if not _is_normal(number, dtype):
        return None
    other = 1.0 / number
    if not _is_normal(other, dtype) or (exact and abs(math.frexp(number)[0]) != 0.5):
        return None
    return other


def _is_normal(number: float, dtype: torch.dtype) -> bool:
    if not dtype.is_floating_point and not dtype.is_complex:
        return False
    limits = torch.finfo(dtype)
    return limits.tiny <= abs(number) <= limits.max


def negative(number: float, dtype: torch.dtype) -> float | None:
    """-c where subtracting it from a tensor of a dtype is adding c; zeros have signs."""
    if number == 0 or not dtype.is_signed:
        return None
    integral = not dtype.is_floating_point and not dtype.is_complex
    if integral and isinstance(number, int) and abs(number) > torch.iinfo(dtype).max:
        return None
    return -number


def overflows(number: float, dtype: torch.dtype) -> bool:
    """Whether a finite number is infinite in a dtype."""
    return dtype.is_floating_point and torch.finfo(dtype).max < abs(number) < math.inf
