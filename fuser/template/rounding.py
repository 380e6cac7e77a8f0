"""Which spellings are equal, and which only up to rounding.

A last bit may differ almost anywhere; but where an operator with steps reads the result (a round, a
comparison, an argmax, a cast to a narrower type), it can become a whole step, so that there only
exact equality counts. An operator that is not known to have no steps is taken to have some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch.fx import Node

from ..graph.effects import is_foreign
from ..graph.ops import Kind, value
from ..graph.view import GraphView
from ..torch_private import OpOverload, OpOverloadPacket, pytree
from . import form

_STEPS = set(
    "round floor ceil trunc frac sign signbit floor_divide remainder fmod copysign atan2 "
    "hardshrink threshold".split()
)
"""Pointwise operators of `fuser.graph.ops` that jump."""
_CONTINUOUS = set(
    "mean prod std var norm cumsum log_softmax softmin logaddexp linear addmm addmv mv dot outer "
    "layer_norm rms_norm group_norm batch_norm instance_norm normalize conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d avg_pool1d avg_pool2d adaptive_avg_pool1d "
    "adaptive_avg_pool2d max_pool1d max_pool2d stack pad flip roll chunk split unbind select "
    "index_select gather take_along_dim diagonal tril triu detach getitem glu cross cdist "
    "mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy nll_loss embedding prelu interpolate "
    "cumprod logcumsumexp linalg_norm linalg_vector_norm addbmm index_add scatter_add unfold "
    "pixel_shuffle view_as_real view_as_complex complex".split()
)
"""The other operators that are known to have no jump; nothing else is taken to have none."""
_NO_JUMPS = {
    Kind.POINTWISE,
    Kind.VIEW,
    Kind.CONTRACT,
    Kind.SOFTMAX,
    Kind.REDUCE,
    Kind.SLICE,
    Kind.CAT,
    Kind.DROPOUT,
    Kind.ATTENTION,
}


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
    results = _tensors(value(node))
    if node.op not in ("call_function", "call_method") or not results:
        return False
    name = str(form.head(view, node))
    if name.endswith("_like") or name.startswith("new_"):  # what it is like does not matter
        return False
    sources = [x for n in node.all_input_nodes for x in _tensors(value(n)) if _is_fine(x)]
    if not sources:
        return False
    if not all(map(_is_fine, results)) or _narrows(node, sources, results):
        return True
    if _is_unknown(node):
        return True
    if view.op(node).kind in _NO_JUMPS:
        return name in _STEPS or node.kwargs.get("rounding_mode") is not None
    return name not in _CONTINUOUS and getattr(node.target, "__name__", "") not in _CONTINUOUS


def _is_unknown(node: Node) -> bool:
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return not str(node.target).startswith("aten.")
    return is_foreign(node)


def _narrows(node: Node, sources: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> bool:
    """Whether a node rounds to a fixed narrower type, and not back to the type of an argument."""
    dtypes = {x.dtype for x in sources}
    if any(not _tensors(value(n)) for n in node.all_input_nodes):
        return False
    widest = max(dtype.itemsize for dtype in dtypes)
    return any(x.dtype not in dtypes and x.dtype.itemsize < widest for x in results)


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
