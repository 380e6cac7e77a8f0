"""fuser: a torch.compile backend that finds, proves and fuses attention, experts and norm chains.

    torch.compile(model, backend="fuser")
"""

from __future__ import annotations

__version__ = "0.1.0"
