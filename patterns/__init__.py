"""What to look for. Each family registers its patterns through the public API."""

from . import activation, attention, loss, moe, norm

__all__ = ["activation", "attention", "loss", "moe", "norm"]
