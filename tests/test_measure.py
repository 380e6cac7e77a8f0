"""How long things take: candidates in turn, and what is kept of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuser import measure
from fuser.disk import write_whole

KEY = {"question": "which", "sizes": [4, 8], "device": "a GPU"}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measure, "_known", {})


class TestMemory:
    def test_round_trip_through_a_file(self, tmp_path: Path) -> None:
        assert measure.recall(KEY) is None
        measure.remember(KEY, {"a": 1.5})
        measure._known.clear()
        assert measure.recall(dict(reversed(KEY.items()))) == {"a": 1.5}
        (path,) = tmp_path.rglob("*.json")
        assert path.parent == tmp_path / "fuser" / "measured"
        assert json.loads(path.read_text()) == {"key": KEY, "found": {"a": 1.5}}

    def test_memory_alone(self, tmp_path: Path) -> None:
        measure.remember(KEY, {"a": 1.5}, on_disk=False)
        assert measure.recall(KEY) == {"a": 1.5}
        assert not list(tmp_path.rglob("*.json"))

    @pytest.mark.parametrize("part", KEY)
    def test_another_key(self, part: str) -> None:
        measure.remember(KEY, 1.0)
        assert measure.recall({**KEY, part: "another"}) is None

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": 3}', '{"found": 1.0}'])
    def test_a_corrupt_file(self, content: str, tmp_path: Path) -> None:
        measure.remember(KEY, 1.0)
        measure._known.clear()
        (path,) = tmp_path.rglob("*.json")
        path.write_text(content)
        assert measure.recall(KEY) is None
        measure.remember(KEY, 2.0)
        measure._known.clear()
        assert measure.recall(KEY) == 2.0

    def test_a_digest_that_two_keys_share(self, tmp_path: Path) -> None:
        measure.remember(KEY, 1.0)
        measure._known.clear()
        (path,) = tmp_path.rglob("*.json")
        path.write_text(json.dumps({"key": {**KEY, "sizes": [1]}, "found": 1.0}))
        assert measure.recall(KEY) is None

    def test_many_writers(self, tmp_path: Path) -> None:
        """Whoever reads meanwhile finds nothing, or a whole file."""
        path, text = tmp_path / "shared.json", json.dumps(KEY, sort_keys=True)
        wrong: list[Any] = []

        def write(number: int) -> None:
            for _ in range(50):
                found = {"number": number, "long": "x" * 20000}
                write_whole(path, json.dumps({"key": KEY, "found": found}))
                read = measure._read(path, text)
                if read is None or len(read["long"]) != 20000:
                    wrong.append(read)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_cannot_be_written_to(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "fuser").write_text("in the way")
        measure.remember(KEY, 1.0)
        assert measure.recall(KEY) == 1.0

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
        found = measure.environment(torch.device("cpu"))
        assert found["device"] == "a GPU"
        assert found["torch"] == torch.__version__
        assert set(found) == {"device", "torch", "triton", "fuser"}

    def test_buckets(self) -> None:
        assert [measure.bucket(n) for n in (0, 1, 2, 3, 4, 5, 64, 65)] == [
            1,
            1,
            2,
            4,
            4,
            8,
            64,
            128,
        ]


class Event:
    """Of a device on which time is the number of events so far."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 1
        self.at = Event.now

    def elapsed_time(self, end: Event) -> float:
        return float(end.at - self.at)


def test_candidates_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one run that tells how long the host takes."""
    ran: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measure, "FLUSH", 16)
    monkeypatch.setattr(measure, "ROUNDS", 3)

    def work(name: str, events: int) -> Callable[[], None]:
        def run_once() -> None:
            ran.append(name)
            Event.now += events

        return run_once

    found = measure.medians({"a": work("a", 4), "b": work("b", 1)}, torch.device("cpu"))
    assert found == {"a": 5.0, "b": 2.0}
    assert "".join(ran) == "ab" + "ababab"
