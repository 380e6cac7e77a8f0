"""Candidates for one region, each compiled and timed; the region as it is is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from . import measure
from .errors import first_sentence
from .lowering import Emission
from .rehearsal import Rehearsal
from .standing import Unrehearsable

INNER = "the inner backend"
"""The candidate that leaves the region as it is."""


@dataclass(frozen=True)
class Contest:
    """The candidates for one region.

    Attributes:
        emissions: one for each call, by the name of the lowering that makes them all.
        forced: whether the region as it is is no candidate.
    """

    rehearsal: Rehearsal
    device: torch.device
    emissions: Mapping[str, Sequence[Emission]]
    forced: bool

    def _key(self) -> dict[str, Any]:
        """What decides which candidate is fastest; sizes by powers of two."""
        rehearsal = self.rehearsal
        return {
            "question": "which lowering",
            **measure.environment(self.device),
            "specs": [call.spec.to_text() for call in rehearsal.match.calls],
            "inputs": rehearsal.described(),
            "training": rehearsal.training,
            "autocast": str(rehearsal.autocast),
            "candidates": [INNER, *self.emissions][self.forced :],
        }

    def times(self) -> dict[str, float | str]:
        """Milliseconds of every candidate, from memory or measured now, or why there are none.

        Raises:
            Unrehearsable: nothing could be measured, which has been told before.
            Exception: nothing can be measured; in strict mode, what any candidate raises.
        """
        key = self._key()
        known = measure.recall(key)
        if not isinstance(known, dict) or not set(known) <= set(key["candidates"]):
            measure.remember(key, {}, on_disk=False)
            known = self._described(self._measure())
            complete = not any(isinstance(found, str) for found in known.values())
            measure.remember(key, known, on_disk=complete)
        elif not any(isinstance(found, float) for found in known.values()):
            raise Unrehearsable("that failed before")
        return known

    def _described(self, measured: measure.Times) -> dict[str, float | str]:
        failures = [found for found in measured.values() if isinstance(found, Exception)]
        if failures and (measure.is_strict() or len(failures) == len(measured)):
            raise failures[0]
        return {
            name: first_sentence(found) if isinstance(found, Exception) else found
            for name, found in measured.items()
        }

    def _measure(self) -> measure.Times:
        rehearsal = self.rehearsal
        modules: dict[str, Any] = {} if self.forced else {INNER: rehearsal.original()}
        for name, emissions in self.emissions.items():
            try:
                modules[name] = rehearsal.replaced(emissions)
            except Exception as error:
                modules[name] = error
        with measure.undisturbed(self.device):
            operands = rehearsal.operands()

            def make(module: Any) -> measure.Run:
                if isinstance(module, Exception):
                    raise module
                return rehearsal.run(module, operands)

            makers: dict[str, Callable[[], measure.Run]] = {
                name: partial(make, module) for name, module in modules.items()
            }
            return measure.compare(makers, self.device)
