"""Benchmarks of `torch.compile(..., backend="fuser")` against eager, Inductor and libraries.

python -m benchmarks attention moe loss compile models [--device cuda] [--quick] [--only NAME ...]

__main__.py    the command line
devices.py     where it runs: how a call is timed and its memory weighed on a CPU and on a GPU
providers.py   who is compared: eager, inductor, fuser, and ports to SDPA and FlexAttention
cases.py       what a workload is; its fp64 twin
runner.py      how it is measured: compile, check against fp64, interleaved rounds, memory
figures.py     what was measured, and the arithmetic over its rounds
limits.py      the least that a device could take
records.py     what is kept: Liger's CSV columns and a description of the machine
table.py       what is printed
targets.py     what the figures are held against
attention.py   ┐
moe.py         ├ one family of workloads each
compile.py     │
models.py      ┘
attention_gpu.py, spellings_gpu.py, ports.py
               attention at the sizes of GPUs, as its authors and as libraries spell it
moe_gpu.py, spellings_moe.py, ports_moe.py
               the same of mixtures of experts, whose spellings are those on a CPU too
configs.py     how generated kernels are best cut: `python -m benchmarks.configs`, on a GPU
parallel.py    a process for each workload, which time one after the other: `--together`
results/       the CSV files of the runs that the documentation quotes
"""

import os

# Kineto otherwise writes a line to stderr whenever the profiler starts or stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
