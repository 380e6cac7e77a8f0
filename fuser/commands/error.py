"""What a command says when it cannot be carried out."""

from __future__ import annotations


class CommandError(Exception):
    """What is wrong with the command, in one sentence."""
