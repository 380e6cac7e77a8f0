"""Patterns given as two functions: `trace` records them, `form` reads operators so that spellings
compare equal, `values` opens einsum and linear, `solve` finds a template in a graph, `insert` puts
the replacement there."""
