"""Routers: the operators that a match becomes.

rows        a router in plain PyTorch
reference   `fuser::router`, which runs that: the oracle
generated   `fuser::generated_router`: Triton kernels
layout      what a kernel is specialised on
text        the kernels' text, and `build` for both of them
catalogue   kernels by description, to be compiled ahead of time
lowering    when they are chosen
"""

from . import generated, lowering, reference  # register themselves

__all__ = ["generated", "lowering", "reference"]
