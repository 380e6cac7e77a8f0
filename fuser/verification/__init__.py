"""Verification: each rewritten region runs beside its original, on the first real inputs.

Dynamo gives a backend the inputs of the call for which it compiles. So a region is judged before it
is rewritten, and one that is wrong never gets into the graph; its original is there already.

regions   judge all planned rewrites of a graph, and keep those that may be made
observe   run a captured graph node by node, and read what its regions read
compare   run a region, its replacement and the original in fp64, and compare them
edges     how far a value moves when what it is made of is changed by a rounding
memory    what was taken back in this process
minify    smaller inputs that show a mismatch as well
script    a program that shows the mismatch by itself
verify    `fuser.verify`
"""
