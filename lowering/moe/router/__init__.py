"""Routers: the operators that a match becomes.

rows        a router in plain PyTorch
reference   `fuser::router`, which runs that: the oracle
"""

from . import reference  # registers its lowering

__all__ = ["reference"]
