"""Reports: renderers of the record of a compile, and what collects one.

explain   compile once, in isolation (`scope`), and return a `Report`; `breaks` words graph breaks
report    `Report`: counts, expectations, JSON
text      the report as a diff; `fold` makes one of equal layers; `source` finds the user's lines
page      the report as an HTML file
debug     reports while compiling, to the log or a directory
doctor    what is installed on this machine, and what would work
"""
