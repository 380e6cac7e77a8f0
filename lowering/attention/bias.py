"""Everything that a program adds to the scores, sorted into what is known and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

from fuser.graph.ops import value as example_of
from fuser.pattern import Call

from .affine import Affine, Keep, Term
from .banded import fits
from .evaluate import Evaluator, captured_by, parts
from .mask import MaskFacts, MaskKind, classify, keep_of
from .predicate import PredicateReader
from .relative import is_relative

MODERATE = 4096.0
"""Largest known bias beside which a query certainly keeps its keys. Up to here the flash backward
is as near to fp64 as at 32 (docs/decisions.md): eager rounds score plus bias just as coarsely."""

LOWEST = torch.finfo(torch.float32).min
"""What kernels are given for a finite number that a mask fills in."""


class Rows(Enum):
    """What is proved about queries all of whose keys are masked."""

    KEPT = "every query keeps a key"
    FINITE = "a query without keys gets finite scores"
    UNKNOWN = "a query may have nothing but -inf"


@dataclass(frozen=True)
class Bias:
    """What a kernel has to be given.

    Attributes:
        terms, keeps: to be added up into one bias tensor.
        mask: structure of the known masks; None where there are none.
        causal: the known masks are causal and not part of `keeps` and `terms` any more.
        rows: whether queries without keys can occur.
    """

    terms: tuple[Term, ...]
    keeps: tuple[Keep, ...]
    mask: MaskFacts | None
    causal: bool
    rows: Rows
    has_unknown: bool
    filled: bool
    """All masks overwrite scores (masked_fill, where); none is added."""
    band: bool
    """The known masks are a band that `banded` covers, and not part of `keeps` and `terms`."""
    added_after: bool
    """A term is added to scores that were masked before: two finite masks may make -inf."""
    added: bool
    """A part that is added may be as low as a mask."""
    relative: bool
    """What is added and kept depends on positions only through their distance."""
    masked: tuple[Term | Keep, ...]
    """What `mask` tells the structure of."""
    ties: bool
    """A score that is as low as a mask gets half of its gradient."""

    @property
    def empty(self) -> bool:
        return not self.terms and not self.keeps

    @property
    def uneven(self) -> bool:
        """Whether a query without keys shows which of its low scores is the highest: the kernels
        are given one finite number, the lowest there is, for all that masks fill in."""
        finite = {k.fill for k in (*self.masked, *self.keeps) if isinstance(k, Keep)} - {-torch.inf}
        lower = self.added and bool(finite - {LOWEST})
        return self.rows is not Rows.KEPT and (len(finite) > 1 or lower)

    @property
    def overwriting(self) -> tuple[Keep, ...]:
        """The masks that overwrite scores, where these are not all that is low in the bias."""
        found = [x for x in (*self.masked, *self.keeps) if isinstance(x, Keep)]
        return tuple(dict.fromkeys(found)) if self.filled and self.added else ()

    def describe(self) -> str:
        known = str(self.mask) if self.mask is not None else ""
        data = "from data" if any(self.keeps) and self.has_unknown else ""
        return ", ".join(x for x in (known, data) if x) or "none"


def analyse(
    call: Call, form: Affine, evaluator: Evaluator, *, bands: bool = False, splits: bool = False
) -> Bias:
    """Evaluate what is known, classify the masks in it, and prove what can be about rows.

    Args:
        call: what is computed.
        form: its score program.
        evaluator: of its operands.
        bands: a band of keys may be left to the kernel.
        splits: the kernel takes a causal mask beside a bias, and looks for rows without a key.
    """
    masks: list[Tensor] = []
    symbolic = PredicateReader(call, evaluator.folder)
    conditions: list[Boolean] = []
    known_bias: list[Tensor] = []
    unknown: list[Term | Keep] = []
    general: list[Term | Keep] = []
    masked: list[Term | Keep] = []
    minus_infinity = False
    for item in (*form.terms, *form.keeps):
        found = evaluator.value(item)
        if isinstance(item, Keep):
            minus_infinity |= item.fill == -torch.inf and form.floor == -torch.inf
        predicate = symbolic.keep(item) if found is None else None
        if predicate is not None:
            conditions.append(predicate.condition)
            masked.append(item)
            minus_infinity |= predicate.infinite
            continue
        if found is None:
            unknown.append(item)
            general.append(item)
            minus_infinity |= isinstance(item, Term) and form.floor == -torch.inf
            continue
        keep = found if isinstance(item, Keep) else keep_of(found)
        if keep is None:
            known_bias.append(found)
            general.append(item)
            minus_infinity |= bool((found == -torch.inf).any())
        else:
            masks.append(keep)
            masked.append(item)
            minus_infinity |= isinstance(item, Term) and bool((found == -torch.inf).any())
    lowering = [t for t in (*masked, *unknown) if isinstance(t, Term)]
    minus_infinity |= len(lowering) > 1 and form.floor == -torch.inf
    facts = _classify(call, masks)
    if conditions:
        facts = _joined(facts, symbolic.classify(conditions))
    moderate = all(bool((b.abs() <= MODERATE).all()) for b in known_bias)
    if not unknown and moderate and (facts is None or facts.full_rows):
        proved = Rows.KEPT
    else:
        proved = Rows.UNKNOWN if minus_infinity else Rows.FINITE
    # A kernel's own causal mask is -inf. Beside another mask that may take a query's last key, the
    # original's finite number would still spread over the later keys: the two stay one bias, unless
    # the original fills in -inf as well. One row of numbers by distance is worth more than either.
    causal = facts is not None and facts.kind is MaskKind.CAUSAL
    if causal and general and proved is not Rows.KEPT:
        infinite = form.floor == -torch.inf and all(_fills_infinity(item) for item in masked)
        causal = (
            splits and infinite and not is_relative(call, (*general, *masked), evaluator.folder)
        )
    dropped = causal or (facts is not None and facts.kind is MaskKind.NONE)
    band = bands and facts is not None and not general and fits(facts, *_lengths(call))
    dropped |= band
    kept_items = general if dropped else general + masked
    relative = not causal and bool(kept_items)
    return Bias(
        tuple(t for t in kept_items if isinstance(t, Term)),
        tuple(k for k in kept_items if isinstance(k, Keep)),
        facts,
        causal,
        proved,
        bool(unknown),
        bool(form.keeps),
        band,
        form.added_after,
        bool(lowering),
        relative and is_relative(call, kept_items, evaluator.folder),
        tuple(masked),
        form.ties,
    )


def _fills_infinity(item: Term | Keep) -> bool:
    return isinstance(item, Keep) and item.fill == -torch.inf


def _classify(call: Call, masks: list[Tensor]) -> MaskFacts | None:
    if not masks:
        return None
    keep = masks[0]
    for other in masks[1:]:
        keep = keep & other
    keep = keep.reshape((1,) * (4 - keep.ndim) + tuple(keep.shape))
    sizes = [_size(call, name) for name in ("q0", "k0")]
    rows = sizes[0] if keep.shape[-2] == 1 else keep.shape[-2]
    keys = sizes[1] if keep.shape[-1] == 1 else keep.shape[-1]
    if not isinstance(rows, int) or not isinstance(keys, int):
        return MaskFacts(MaskKind.OTHER, bool(keep.any(-1).all()))
    return classify(keep, rows, keys)


def _lengths(call: Call) -> tuple[Any, Any]:
    return _size(call, "q0"), _size(call, "k0")


def _joined(known: MaskFacts | None, symbolic: MaskFacts) -> MaskFacts:
    """Structure of masks that were computed together with masks that follow from sizes."""
    if known is None or known.kind is MaskKind.NONE:
        return symbolic
    if symbolic.kind is MaskKind.NONE:
        return known
    twice = known == symbolic and known.kind is MaskKind.CAUSAL
    return known if twice else MaskFacts(MaskKind.OTHER, False)


def _size(call: Call, name: str) -> Any:
    """Canonical length of q or k: the product of its row or key axes."""
    total: Any = 1
    for axis in call.operands[name].target[2]:
        for leaf in axis.resolve():
            total = total * leaf.size
    return total


def reads_gradient(call: Call, bias: Bias) -> bool:
    """Whether a part of the bias wants a gradient, which no CPU flash kernel gives."""
    return any(
        isinstance(example := example_of(operand.node), Tensor) and example.requires_grad
        for item in (*bias.terms, *bias.keeps)
        for part in parts(item)
        for operand in captured_by(call, part)
    )
