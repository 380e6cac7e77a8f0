"""Which lowering replaces a region: by rule, or by measurement where the user asks for that.

By rule the one with the least expected work is taken, of equals the preferred one, and under the
policy `auto` none that is expected to lose against the inner backend. By measurement (see
`fuser.measure`) it is the fastest, and the region as it is, compiled by the inner backend, is a
candidate like the others. What else there was, and why it was not taken, is told in `Emission.why`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import measure
from .contest import INNER, Contest
from .events import Candidate
from .graph.fold import Folder
from .graph.view import GraphView
from .lowering import Context, Emission, Lowering, Refusal, candidates
from .options import LoweringChoice, Options, Policy
from .pattern import Call, Match
from .rehearsal import Rehearsal
from .standing import Unrehearsable

_FORCES = "(fuser.policy=always forces it)"


def choose(
    view: GraphView, match: Match, folder: Folder, context: Context, options: Options
) -> tuple[Emission, ...] | Refusal:
    """One emission for each call of a match, or why the region is left alone."""
    forced = options.policy is Policy.ALWAYS or options.lowering is not LoweringChoice.AUTO
    offers = [_Offers.of(call, context, options.lowering, forced) for call in match.calls]
    ruled = _by_rule(offers)
    if not context.autotune:
        return ruled
    try:
        return _by_measurement(view, match, folder, context, offers)
    except Unrehearsable as reason:
        return _noted(ruled, f"not measured: {reason}")
    except Exception as error:
        measure.failed("what is fastest for a region", error)
        return _noted(ruled, "not measured: that failed")


@dataclass(frozen=True)
class _Offers:
    """What the allowed lowerings answer for one call, in the order of preference.

    Attributes:
        wanted: their kind.
        forced: whether the inner backend is out of the question.
    """

    answers: tuple[tuple[Lowering, Emission | Refusal], ...]
    wanted: LoweringChoice
    forced: bool

    @staticmethod
    def of(call: Call, context: Context, wanted: LoweringChoice, forced: bool) -> _Offers:
        answers = tuple(
            (lowering, lowering.prepare(call, context))
            for lowering in candidates(call.spec)
            if wanted is LoweringChoice.AUTO or lowering.kind == wanted.value
        )
        return _Offers(answers, wanted, forced)

    def by_rule(self) -> Emission | Refusal:
        """The one with the least work; with why those before it, and those that could have been
        taken, were not."""
        reasons: list[str] = []
        before: list[str] = []
        paying: list[Emission] = []
        for lowering, answer in self.answers:
            against = self._against(answer)
            if against:
                reasons.append(f"{_name(lowering, answer)}: {against}")
            elif isinstance(answer, Emission):
                paying.append(answer)
                if _least(paying) is answer:
                    before = list(reasons)
        if not paying:
            none = f"no lowering of kind {self.wanted.value} exists"
            return Refusal("; ".join(reasons) or none, self._considered(None))
        best = _least(paying)
        beaten = [f"{e.name}: {_compared(e, best)}" for e in paying if e is not best]
        explained = _explained(best, best.why, [*before, *beaten])
        return replace(explained, candidates=self._considered(best))

    def _against(self, answer: Emission | Refusal) -> str:
        """Why a lowering is not to be taken, whatever others there are; empty where it may be."""
        if isinstance(answer, Refusal):
            return answer.reason
        return f"{answer.slower} {_FORCES}" if answer.slower and not self.forced else ""

    def _considered(self, best: Emission | None) -> tuple[Candidate, ...]:
        return tuple(self._judged(lowering, answer, best) for lowering, answer in self.answers)

    def _judged(
        self, lowering: Lowering, answer: Emission | Refusal, best: Emission | None
    ) -> Candidate:
        name, against = _name(lowering, answer), self._against(answer)
        if isinstance(answer, Refusal):
            return Candidate(name, against)
        if answer is best:
            return Candidate(name, answer.why, True, answer.work)
        verdict = against or (_compared(answer, best) if best else "")
        return Candidate(name, verdict, work=answer.work)

    def measurable(self) -> dict[str, Emission]:
        """Not the reference: that is the region itself, operator by operator."""
        return {
            lowering.name: answer
            for lowering, answer in self.answers
            if isinstance(answer, Emission) and lowering.kind != LoweringChoice.REFERENCE.value
        }

    def refused(self) -> list[tuple[str, str]]:
        """Names of lowerings that cannot take the call, and why."""
        return [(x.name, a.reason) for x, a in self.answers if isinstance(a, Refusal)]


def _least(emissions: Sequence[Emission]) -> Emission:
    return min(emissions, key=lambda emission: emission.work)


def _name(lowering: Lowering, answer: Emission | Refusal) -> str:
    return answer.name if isinstance(answer, Emission) else lowering.name


def _compared(emission: Emission, best: Emission) -> str:
    if emission.work == best.work:
        return "the same work"
    return f"{emission.work / best.work:.1f} times the work"


def _explained(emission: Emission, why: str, reasons: Sequence[str]) -> Emission:
    return replace(emission, why="; not ".join((why, *reasons)))


def _by_rule(offers: Sequence[_Offers]) -> tuple[Emission, ...] | Refusal:
    chosen: list[Emission] = []
    for offer in offers:
        found = offer.by_rule()
        if isinstance(found, Refusal):
            return found
        chosen.append(found)
    return tuple(chosen)


def _noted(ruled: tuple[Emission, ...] | Refusal, note: str) -> tuple[Emission, ...] | Refusal:
    if isinstance(ruled, Refusal):
        return replace(ruled, reason=f"{ruled.reason}; {note}")
    return tuple(replace(emission, why=f"{emission.why}; {note}") for emission in ruled)


def _by_measurement(
    view: GraphView,
    match: Match,
    folder: Folder,
    context: Context,
    offers: Sequence[_Offers],
) -> tuple[Emission, ...] | Refusal:
    """The fastest candidate; one lowering makes all calls of a match.

    Raises:
        Unrehearsable: there is no choice, or no way to run the region by itself.
        Exception: none could be measured; in strict mode, whatever a candidate raises.
    """
    each, forced = [offer.measurable() for offer in offers], offers[0].forced
    names = [name for name in each[0] if all(name in found for found in each)]
    if len(names) + (not forced) < 2:
        raise Unrehearsable("there is nothing to compare")
    emissions = {name: tuple(found[name] for found in each) for name in names}
    rehearsal = Rehearsal.of(view, match, folder, training=context.training)
    times = Contest(rehearsal, context.device, emissions, forced).times()
    spent = {name: found for name, found in times.items() if isinstance(found, float)}
    best = min(spent, key=lambda name: (spent[name], name != INNER))
    titles = {INNER: INNER, **{name: found[0].name for name, found in emissions.items()}}
    others = [f"{titles[n]}: {_said(found)}" for n, found in times.items() if n != best]
    where = f"measured on {measure.device_name(context.device)}"
    timed = tuple(_timed(titles[n], found, n == best) for n, found in times.items())
    considered = (*timed, *(Candidate(*refusal) for refusal in offers[0].refused()))
    refused = [f"{name}: {reason}" for name, reason in offers[0].refused()]
    if best == INNER:
        told = "; ".join([f"{INNER} takes {_said(spent[best])}", *others, *refused])
        return Refusal(f"{where}, {told} {_FORCES}", considered)
    why = f"{where}: {_said(spent[best])}"
    return tuple(
        replace(_explained(e, why, [*others, *refused]), candidates=considered)
        for e in emissions[best]
    )


def _timed(name: str, found: float | str, best: bool) -> Candidate:
    milliseconds = found if isinstance(found, float) else None
    verdict = "the fastest" if best else _said(found) if milliseconds is None else "not faster"
    return Candidate(name, verdict, best, milliseconds=milliseconds)


def _said(found: float | str) -> str:
    return f"{found:.3g} ms" if isinstance(found, float) else f"it fails: {found}"
