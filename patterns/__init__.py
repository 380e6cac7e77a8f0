"""What to look for. Each family registers its patterns through the public API."""

from . import attention, moe, norm

__all__ = ["attention", "moe", "norm"]
