"""How specs write what JSON does not have."""

from __future__ import annotations

import torch


def name_of(dtype: torch.dtype) -> str:
    """A dtype as an attribute of `torch`."""
    return str(dtype).removeprefix("torch.")
