"""Text of the kernels: a few tokens for each program, all of their experts in registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from fuser.graph.program import Program
from fuser.torch_private import differentiable, eager_world

from ...triton.emitter import Emitter, Value, held
from ...triton.frame import Argument, assembled, opening
from ...triton.kernel import Kernel, pointer
from ...triton.source import Source
from ...triton.trace import Input, trace, trace_gradient
from ...triton.values import type_name
from ..generated.text import power_of_two
from .layout import ELEMENTS, Layout, read

FP32 = torch.float32


@dataclass
class Text:
    """One kernel that is being written.

    Attributes:
        layout: what it is specialised on.
        width: places of experts in a tile, a power of two.
        members: those of one group.
        functions: names of device functions that the text calls.
    """

    layout: Layout
    width: int
    members: int
    write: Source = field(default_factory=Source)
    functions: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.emitter = Emitter(self.write, "x", self.functions)

    @property
    def rows(self) -> int:
        """Tokens of a program."""
        return rows_of_program(self.layout)

    def call(self, text: str) -> str:
        """A call of a device function."""
        self.functions.add(text.partition("(")[0])
        return text

    def tokens(self) -> None:
        """`row` of each token, and whether it is `there`."""
        self.write(f"row = tl.program_id(0) * {self.rows} + tl.arange(0, {self.rows})")
        self.write("there = row < T")
        self.write("row64 = row.to(tl.int64)[:, None]")

    def experts(self) -> None:
        """`expert` at each place of a tile, and whether it `exists`."""
        count, own = self.layout.experts, self.layout.members
        self.write(f"place = tl.arange(0, {self.width})")
        self.write(f"expert = {self.expert_at('place')}")
        if self.members == own:
            exists = f"place < {count}"
        else:
            exists = (
                f"(place % {self.members} < {own}) & (place // {self.members} < {count // own})"
            )
        self.write(f"exists = ({exists})[None, :]")

    def expert_at(self, place: str) -> str:
        if self.members in (self.layout.members, self.width):
            return place
        return f"{place} // {self.members} * {self.layout.members} + {place} % {self.members}"

    def load(self, name: str, at: str, mask: str, dtype: torch.dtype) -> Value:
        """A tensor in memory, in registers."""
        self.write(
            f"{name} = tl.load({at}, mask={mask}, other=0.0).to(tl.{type_name(held(dtype))})"
        )
        return Value(name, dtype)

    # -- programs

    def run(
        self, program: Program, known: Mapping[str, Input], given: Mapping[str, Value]
    ) -> Value:
        graph = trace(program, read(program, dict(known)))
        (value,) = self.emitter.run(graph, given)
        return self.emitter.tensor(value)

    def gradient(
        self,
        program: Program,
        known: dict[str, Input],
        given: Mapping[str, Value],
        cotangent: str,
        wrt: Sequence[str],
    ) -> dict[str, Value]:
        """What an fp32 cotangent of the result gives inputs; nothing to those it does not read."""
        own = read(program, known)
        names = [name for name in wrt if name in own]
        result = next(n for n in trace(program, own).nodes if n.op == "output").args[0]
        grad = self.emitter.cast(Value(cotangent, FP32), result.meta["val"].dtype)  # type: ignore[union-attr]
        graph = trace_gradient(program, own, names)
        found = self.emitter.run(graph, {**given, "grad": grad})
        return dict(zip(names, map(self.emitter.tensor, found), strict=True))

    def named(self, name: str, value: Value, dtype: torch.dtype = FP32) -> str:
        """A name of its own for a value that is needed as it is."""
        self.write(f"{name} = {self.emitter.cast(value, dtype).text}")
        return name

    # -- scores

    def softmax(self, name: str, value: Value, dtype: torch.dtype, among: str) -> Value:
        """The softmax over those of a row that are `among` them; zero, or NaN, elsewhere."""
        raw = self.named(f"{name}_raw", self.emitter.cast(value, dtype), dtype)
        self.write(f"{name}_top = tl.max(tl.where({among}, {raw}, float('-inf')), 1)[:, None]")
        self.write(f"{name}_exp = tl.where({among}, tl.exp({raw} - {name}_top), 0.0)")
        self.write(f"{name}_sum = tl.sum({name}_exp, 1)[:, None]")
        return self._normalised(name, f"{name}_exp", dtype)

    def again(self, name: str, value: Value, dtype: torch.dtype) -> Value:
        """The same of other elements of the row."""
        raw = self.named("again", self.emitter.cast(value, dtype), dtype)
        return self._normalised(name, f"tl.exp({raw} - {name}_top)", dtype)

    def _normalised(self, name: str, text: str, dtype: torch.dtype) -> Value:
        text = self.emitter.rounded(f"tl.div_rn({text}, {name}_sum)", dtype)
        return self.emitter.let(text, dtype)

    def scores(self, logits: Value) -> dict[str, Value]:
        """What programs read at every expert: `x`, and `s` where there is a softmax."""
        spec, inputs = self.layout.spec, {"x": logits}
        if spec.softmax is not None:
            before = self.run(spec.before, self.layout.inputs, inputs)
            inputs["s"] = self.softmax("softmax", before, spec.softmax, "exists")
        return inputs

    def kernel(self, name: str, about: str, arguments: Sequence[Argument], origin: str) -> Kernel:
        return assembled(
            name, about, opening(origin, facts(self.layout), self.functions), arguments, ("T",),
            self.write.lines, num_warps=1, num_stages=1,
        )  # fmt: skip


def rows_of_program(layout: Layout) -> int:
    """Tokens that one program routes."""
    return max(1, ELEMENTS // power_of_two(layout.experts))


def forward_text(layout: Layout, origin: str) -> Kernel:
    """Weights and indices, `(T, K)`."""
    spec = layout.spec
    members = power_of_two(layout.members)
    groups = power_of_two(spec.groups.count) if spec.groups else 1
    text = Text(layout, members * groups, members)
    write = text.write
    text.tokens()
    text.experts()
    at = "logits + row64 * logits_t + expert[None, :] * logits_e"
    known = "there[:, None] & exists"
    inputs = text.scores(text.load("x", at, known, layout.logits))
    for i, dtype in enumerate(layout.captured):
        at = f"b{i} + expert[None, :] * b{i}_e"
        inputs[f"b{i}"] = text.load(f"bias_{i}", at, "exists", dtype)
    compared = text.run(spec.compared, layout.inputs, inputs)
    write(f"compared = {compared.text}")
    if spec.groups is not None:
        _mask_groups(text, compared.dtype)
    write(f"ranks = {text.call('ranked(compared, place[None, :], exists)')}")
    count, width = spec.choices, power_of_two(spec.choices)
    write(f"choice = tl.arange(0, {width})[None, :]")
    write(f"chosen = tl.zeros([{text.rows}, {width}], tl.int32)")
    with write.block(f"for k in range({count}):"):
        write("best = tl.max(ranks, 1)[:, None]")
        write(f"chosen = tl.where(choice == k, {text.call('place_of(best)')}, chosen)")
        write(f"ranks = {text.call('without(ranks, best)')}")
    if text.members not in (layout.members, text.width):
        write(f"chosen = {text.expert_at('chosen')}")
    write(f"is_choice = choice < {count}")
    write("kept = there[:, None] & is_choice")
    weights = _weights(text, inputs)
    write(f"at = row64 * {count} + choice")
    write(f"tl.store(weights + at, {weights.text}, mask=kept)")
    write("tl.store(indices + at, chosen.to(tl.int64), mask=kept)")
    arguments = [
        Argument("logits", pointer(layout.logits), "te"),
        *(Argument(f"b{i}", pointer(d), "e") for i, d in enumerate(layout.captured)),
        Argument("weights", pointer(spec.dtype)), Argument("indices", pointer(torch.int64)),
    ]  # fmt: skip
    return text.kernel("router_kernel", "The best experts of each token.", arguments, origin)


def _mask_groups(text: Text, dtype: torch.dtype) -> None:
    """`compared` of the best groups; the number that stands there in all others."""
    groups, write = text.layout.spec.groups, text.write
    assert groups is not None
    count = text.width // text.members
    tile = f"[{text.rows}, {count}, {text.members}]"
    write(f"ranks = {text.call('ranked(compared, place[None, :], exists)')}")
    write(f"grouped = tl.reshape(ranks, {tile})")
    write("largest = tl.max(grouped, 2)")
    score = text.call("number_of(largest)")
    if groups.best == 2:
        write(f"grouped = {text.call('without(grouped, largest[:, :, None])')}")
        score = text.emitter.rounded(f"{score} + number_of(tl.max(grouped, 2))", dtype)
    text.functions.update({score.partition("(")[0]} - {"number_of"})
    write(f"group = tl.arange(0, {count})[None, :]")
    write(f"group_ranks = ranked({score}, group, group < {groups.count})")
    write(f"kept_groups = tl.zeros([{text.rows}, {count}], tl.int32)")
    with write.block(f"for k in range({groups.kept}):"):
        write("top = tl.max(group_ranks, 1)[:, None]")
        write("kept_groups = tl.where(group_ranks == top, 1, kept_groups)")
        write(f"group_ranks = {text.call('without(group_ranks, top)')}")
    write(f"kept_experts = tl.broadcast_to(kept_groups[:, :, None], {tile})")
    write(f"kept_experts = tl.reshape(kept_experts, [{text.rows}, {text.width}])")
    fill = float(torch.tensor(groups.fill, dtype=torch.float64).to(dtype))
    write(f"compared = tl.where(kept_experts > 0, compared, float('{fill!r}'))")


def _weights(text: Text, inputs: Mapping[str, Value]) -> Value:
    """Of the chosen experts, whose logits are read once more."""
    layout, spec = text.layout, text.layout.spec
    at = "logits + row64 * logits_t + chosen * logits_e"
    own = {"x": text.load("own", at, "kept", layout.logits)}
    if "s" in spec.taken.inputs:
        assert spec.softmax is not None
        before = text.run(spec.before, layout.inputs, own)
        own["s"] = text.again("softmax", before, spec.softmax)
    given = text.run(spec.taken, layout.inputs, own)
    found = _normal(text, given, "is_choice")
    return text.emitter.cast(text.run(spec.weights, layout.weighed, found), spec.dtype)


def _normal(text: Text, given: Value, among: str) -> dict[str, Value]:
    """What the weights are made from: `g`, after its softmax, and its sum `t`."""
    spec = text.layout.spec
    if spec.top_softmax is not None:
        given = text.softmax("top", given, spec.top_softmax, among)
    found = {"g": given}
    if spec.total is not None:
        raw = text.emitter.cast(given, FP32).text
        total = f"tl.sum(tl.where({among}, {raw}, 0.0), 1)[:, None]"
        found["t"] = text.emitter.let(text.emitter.rounded(total, spec.total), spec.total)
    return found


def backward_text(layout: Layout, origin: str) -> Kernel:
    """The gradient of the logits, `(T, E)`, from that of the weights."""
    spec, width = layout.spec, power_of_two(layout.experts)
    text = Text(layout, width, width)
    write = text.write
    text.tokens()
    write(f"expert = tl.arange(0, {width})")
    write(f"exists = (expert < {layout.experts})[None, :]")
    write("known = there[:, None] & exists")
    at = "logits + row64 * logits_t + expert[None, :] * logits_e"
    inputs = text.scores(text.load("x", at, "known", layout.logits))
    write(f"chosen = tl.zeros([{text.rows}, {width}], tl.int32)")
    write(f"grads = tl.zeros([{text.rows}, {width}], tl.float32)")
    with write.block(f"for k in range({spec.choices}):"):
        write(
            f"index = tl.load(indices + row64 * {spec.choices} + k, mask=there[:, None], other=-1)"
        )
        write("own = tl.load(grad + row64 * grad_t + k * grad_k, mask=there[:, None], other=0.0)")
        write("is_own = expert[None, :] == index")
        write("chosen = tl.where(is_own, 1, chosen)")
        write("grads = tl.where(is_own, own.to(tl.float32), grads)")
    write("is_chosen = chosen > 0")
    found = _normal(text, text.run(spec.taken, layout.inputs, inputs), "is_chosen")
    of_given = _summed(
        text, "given", text.gradient(spec.weights, layout.weighed, found, "grads", ("g", "t"))
    )
    if spec.top_softmax is not None:
        of_given = _through_softmax(text, "top", found["g"], of_given)
        write(f"{of_given} = tl.where(is_chosen, {of_given}, 0.0)")
    taken = text.gradient(spec.taken, layout.inputs, inputs, of_given, ("x", "s"))
    parts: list[str] = []
    for name, value in taken.items():
        own = text.named(f"of_{name}", value)
        write(f"{own} = tl.where(is_chosen, {own}, 0.0)")
        parts.append(own)
    if "s" in taken:
        assert spec.softmax is not None
        of_before = _through_softmax(text, "softmax", inputs["s"], parts.pop())
        grads = text.gradient(spec.before, layout.inputs, inputs, of_before, ("x",))
        parts += [text.emitter.cast(value, FP32).text for value in grads.values()]
    result = text.emitter.cast(Value(" + ".join(parts), FP32), layout.logits)
    write(f"at = row64 * {layout.experts} + expert[None, :]")
    write(f"tl.store(dlogits + at, {result.text}, mask=known)")
    arguments = [
        Argument("grad", pointer(spec.dtype), "tk"),
        Argument("logits", pointer(layout.logits), "te"), Argument("indices", pointer(torch.int64)),
        Argument("dlogits", pointer(layout.logits)),
    ]  # fmt: skip
    about = "The gradient of the logits of each token."
    return text.kernel("router_backward_kernel", about, arguments, origin)


def _summed(text: Text, name: str, found: Mapping[str, Value]) -> str:
    """What `g` gets, its part in the sum included; zero for experts that were not chosen."""
    text.named(f"of_{name}", found["g"])
    text.write(f"of_{name} = tl.where(is_chosen, of_{name}, 0.0)")
    if "t" in found:
        text.named(f"of_{name}_sum", found["t"])
        shares = f"tl.sum(tl.where(is_chosen, of_{name}_sum, 0.0), 1)[:, None]"
        text.write(f"of_{name} = tl.where(is_chosen, of_{name} + {shares}, 0.0)")
    return f"of_{name}"


def _through_softmax(text: Text, name: str, result: Value, grad: str) -> str:
    """The gradient of what went into a softmax over a row."""
    value = text.named(f"{name}_value", result)
    text.write(f"{name}_share = tl.sum({value} * {grad}, 1)[:, None]")
    text.write(f"of_{name} = {value} * ({grad} - {name}_share)")
    return f"of_{name}"


def facts(layout: Layout) -> list[str]:
    """What the kernels of a layout compute."""
    spec = layout.spec
    found = [f"{spec.choices} of {layout.experts} experts; logits: {layout.logits}"]
    if spec.softmax is not None:
        found.append(f"s = softmax({spec.before}), {spec.softmax}")
    found.append(f"compared = {spec.compared}")
    if spec.groups is not None:
        of = spec.groups
        found.append(f"groups: {of.kept} of {of.count}, by the best {of.best}; others {of.fill}")
    found.append(f"g = {spec.taken}")
    if spec.top_softmax is not None:
        found.append(f"g = softmax(g) over choices, {spec.top_softmax}")
    if spec.total is not None:
        found.append(f"t = sum of g over choices, {spec.total}")
    return [*found, f"weights = {spec.weights}, {spec.dtype}"]


TEXTS: dict[str, Callable[[Layout, str], Kernel]] = {
    "forward": forward_text, "backward": backward_text,
}  # fmt: skip


@lru_cache(maxsize=1024)
def build(layout: Layout, stage: str, origin: str = "") -> Kernel:
    """A kernel of a router: one of `TEXTS`."""
    # below autograd, where operators run, no derivative could be traced
    with eager_world(), differentiable():
        return TEXTS[stage](layout, origin)
