"""Patterns given as two functions.

arguments   what the two functions take, and what is given to them
trace       record the functions, with `tracer`
form        operators read so that spellings compare equal, with `bind` for those without a table
equal       scalars that are equal; `rounding`: spellings that are equal only up to rounding
values      einsum and linear, opened
solve       find a template in a graph: `pair` opens one operator into `goals`, `equivalent` reads
            it as another one, `verify` runs what was bound
insert      put the replacement there
"""
