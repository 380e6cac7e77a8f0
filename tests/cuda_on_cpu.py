"""A CUDA kernel's very text on the CPU, each of its threads a thread, for its numbers.

It knows what simple kernels use: indices, `__shared__` and `__syncthreads()`; no warps.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

COMPILERS = ("g++", "clang++")
_BEFORE = """
#include <barrier>
#include <thread>
#include <vector>
struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;
static std::barrier<>* together;
static void __syncthreads() { together->arrive_and_wait(); }
#define __global__
#define __shared__ static
"""
_AFTER = """
extern "C" void launch(const int* grid, const int* block, {parameters}) {{
    for (int block_y = 0; block_y < grid[1]; block_y++)
    for (int block_x = 0; block_x < grid[0]; block_x++) {{
        std::barrier<> all(block[0]);
        together = &all;
        std::vector<std::thread> threads;
        for (int thread_x = 0; thread_x < block[0]; thread_x++)
            threads.emplace_back([=] {{
                threadIdx = {{thread_x, 0, 0}};
                blockIdx = {{block_x, block_y, 0}};
                {name}({arguments});
            }});
        for (auto& each : threads) each.join();
    }}
}}
"""


def run(
    source: str,
    name: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    args: Sequence[Tensor | int],
    folder: Path,
) -> None:
    """Compiles a kernel and runs it, as what `torch.cuda._compile_kernel` returns does.

    Args:
        source, name: the text, and the name of the kernel, whose parameters follow it.
        grid, block: sizes, of which a block has one dimension and a grid two.
        args: contiguous tensors on the CPU, and whole numbers.
        folder: for files.
    """
    assert block[1:] == (1, 1)
    assert grid[2] == 1
    written = source.partition(f"{name}(")[2].partition(")")[0]
    named = ", ".join(parameter.split()[-1].lstrip("*") for parameter in written.split(","))
    text = _BEFORE + source + _AFTER.format(parameters=written, name=name, arguments=named)
    (folder / "kernel.cpp").write_text(text)
    compiler = next(found for each in COMPILERS if (found := shutil.which(each)))
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", "kernel.so"]
    subprocess.run([*command, "kernel.cpp"], cwd=folder, check=True)
    converted = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in args]
    sizes = [(ctypes.c_int * 3)(*each) for each in (grid, block)]
    ctypes.CDLL(str(folder / "kernel.so")).launch(*sizes, *converted)
