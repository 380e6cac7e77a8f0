"""Mixture of experts.

mixture     the pattern: where weighted rows are added up
loop        the pattern: experts that write to the rows of their tokens, one after the other
writes      what is written to, and when
selection   which tokens an expert is given
masks       which expert that is
rows        from there to rows and their weights
branches    experts that are written out one after the other
expert      from rows through one expert to tokens
products    rows times a matrix of the expert, in every spelling
space       which token and which expert a row is of
routing     whose weights are zero whatever the numbers are
local       experts whose tokens were chosen elsewhere: told, and left
"""

from . import local, loop, mixture  # register their patterns

__all__ = ["local", "loop", "mixture"]
