"""What a normalisation is, with what is pointwise around it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from string import ascii_lowercase

import torch

from ..graph.derivative import read_by_gradient
from ..graph.program import Program
from .names import name_of

PAIR = ("a", "b")
"""Members of a pair, as names of what programs read end."""
MEMBERS = (*PAIR, "c", "d", "e", "f", "g", "h")
"""Those of all sections, pair by pair."""


@dataclass(frozen=True)
class NormSpec:
    """A normalisation, and what is pointwise before and after it.

        x    = before(c_0, c_1, ...)
        mean = Σ x / n  where it is `centred`, else 0
        v    = Σ (x - mean)² / n,  or  Σ (x - mean)²  where it is `summed`
        r    = 1 / sqrt(v + eps),  or  1 / max(sqrt(v), eps)  where eps is a `floor`
        y_i  = after_i((x - mean) r, c_0, c_1, ...)

    Sums run over the last `inner` dimensions, of n elements. Operands: `c_j`, all of one rank,
    broadcast against each other to the shape of x, which is that of the results: y_0, y_1, ... and,
    where it is `kept`, x.

    Where it is `paired`, as for a rotary embedding, tensors have one dimension more, the last: the
    two members of a pair. Sums run over both, and what comes after reads both:

        y_i[..., 0] = after_2i(na, nb, c_ja, c_jb, c_k, ...),   y_i[..., 1] = after_2i+1(...)

    with c_k for an operand whose last dimension has one element. Where pairs are those of several
    `sections` of a row, as where a part of each head is rotated and the rest is not, the dimension
    before the last one counts sections, and members go on with c, d, ...: there are as many
    programs for each result. An operand with one element in that dimension has the same two
    members, a and b, in all sections. Where it has sections and is not `paired`, a section has one
    member. Where it is `bare`, nothing is
    normalised, and n is x: pairs, or a largest value, are all that there is.

    Where there is a `peak`, what comes after may read the largest value of it in each row, as a
    quantisation does:

        p = max peak(n, c_0, c_1, ...)

    Where there are `groups`, the first so many of the `inner` dimensions count groups of a row,
    each of which has a largest value of its own. Results that are numbered in `by_row` have one
    number for each row or group, y_i = after_i(p).
    """

    captured: int
    inner: int
    before: Program
    after: tuple[Program, ...]
    """Their input `n` is what was normalised."""
    centred: bool
    summed: bool
    floor: bool
    eps: float
    norm_dtype: torch.dtype
    """To which what was normalised is rounded."""
    dtypes: tuple[torch.dtype, ...]
    """Of y_0, y_1, ..."""
    kept: torch.dtype | None = None
    """Of x, where it is a result."""
    paired: bool = False
    bare: bool = False
    peak: Program | None = None
    by_row: tuple[int, ...] = ()
    groups: int = 0
    sections: int = 1

    @property
    def results(self) -> list[torch.dtype]:
        """Dtypes of all of them."""
        return [*self.dtypes, *([] if self.kept is None else [self.kept])]

    @property
    def single(self) -> int:
        """How many of the last dimensions a largest value is taken over."""
        return self.inner - self.groups

    @property
    def members(self) -> tuple[str, ...]:
        """What a name ends in that stands for one element of a pair, if there are pairs."""
        return MEMBERS[: prod(self.parts)] if self.parts else ("",)

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the dimensions that members have, after those of rows and along them."""
        return (*([self.sections] if self.sections > 1 else []), *([2] if self.paired else []))

    @property
    def apart(self) -> int:
        """How many dimensions members have."""
        return len(self.parts)

    def own(self, member: str) -> str:
        """The same member of the first section."""
        return PAIR[MEMBERS.index(member) % 2] if self.paired else member

    def programs(self, result: int) -> tuple[Program, ...]:
        """Of one result, for each member."""
        each = len(self.members)
        return self.after[each * result : each * (result + 1)]

    def read_by_gradient(self, wanted: Collection[int]) -> frozenset[int]:
        """The operands that gradients of the `wanted` ones are computed from, or may be; others
        need not be kept for the backward.

        Of a rotation that is nothing but cosines and sines. What is normalised is read by its own
        gradient, since its statistics alone are kept.
        """
        return _read_by_gradient(self, frozenset(wanted))

    def to_text(self) -> str:
        fields = {
            **{n: getattr(self, n) for n in ("captured", "inner", "centred", "summed", "floor")},
            **({} if self.kept is None else {"kept": name_of(self.kept)}),
            **{name: True for name in ("paired", "bare") if getattr(self, name)},
            **({"peak": self.peak.text, "by_row": self.by_row} if self.peak else {}),
            **({"groups": self.groups} if self.groups else {}),
            **({"sections": self.sections} if self.sections > 1 else {}),
            "before": self.before.text,
            "after": [program.text for program in self.after],
            "eps": self.eps.hex(),
            "norm_dtype": name_of(self.norm_dtype),
            "dtypes": [name_of(dtype) for dtype in self.dtypes],
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> NormSpec:
        data = json.loads(text)
        data["eps"] = float.fromhex(data["eps"])
        for key in ("norm_dtype", "kept"):
            if key in data:
                data[key] = getattr(torch, data[key])
        data["dtypes"] = tuple(getattr(torch, name) for name in data["dtypes"])
        data["before"] = Program(data["before"])
        if "peak" in data:
            data["peak"], data["by_row"] = Program(data["peak"]), tuple(data["by_row"])
        data["after"] = tuple(map(Program, data["after"]))
        return NormSpec(**data)


def operand_of(name: str) -> int:
    """The number of an operand, by the name of it or of a member of its pairs."""
    return int(name.strip(ascii_lowercase))


@lru_cache(maxsize=1024)
def _read_by_gradient(spec: NormSpec, wanted: frozenset[int]) -> frozenset[int]:
    def named(program: Program) -> list[str]:
        own = [n for n in program.inputs if n.startswith("c")]
        return [n for n in own if operand_of(n) in wanted]

    if spec.peak is not None:
        return frozenset(range(spec.captured))
    before, read = named(spec.before), set[str]()
    for program in spec.after:
        rows = [n for n in program.inputs if n.startswith("n")] if before else []
        read |= read_by_gradient(program, [*named(program), *rows])
    normalised = before and not spec.bare
    if normalised or any(name.startswith("n") for name in read):
        read.update(spec.before.inputs)
    read |= read_by_gradient(spec.before, before)
    return frozenset(operand_of(name) for name in read if name.startswith("c"))
