"""`python -m fuser doctor`: what is installed here, and what would work with it."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import FuserError
from ..options import Options
from ..torch_private import list_backends

OLDEST = (2, 11)
"""The oldest torch that is supported."""


@dataclass(frozen=True)
class Check:
    """One thing that works here, or does not.

    Attributes:
        needed: whether fuser is of no use without it on this machine.
    """

    name: str
    works: bool
    detail: str
    needed: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Facts about this machine and what follows from them."""

    facts: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything that is needed works."""
        return all(check.works for check in self.checks if check.needed)

    def __str__(self) -> str:
        lines = [f"{name:<16} {fact}" for name, fact in self.facts.items()]
        lines.append("")
        for check in self.checks:
            mark = "works" if check.works else "MISSING" if check.needed else "no"
            lines.append(f"{mark:<8} {check.name}: {check.detail}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """`{schema: 1, healthy, facts: {name: str}, checks: [{name, works, detail, needed}]}`."""
        checks = [dict(vars(check)) for check in self.checks]
        return {"schema": 1, "healthy": self.healthy, "facts": self.facts, "checks": checks}


def examine() -> Diagnosis:
    """Look at this machine; nothing is compiled and no device is initialised for long."""
    compiler = _compiler()
    facts = {
        "fuser": _version("torch-fuser"),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "device": _device(),
        "threads": str(torch.get_num_threads()),
        "compiler": compiler or "none found",
        "inductor cache": _inductor_cache(),
        "triton cache": os.environ.get("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache")),
        "inner backends": ", ".join(list_backends()),
    }
    settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("FUSER_")]
    facts["environment"] = " ".join(settings) or "no FUSER_ variable is set"
    return Diagnosis(facts, tuple(_checks(compiler)))


def _checks(compiler: str) -> Iterator[Check]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    old = f"torch {torch.__version__}, needs {OLDEST[0]}.{OLDEST[1]} or later"
    yield Check("torch", version >= OLDEST, old, needed=True)
    found = "fuser" in list_backends(exclude_tags=())
    how = "found" if found else "not found: install the distribution, or import fuser.backend"
    yield Check('torch.compile(backend="fuser")', found, f"entry point {how}", needed=True)
    yield _options()
    hint = compiler or "no C++ compiler: install g++ or set CXX; on CPU use fuser.inner=aot_eager"
    yield Check("Inductor on CPU", bool(compiler), hint, needed=not torch.cuda.is_available())
    triton = _version("triton")
    gpu = torch.cuda.is_available()
    missing = "triton is not installed" if triton == "not installed" else "no GPU is visible"
    here = gpu and triton != "not installed"
    yield Check("Triton kernels", here, "on this GPU" if here else missing)
    interpreter = os.environ.get("TRITON_INTERPRET") == "1"
    detail = "on: kernels run in Python" if interpreter else "off (TRITON_INTERPRET is not 1)"
    yield Check("Triton interpreter", interpreter, detail)
    cache = _inductor_cache()
    writable = _writable(Path(cache))
    yield Check("caches", writable, cache if writable else f"cannot write to {cache}", needed=True)


def _options() -> Check:
    """Whether every `FUSER_` variable is one, and has a value that its option takes."""
    try:
        with warnings.catch_warnings(record=True) as strange:
            warnings.simplefilter("always")
            Options.parse()
    except FuserError as error:
        return Check("options", False, str(error), needed=True)
    if strange:
        return Check("options", False, str(strange[0].message))
    return Check("options", True, "every FUSER_ variable is understood", needed=True)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    major, minor = torch.cuda.get_device_capability()
    return f"{', '.join(names)} (compute capability {major}.{minor})"


def _compiler() -> str:
    """The C++ compiler that Inductor would find: CXX, else g++ or clang++ on the path."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl"):
        path = shutil.which(name) if name else None
        if path:
            return path
    return ""


def _inductor_cache() -> str:
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return given or str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")


def _writable(folder: Path) -> bool:
    existing = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    return os.access(existing, os.W_OK)
