"""PyTorch's own kernels for layer and group norms; what stands around them is left to Inductor."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import Dims, leaves, size_of
from fuser.graph.ops import is_tensor, value
from fuser.inductor_private import follows_channels_last, keeps_channels_last
from fuser.pattern import Call, Operand
from fuser.specs import NormSpec
from fuser.torch_private import known_true

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from ..spelled import Speller
from . import kernels
from .affine import Affine, leading

_FASTER = (
    "Inductor opens layer and group norms, and what it makes of their backward takes "
    "1.1 to 1.3 times as long as the library's kernel"
)
_FASTER_FORWARD = (
    "Inductor opens group norms, and where channels come last takes 1.3 to 3 times as long as "
    "the library's kernel"
)
_CANCELS = (
    "the library's backward loses digits where the mean is large, and what was "
    "written here does not"
)
_INFERENCE = "without a backward Inductor's own kernel is as fast, and takes what is around it in"
_HALF = "in half precision Inductor's own kernels are as fast"
_ORDER = "the library's kernel is the faster one where channels come last, and here they do not"
_ABOVE = 16
"""Operators between an image and a convolution above it that are looked at."""
_AROUND = "what stands around it, Inductor's own kernel takes in for nothing"


@dataclass(frozen=True)
class _Plan:
    """Which kernel, in which arrangement.

    Attributes:
        affines: the beginnings of all programs, which are one.
        target: of x.
        parameters: of weight and bias.
        size: of its normalised dimensions, or groups.
    """

    function: Any
    affines: list[Affine]
    target: Dims
    parameters: Dims
    size: int

    @property
    def affine(self) -> Affine:
        return self.affines[0]


@register_lowering(NormSpec, order=20)
class Library(Lowering):
    """A layer or group norm, on a CPU."""

    name: ClassVar[str] = "aten"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        if context.device.type != "cpu":
            return Refusal("the library's kernel was measured on a CPU alone")
        plan = _plan(call)
        if isinstance(plan, str):
            return Refusal(plan)
        if not context.native:
            return Refusal(_CANCELS)

        def emit(builder: Builder) -> list[Node]:
            _follow(call, plan)
            return _emit(builder, call, plan)

        name = f"aten.{plan.function.__name__.partition('.')[0]}"
        images = plan.function is torch.ops.fuser.group_norm.default
        why = _FASTER_FORWARD if images else _FASTER
        return Emission(emit, name, why, _slower(call, context, plan), {}, 1.0)


def _slower(call: Call, context: Context, plan: _Plan) -> str:
    """Why Inductor is expected to be as fast; docs/decisions.md has the figures."""
    spec: NormSpec = call.spec
    if plan.function is torch.ops.fuser.group_norm.default:
        last = _comes_last(call, plan) or (not context.training and _is_kept_last(call, plan))
        return "" if last else _ORDER
    if not context.training:
        return _INFERENCE
    if plan.affine.dtype is not torch.float32:
        return _HALF
    alone = all(user.op == "output" for of in plan.affines for user in of.end.users)
    before = any(node.op.startswith("call") for node in spec.before.graph.nodes)
    return _AROUND if before or not alone or spec.kept is not None else ""


def _comes_last(call: Call, plan: _Plan) -> bool:
    """Whether x is an image whose channels are beside each other in memory, as the kernel sees it:
    the stride of a batch of one counts, too."""
    images = [value(x) for x in _images(call, plan)]
    return any(known_true(x.stride(1) == 1) and known_true(x.stride(0) * x.shape[0] == x.numel())
               for x in images)  # fmt: skip


def _is_kept_last(call: Call, plan: _Plan) -> bool:
    """Whether Inductor keeps x with channels last, since a convolution gives what it is made of."""
    return keeps_channels_last() and any(map(_is_convolved, _images(call, plan)))


def _images(call: Call, plan: _Plan) -> list[Node]:
    """What x is made of and has all its dimensions, if it is an image."""
    images = [o for o in call.operands.values() if len(o.dims) == 4 == len(plan.target)]
    return [o.node for o in images if all(leaves((dim,)) for dim in o.dims[1:])]


def _is_convolved(image: Node) -> bool:
    """Whether a convolution is right above, or above a few operators whose results are images."""
    pending, seen = [image], set[Node]()
    while pending and len(seen) < _ABOVE:
        node = pending.pop(0)
        if getattr(node.target, "__name__", "") == "conv2d":
            return True
        seen.add(node)
        pending += [
            n for n in node.all_input_nodes
            if n not in seen and is_tensor(n) and value(n).ndim == 4
        ]  # fmt: skip
    return False


def _plan(call: Call) -> _Plan | str:
    """How a kernel of the library computes a chain, or why none does."""
    spec: NormSpec = call.spec
    if spec.peak is not None:
        return "the library has no kernel that looks for the largest of a row"
    if spec.parts:
        return "the library has no kernel that reads pairs of elements"
    if not spec.centred:
        return "the library has no kernel of its own for norms without a mean"
    if spec.floor or spec.summed:
        return "the library's kernels add eps to a variance"
    if spec.norm_dtype is not torch.float32:
        return f"it is rounded to {spec.norm_dtype} before the weight"
    found = _placed_as(call, leading(spec))
    return _placed_as(call, leading(spec, bare=True)) if isinstance(found, str) else found


def _placed_as(call: Call, affines: list[Affine]) -> _Plan | str:
    """The kernel whose weight stands where this one does, if there is one."""
    spec: NormSpec = call.spec
    affine = affines[0]
    arranged = next(iter(call.operands.values())).target
    outer, inner = arranged[: len(arranged) - spec.inner], arranged[len(arranged) - spec.inner :]
    if not leaves(inner):
        return "there is one element in a row"
    given = [call.operands[name] for name in (affine.weight, affine.bias) if name]
    axes = [list(leaves(o.dims)) for o in given]
    dtypes = {o.dtype or value(o.node).dtype for o in given} | {affine.dtype}
    if len(dtypes) > 1 or affine.dtype not in (torch.float32, torch.bfloat16):
        return "weight, bias and result have several dtypes"
    if affine.bias and not affine.weight:
        return "there is a bias, but no weight"
    if all(found == list(leaves(inner)) for found in axes):
        function = torch.ops.fuser.layer_norm.default
        return _Plan(function, affines, arranged, inner, spec.inner)
    return _groups(call, affines, outer, inner, axes)


def _groups(
    call: Call, affines: list[Affine], outer: Dims, inner: Dims, axes: list[list[Any]]
) -> _Plan | str:
    """A weight for each channel, some of which are normalised together."""
    channels = axes[0] if axes else []
    batch = [a for a in leaves(outer) if a not in channels]
    rest = [a for a in leaves(inner) if a not in channels]
    groups = [a for a in leaves(outer) if a in channels]
    ordered = [*batch, *channels, *rest] == [*leaves(outer), *leaves(inner)]
    if not channels or not ordered or any(found != channels for found in axes) or not rest:
        return "the weight is neither along what is normalised nor along channels"
    count = size_of(groups)
    if not isinstance(count, int):
        return "the number of groups is not known while compiling"
    spatial = _spatial(call, channels, rest)
    target = (tuple(batch), tuple(channels), *spatial)
    parameters = (tuple(channels),)
    return _Plan(torch.ops.fuser.group_norm.default, affines, target, parameters, count)


def _spatial(call: Call, channels: list[Any], rest: list[Any]) -> Dims:
    """Dimensions behind the channels: those of x, so that its order in memory is seen."""
    for operand in call.operands.values():
        dims = operand.dims
        if len(dims) > 2 and list(leaves((dims[1],))) == channels:
            if list(leaves(dims[2:])) == rest:
                return tuple(dims[2:])
    return (tuple(rest),)


def _emit(builder: Builder, call: Call, plan: _Plan) -> list[Node]:
    spec: NormSpec = call.spec

    def read(name: str) -> Node:
        return _placed(builder, call.operands[name], plan.target)

    x = Speller(builder, read)(spec.before.graph.output_node())
    if value(x).dtype is not plan.affine.dtype:
        wide = builder.method("to", x, dtype=plan.affine.dtype)
    else:
        wide = x
    weight, bias = (
        _placed(builder, call.operands[name], plan.parameters) if name else None
        for name in (plan.affine.weight, plan.affine.bias)
    )
    results = builder.call(plan.function, wide, weight, bias, plan.size, spec.eps)
    end = builder.call(operator.getitem, results, 0)
    given = [Speller(builder, read, {of.end: end})(of.graph.output_node()) for of in plan.affines]
    given += [] if spec.kept is None else [x]
    arranged = next(iter(call.operands.values())).target
    return [builder.arrange(node, plan.target, arranged) for node in given]


def _follow(call: Call, plan: _Plan) -> None:
    """Has Inductor give images to the kernels as it keeps them."""
    if plan.function is torch.ops.fuser.group_norm.default and _is_kept_last(call, plan):
        follows_channels_last(plan.function, (0,))
        follows_channels_last(torch.ops.fuser.group_norm_backward.default, (0, 3))


def _placed(builder: Builder, operand: Operand, target: Dims) -> Node:
    node = builder.current(operand.node)
    return builder.arrange(node, operand.dims, target)


__all__ = ["Library", "kernels"]
