"""Profiles: what the regions of a model cost, beside what they could cost at the least.

work         floating-point operations and bytes, and the rates of a device
regions      the work of a region, from its spec
kept         the work of what is left to the inner backend, from its ATen graph
machine      rates of known devices, and of this one, measured
cutting      a graph without its regions
checkpoints  bodies of activation checkpoints
parts        a graph taken apart: its regions, and what is left of it
timing       parts and whole steps, measured in turn
predict      generated kernels of regions, compiled ahead of time
profile      `fuser.profile`
result       what it returns
table        that as text
picture      that as a roofline
"""
