"""`fuser.verify`: is what fuser puts into a model as near to float64 as the model itself?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from ..errors import VerificationError
from ..events import Verdict
from ..options import matches
from ..report import text
from ..report.explain import compile_once
from ..report.report import Report, require_family


def verify(
    fn: Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Verification:
    """Compile a module or function once and compare every region that is rewritten.

        print(fuser.verify(model, ids))
        fuser.verify(model, ids, options={"fuser.policy": "always"}).expect(attention=32)

    Each region runs beside its original at what it reads in this very call, and both are compared
    with the original in fp64: outputs and, where gradients are on, the gradients of all that it
    reads. A region is wrong where its largest error is more than 3 times the original's and more
    than some roundings of the value's largest element (24 in fp32 and fp64, 5 in half precision).
    Elements that two correct programs need not agree on, since they move by more than that when
    inputs are changed by a rounding, such as choices among equal scores, are not held against it.

    It compiles as `fuser.explain` does, in isolation, but with `fuser.inner`, so that Inductor
    compiles what it will compile. Regions that are wrong are left alone from then on, in whatever
    this process compiles.

    Args:
        fn: a module, a function, a bound method, or one of these compiled already.
        args: its arguments.
        options: `fuser.*` options of this compile; keys of other backends are ignored.
        kwargs: its keyword arguments.

    Returns:
        what was found; `str()` of it is a table.

    Raises:
        UnknownOptionError, InvalidOptionError: a bad option.
        FuserError: `fn` is a class, or nothing that can be called. What it raises passes through.
    """
    fixed = {"fuser.verify": True, "fuser.debug": False}
    record = compile_once("verify", fn, args, kwargs, options, fixed)
    return Verification(Report.of(record))


@dataclass(frozen=True, eq=False)
class Verification:
    """What `fuser.verify` found.

    Attributes:
        report: of the compile; its `verdicts` are the regions, one each.
    """

    report: Report

    @property
    def verified(self) -> tuple[Verdict, ...]:
        """Regions that are as near to fp64 as they may be."""
        return self._with("verified")

    @property
    def wrong(self) -> tuple[Verdict, ...]:
        """Regions that are not, and were taken back."""
        return self._with("wrong")

    @property
    def unverified(self) -> tuple[Verdict, ...]:
        """Regions that could not be compared; each has the reason."""
        return self._with("unverified")

    def _with(self, outcome: str) -> tuple[Verdict, ...]:
        return tuple(v for v in self.report.verdicts if v.outcome == outcome)

    @property
    def ok(self) -> bool:
        """Whether every region that is rewritten was compared, and none is wrong."""
        return not self.wrong and not self.unverified

    def expect(self, **families: int) -> Verification:
        """Require that no region is wrong, and that exactly so many of each family are right.

        Args:
            families: number by family, as `Report.expect` takes them; other families may have any
                number, and regions that could not be compared.

        Returns:
            the verification itself.

        Raises:
            VerificationError: the message holds the table.
            FuserError: a family that does not exist, or a number that is none.
        """
        problems = [f"{v.pattern} at {v.where}: {v.reason}" for v in self.wrong]
        for family, wanted in families.items():
            found = sum(matches(verdict.pattern, family) for verdict in self.verified)
            require_family(family, wanted, found)
            if found != wanted:
                was = "was" if found == 1 else "were"
                problems.append(f"expected {family}={wanted}, but {found} {was} verified")
        if problems:
            raise VerificationError("; ".join(problems) + f"\n\n{self}")
        return self

    def __str__(self) -> str:
        return text.render_verdicts(self.report)

    def __rich__(self) -> Text:
        return text.styled_verdicts(self.report)

    def to_json(self) -> dict[str, Any]:
        """`Report.to_json` of the compile, with its `verdicts`, and `ok: bool`."""
        return {**self.report.to_json(), "ok": self.ok}
