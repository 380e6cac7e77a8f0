"""Errors that are caught because what cannot be followed, or computed, counts as unknown.

Masks, biases and constants are read by trying, on whatever a user wrote. `TORCH_LOGS=+fuser` shows
what was raised on the way (see `outlets`); an error that can only be ours fails the tests.
"""

from __future__ import annotations

import logging

from .errors import FuserError, modules_passed

_LOGGER = logging.getLogger(__name__)
_BUGS = (AttributeError, NameError, ImportError, AssertionError, KeyError)
"""What code raises that is wrong. What operators raise where they do not fit is none of it."""

raise_ours = False
"""Whether our own bugs are raised. The tests turn it on; a user's program must not stop at them."""


def swallow(error: Exception) -> None:
    """Notes an error that ends here, in the log.

    Raises:
        Exception: the error itself, where it is a bug of ours and the tests are running.
    """
    if raise_ours and is_ours(error):
        raise error
    _LOGGER.debug("counted as unknown: %s", error, exc_info=error)


def is_ours(error: Exception) -> bool:
    """Whether it can only be a bug of ours: of a kind that no operator raises in our own code."""
    if not isinstance(error, _BUGS) or isinstance(error, FuserError):
        return False
    passed = modules_passed(error)
    return bool(passed) and passed[-1].partition(".")[0] == "fuser"
