"""Commands of the command line, a module each: it adds its parser, and runs.

explain   a model's report as text, JSON or a page; `target` finds the model
verify    whether regions are as near to float64 as the model itself
bench     a model in eager, by Inductor and by fuser
kernels   what generated kernels take of a GPU
profile   what regions cost, or would cost on another device
doctor    what is installed here
"""
