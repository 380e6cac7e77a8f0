"""Which config of a generated kernel is the fastest, by measurement, where the user asks for that.

A stage of a region is timed once on random operands, by running it cut in every way that is tried;
the fastest is kept beside the other measurements (`fuser.measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch

from fuser import measure
from fuser.torch_private import kernels_launched

from .launch import Target

if TYPE_CHECKING:
    from dataclasses import Field


class AnyConfig(Protocol):
    """A dataclass that says how a kernel is cut."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=AnyConfig)


@dataclass(frozen=True)
class Question(Generic[C]):
    """Which config of a stage is the fastest.

    Attributes:
        about: all that the answer depends on, but for the device and versions; as JSON has it.
        make: makes what runs the stage, cut as `Tuner.lookup` says.
        configs: those that are tried, the rule's first, given what runs the stage.
    """

    about: Mapping[str, Any]
    make: Callable[[], measure.Run]
    configs: Callable[[measure.Run], Sequence[C]]


class Tuner(Generic[C]):
    """Answers for the kernels of one kind of region.

    Args:
        kind: of region, for a warning: `an attention`.
        config: the type of its configs.
    """

    def __init__(self, kind: str, config: type[C]) -> None:
        self._kind, self._type = kind, config
        self._trial: ContextVar[Mapping[str, C] | None] = ContextVar(f"trial {kind}", default=None)

    def lookup(
        self,
        stage: str,
        target: Target,
        device: torch.device,
        question: Callable[[], Question[C] | None],
    ) -> C | None:
        """The config that was measured to be the fastest, here or by another process, or is now.

        Args:
            stage: what the kernel is for.
            target: what the rule knows of the device.
            device: where it runs.
            question: is called where something is to be measured; None where that is impossible.

        Returns:
            None where the rule is to choose.
        """
        trial = self._trial.get()
        if trial is not None:
            return trial.get(stage)
        if target.arch == "interpreter" or not measure.is_wanted(device):
            return None
        asked = question()
        if asked is None:
            return None
        key = {
            "question": "which config",
            **measure.environment(device),
            **asked.about,
            "stage": stage,
        }
        found = measure.recall(key)
        if found is None or (found and self._read(found) is None):
            measure.remember(key, {}, on_disk=False)
            found = self._measured(asked, stage, device)
            measure.remember(key, found, on_disk=bool(found))
        return self._read(found)

    @contextmanager
    def trying(self, configs: Mapping[str, C]) -> Generator[None]:
        """Within the block, `lookup` answers with these, and the rule does for other stages."""
        token = self._trial.set(configs)
        try:
            yield
        finally:
            self._trial.reset(token)

    def making(self, run: measure.Run, stage: str, config: C) -> measure.Run:
        """Runs something with one stage cut another way."""

        def once() -> object:
            with self.trying({stage: config}), kernels_launched():
                return run()

        return once

    def _read(self, found: Any) -> C | None:
        """From JSON; None where nothing was found, or another version wrote it."""
        try:
            return self._type(**found["config"])
        except (KeyError, TypeError):
            return None

    def _measured(self, asked: Question[C], stage: str, device: torch.device) -> dict[str, Any]:
        """The fastest config and its time; empty, after one warning, where none could be timed."""
        try:
            with measure.undisturbed(device), torch.no_grad():
                run = asked.make()
                configs = asked.configs(run)
                makers = {
                    str(i): partial(self.making, run, stage, c) for i, c in enumerate(configs)
                }
                times = measure.compare(makers, device)
                spent = {name: t for name, t in times.items() if isinstance(t, float)}
                if not spent:
                    raise next(t for t in times.values() if isinstance(t, Exception))
        except Exception as error:
            measure.failed(f"how to cut the {stage} kernel of {self._kind}", error)
            return {}
        best = min(spent, key=lambda name: spent[name])
        return {"config": asdict(configs[int(best)]), "milliseconds": spent[best]}
