"""What all lowerings to generated kernels share: where they run, and how they refuse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call

from ..base import Context, Emission, Lowering, Refusal
from .kernel import NoKernel
from .launch import INTERPRETED_WORK, unavailable


class GeneratedLowering(Lowering):
    """Kernels that are printed for a spec, on a GPU or in Triton's interpreter.

    Attributes:
        why: what speaks for them.
    """

    name: ClassVar[str] = "triton"
    kind: ClassVar[str] = "triton"
    why: ClassVar[str]

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        reason = unavailable(context.device)
        if reason:
            return Refusal(reason)
        try:
            return self.offer(call, context)
        except NoKernel as error:
            return Refusal(str(error))

    @abstractmethod
    def offer(self, call: Call, context: Context) -> Emission:
        """The replacement, on a device that has kernels.

        Raises:
            NoKernel: there are none for this call.
        """

    def emission(
        self,
        emit: Callable[[Builder], Node | Sequence[Node]],
        context: Context,
        slower: str,
        work: float = 1.0,
    ) -> Emission:
        """What is put there; see `Emission`. The interpreter is only for checking numbers."""
        if context.device.type == "cpu":
            slower = "the interpreter is for checking numbers"
            return Emission(emit, "triton, interpreted", self.why, slower, {}, INTERPRETED_WORK)
        return Emission(emit, "triton", self.why, slower, {}, work)


@contextmanager
def printing() -> Generator[None]:
    """Within the block kernels are printed, to see whether there are any.

    Raises:
        NoKernel: also where autograd has no formula for what a program does.
    """
    try:
        yield
    except RuntimeError as error:
        raise NoKernel(str(error)) from error
