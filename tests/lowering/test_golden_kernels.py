"""Whole modules of generated kernels, for six kinds of attention: every kernel that is launched.

They are launched in Triton's interpreter, and printed as they would be for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fuser.lowering.attention.generated.catalogue import Entry, recording
from fuser.specs import AttentionSpec
from tests import accepted
from tests.lowering.generated import Operands, generated, operands, outcome, spec

HALF = torch.bfloat16
FOLDER = "triton/attention"


def scaled(s0: Tensor) -> Tensor:
    return s0 * 0.125


def softcap(s0: Tensor) -> Tensor:
    return torch.tanh(s0 * 0.125 / 50.0) * 50.0


def biased(s0: Tensor, c0: Tensor) -> Tensor:
    return s0 * 0.125 + c0


def hidden(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0, s0 * 0.125, -torch.inf)


def causal(iq: Tensor, ik: Tensor) -> Tensor:
    return ik <= iq


def window(iq: Tensor, ik: Tensor) -> Tensor:
    return (ik <= iq) & (iq - ik < 1024)


@dataclass(frozen=True)
class Kind:
    """An attention, and the operands that it trains on."""

    spec: AttentionSpec
    captured: tuple[tuple[int, ...], ...] = ()
    kv: int = 4
    lengths: tuple[int, int] = (20, 28)
    decodes: bool = False
    masked: bool = False

    def operands(self, rows: int, keys: int) -> Operands:
        sizes = {"batch": 1, "kv": self.kv, "rows": rows, "keys": keys, "features": 64}
        found = operands(*self.captured, **sizes, dtype=HALF)
        if self.masked:
            found.captured.append(torch.ones(1, 1, rows, keys, dtype=torch.bool).tril())
        return found


KINDS = {
    "plain": Kind(spec(scaled, dtype=HALF)),
    "softcap_causal_grouped": Kind(spec(softcap, mask=causal, dtype=HALF), kv=2, decodes=True),
    "bias": Kind(spec(biased, dtype=HALF), ((1, 4, 20, 28),)),
    "window_sink": Kind(spec(scaled, mask=window, sink="c0", dtype=HALF), ((1, 4, 1, 1),)),
    "mask_of_data": Kind(spec(hidden, dtype=HALF), lengths=(128, 128), masked=True),
    "dropout": Kind(spec(scaled, dropout=0.1, dtype=HALF)),
}


def launched(kind: Kind) -> list[Entry]:
    """The kernels of a step of training, and of one token that is decoded."""

    def run(of: AttentionSpec, x: Operands) -> Tensor:
        return generated(of, x, torch.tensor([1]) if of.dropout else None)

    with recording() as found:
        outcome(run, kind.spec, kind.operands(*kind.lengths))
        if kind.decodes:
            with torch.no_grad():
                run(kind.spec, kind.operands(1, 500))
    return list(found.values())


def text(entries: list[Entry]) -> str:
    """The modules, each under the name of its stage."""
    parts = [f"# -- {e.stage}\n\n{e.kernel('sm_90').source}" for e in entries]
    return "\n\n".join(parts)


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_golden_file(name: str) -> None:
    accepted.check(f"{FOLDER}/{name}.txt", text(launched(KINDS[name])))


def test_no_golden_file_is_left_over() -> None:
    found = {path.stem for path in (accepted.GOLDEN / FOLDER).iterdir()}
    assert found == set(KINDS)


def test_every_stage_has_a_golden_file() -> None:
    """A stage that no kind above launches would change unseen."""
    files = (accepted.GOLDEN / FOLDER).iterdir()
    lines = "".join(path.read_text(encoding="utf-8") for path in files)
    kernels = ("forward", "split", "combine", "rows", "keys", "tiles", "delta", "table")
    missing = [k for k in kernels if f"\ndef {k}_kernel(" not in lines]
    assert not missing
