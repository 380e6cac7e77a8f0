"""What to look for. Each family registers its patterns through the public API."""

from . import attention, loss, moe, norm

__all__ = ["attention", "loss", "moe", "norm"]
