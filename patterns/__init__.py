"""What to look for. Each family registers its patterns through the public API."""

from . import attention

__all__ = ["attention"]
