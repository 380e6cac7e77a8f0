"""Library kernels for programs that are `scale · s + bias` with masks: SDPA, CPU flash.

Emitted as ordinary graph nodes, so autograd and Inductor see through them. The bias is one tensor,
made once for each graph and shared by the layers that share it; a causal mask is never made.
"""

from __future__ import annotations

from typing import ClassVar

from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import leaves, same_size, size_of
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import cost, gpu
from .affine import NotAffine
from .banded import share
from .bias import Rows, reads_gradient
from .factors import unscaled
from .form import Form, dtype_of, is_guarded, read
from .library import Emitter
from .mask import MaskKind


@register_lowering(AttentionSpec, order=10)
class LibraryAttention(Lowering):
    """SDPA, or the flash kernel behind it where a causal mask and a bias meet."""

    name: ClassVar[str] = "library kernel"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        if context.device.type != "cpu":  # Inductor's C++ multiplies while it moves q anyway
            call = unscaled(call, context.folder.view)
        try:
            form = read(call, context)
        except NotAffine as error:
            return Refusal(str(error))
        refusal = _refuse(call, form, context)
        if refusal is not None:
            return refusal
        kernel = _kernel(call.spec, form, context)
        facts = {
            "scale": f"{form.scale:.6g}",
            "mask": form.bias.describe(),
            "rows": form.bias.rows.value,
        }
        if form.bias.relative:
            facts["bias"] = "by distance, one row for all queries"
        elif form.bias.terms:
            facts["bias"] = "added as one tensor"

        def emit(builder: Builder) -> Node:
            return Emitter(builder, call, form, context).run()

        fused = _is_fused(call, form, context)
        why = "SDPA's flash kernels take it" if fused else "the program is a scale and a bias"
        work = _work(call, form)
        if context.device.type == "cuda" and not fused:
            work *= gpu.EFFICIENT
        return Emission(emit, kernel, why, _slower(call, form, context, fused), facts, work)


def _reads_less(call: Call, form: Form, context: Context) -> bool:
    """Whether the kernel skips scores; beside a native call, whether it reads less of anything."""
    bias = form.bias
    if bias.causal or bias.band or not context.native:
        return bias.causal or bias.band
    heads = [size_of(leaves((call.operands[name].target[1],))) for name in ("q0", "k0")]
    return bias.empty or bias.relative or heads[0] != heads[1]


def _is_fused(call: Call, form: Form, context: Context) -> bool:
    """Whether SDPA runs a flash kernel on a GPU; blocks of a window are given a mask."""
    bias = form.bias
    window = bias.band and bias.mask is not None and bias.mask.kind is not MaskKind.CHUNKED
    if context.device.type != "cuda" or not bias.empty or window:
        return False
    dtype = dtype_of(call, form, context)
    return gpu.is_fused(
        call, dtype, causal=bias.causal, training=context.training, device=context.device
    )


def _slower(call: Call, form: Form, context: Context, fused: bool) -> str:
    """Why the inner backend is expected to be at least as fast."""
    structured = _reads_less(call, form, context)
    if context.device.type == "cpu":
        plain = form.bias.mask is None
        return cost.slower(call, context, structured=structured, plain=plain)
    if context.native and not structured:
        return cost.SAME_MASK
    if context.device.type != "cuda" or fused:
        return ""
    if gpu.is_grouped(call):
        return "SDPA writes every score where heads share keys and no flash kernel takes it"
    return gpu.slower(call)


def _work(call: Call, form: Form) -> float:
    """Scores that are computed, over all scores."""
    mask, rows = form.bias.mask, size_of(leaves((call.operands["q0"].target[2],)))
    if form.bias.band and mask is not None and isinstance(rows, int):
        return share(mask, rows)
    return 0.5 if form.bias.causal else 1.0


def _features_known(call: Call) -> bool:
    """Whether q's and v's feature counts are constants, or one and the same symbol."""
    sizes = [size_of(leaves((o.target[3],))) for n, o in call.operands.items() if n[0] in "qv"]
    if all(isinstance(size, int) for size in sizes):
        return True
    return len(sizes) == 2 and same_size(*sizes)


def _refuse(call: Call, form: Form, context: Context) -> Refusal | None:
    spec, bias = call.spec, form.bias
    if bias.added_after and bias.rows is not Rows.KEPT:
        return Refusal("a bias is added to masked scores where a query may have no key")
    if not _features_known(call):
        return Refusal("the numbers of features of q and v are symbolic and not known to be equal")
    if spec.dropout:
        return Refusal("no library kernel drops probabilities in an order that is known")
    if context.training and reads_gradient(call, bias):
        return Refusal("the bias needs a gradient, which the library kernels do not give")
    if bias.uneven:
        return Refusal("masks leave several finite numbers where a query may have no other scores")
    if context.training and bias.ties and bias.rows is not Rows.KEPT:
        return Refusal("`maximum` halves the gradient of a query without keys, no kernel does")
    if context.training and spec.sink:
        return Refusal("the library kernels give no gradient for the log-sum-exp that a sink needs")
    if context.device.type != "cpu":
        if bias.causal and not bias.empty:
            return Refusal("SDPA takes no bias beside its own causal mask")
        if spec.sink:
            return Refusal("SDPA gives no log-sum-exp, which a sink needs")
        if bias.rows is not Rows.KEPT and not spec.dead_rows_are_zero:
            return Refusal("a query may have no key at all, where SDPA and softmax differ")
    return None


def _kernel(spec: AttentionSpec, form: Form, context: Context) -> str:
    if form.bias.band:
        return f"aten.sdpa, {form.bias.mask}"
    if form.bias.empty and not spec.sink:
        return "aten.sdpa, causal" if form.bias.causal else "aten.sdpa"
    if context.device.type != "cpu":
        return "aten.sdpa, bias"
    causal = ", causal" if form.bias.causal else ""
    extra = ", bias" if not form.bias.empty else ""
    sink = ", sink" if spec.sink else ""
    guarded = is_guarded(spec, form, context)
    return f"{'guarded' if guarded else 'aten'}.flash{causal}{extra}{sink}"
