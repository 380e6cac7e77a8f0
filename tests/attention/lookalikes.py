"""All programs that resemble attention and must keep their outputs and gradients.

    lookalikes_axes           contractions, softmaxes and broadcasts over the wrong axis
    lookalikes_escapes        intermediates used elsewhere, written to, detached
    lookalikes_programs       scores mixed over keys or heads, read back, or random; odd slices
    lookalikes_probabilities  changed probabilities, other contractions, no softmax
    lookalikes_numbers        rows without a key, float64, complex and integer tensors

A case says by its `reason` whether it must be declined, and in which words. The reason is empty
where a faithful rewrite is as good as a decline: attention over other axes, programs on the
probabilities, rows without a key. There the numbers decide, NaN and gradients included.
Cases with `random` can be compared by their statistics only.
"""

from __future__ import annotations

from .cases import LookAlike
from .lookalikes_axes import AXES
from .lookalikes_escapes import ESCAPES
from .lookalikes_numbers import NUMBERS
from .lookalikes_probabilities import PROBABILITIES
from .lookalikes_programs import PROGRAMS

LOOKALIKES: tuple[LookAlike, ...] = (*AXES, *ESCAPES, *PROGRAMS, *PROBABILITIES, *NUMBERS)

__all__ = ["LOOKALIKES", "LookAlike"]
