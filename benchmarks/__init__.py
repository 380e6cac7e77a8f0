"""Benchmarks of `torch.compile(..., backend="fuser")` against eager and Inductor.

python -m benchmarks attention compile models [--quick] [--only NAME ...]

__main__.py    the command line
providers.py   who is compared: eager, inductor, fuser, and a plain SDPA call as yardstick
runner.py      how it is measured: compile, check against fp64, interleaved rounds, memory
records.py     what is kept: Liger's CSV columns and a description of the machine
table.py       what is printed
attention.py   ┐
compile.py     ├ one family of workloads each
models.py      ┘
results/       the CSV files of the runs that the documentation quotes
"""

import os

# Kineto otherwise writes a line to stderr whenever the profiler starts or stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
