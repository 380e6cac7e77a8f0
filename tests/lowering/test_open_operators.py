"""On a GPU the operators of generated kernels open into launches that Inductor sees."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lowering.opened import opened as launches_of

STATISTICS = ["row_max", "row_sum"]
FORWARD = [("forward_kernel", ["out", *STATISTICS])]
SPLIT = [("split_kernel", ["part", "part_max", "part_sum"]), ("combine_kernel", FORWARD[0][1])]
BACKWARD = [("rows_kernel", ["dq0"]), ("keys_kernel", ["dk0", "dv"])]
BIAS = [*BACKWARD, ("tiles_kernel", ["dc0"])]
TABLE = ("table_kernel", ["dead", "kinds"])


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The launches of every case."""
    return launches_of("open_operators")


def written(launches: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Kernels, each with the tensors that it is known to write to: no others are copied."""
    return [(launch["kernel"], launch.get("writes", [])) for launch in launches]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("forward", FORWARD),
        ("forward, grouped", FORWARD),
        ("decoding", SPLIT),
        ("backward", BACKWARD),
        ("backward, bias", BIAS),
        ("table", [TABLE, *FORWARD]),
        ("backward, table", [TABLE, BACKWARD[0], TABLE, BACKWARD[1]]),
        ("backward, atomics", [("keys_kernel", ["dk0", "dq0", "dv"])]),
        ("dynamic forward", FORWARD),
        ("dynamic forward, grouped", FORWARD),
        ("dynamic decoding", SPLIT),
        ("dynamic backward", BACKWARD),
    ],
)
def test_one_operator(
    opened: dict[str, Any], case: str, expected: list[tuple[str, list[str]]]
) -> None:
    assert written(opened[case]) == expected


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("training", BACKWARD),
        ("training, bias", BIAS),
        ("training, dropout", BACKWARD),
        ("dynamic training", BACKWARD),
    ],
)
def test_through_autograd(
    opened: dict[str, Any], case: str, expected: list[tuple[str, list[str]]]
) -> None:
    """The backward starts from what the forward saved, and does not run it again."""
    assert written(opened[case]["forward"]) == FORWARD
    assert written(opened[case]["backward"]) == expected


@pytest.mark.parametrize(
    "case", ["dynamic forward", "dynamic forward, grouped", "dynamic backward"]
)
def test_a_symbolic_length_stays_one(opened: dict[str, Any], case: str) -> None:
    for launch in opened[case]:
        assert {"SQ", "SK", "q0_h"} <= set(launch["symbolic"])
    assert not any(launch["symbolic"] for launch in opened[case.removeprefix("dynamic ")])


def test_triton_compiles_a_kernel_once_for_all_regions(opened: dict[str, Any]) -> None:
    """The header has another line of the user's program, and as many lines of its own."""
    one, another = opened["cache keys"]
    assert one == another
