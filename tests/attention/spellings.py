"""All the spellings of attention that must be rewritten, gathered from their modules.

spellings_forms        contraction forms, layouts, projections, rotary positions
spellings_scales       scale placements, soft caps, pointwise shapes
spellings_masks        masks, however they reach the scores
spellings_biases       additive position biases
spellings_softmax      casts, dropout without effect, sinks, softmax by hand
spellings_heads        shared heads, caches, latent keys, differences of attentions
spellings_composites   one-node forms and torch's modules
"""

from __future__ import annotations

from .cases import Spelling
from .spellings_biases import BIASES
from .spellings_composites import COMPOSITES
from .spellings_forms import FORMS
from .spellings_heads import HEADS
from .spellings_masks import MASKS
from .spellings_scales import SCALES
from .spellings_softmax import SOFTMAXES

SPELLINGS: tuple[Spelling, ...] = (
    *FORMS, *SCALES, *MASKS, *BIASES, *SOFTMAXES, *HEADS, *COMPOSITES,
)  # fmt: skip

__all__ = ["SPELLINGS", "Spelling"]
