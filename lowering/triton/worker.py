"""A process that compiles kernels: pickled (kernel, arch) on standard input, outcomes on output.

Started by `pool`. Whatever compilers print goes elsewhere: triton prints the whole PTX of a kernel
that ptxas rejects.
"""

from __future__ import annotations

import os
import pickle
import sys

from .aot import Failure, Resources, compile_kernel
from .kernel import Kernel


def serve() -> None:
    """Answers until there are no more requests."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while True:
        try:
            kernel, arch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_outcome(kernel, arch), answers)
        answers.flush()


def _outcome(kernel: Kernel, arch: str) -> Resources | Failure:
    try:
        return compile_kernel(kernel, arch)
    except Exception as error:
        return Failure(kernel.name, arch, f"{type(error).__name__}: {error}".strip())


if __name__ == "__main__":
    serve()
