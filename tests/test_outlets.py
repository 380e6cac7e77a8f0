"""Where torch's own tools look: counters, `TORCH_LOGS`, the structured trace, and profiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import fuser
from fuser import outlets, printed, swallowed, tools_private
from fuser.backend import listening
from fuser.events import Failure, NearMiss, Record, Verdict, Where
from fuser.lowering.triton import launch
from tests.compiled import compiled

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"fuser.inner": "eager", "fuser.policy": "always"}


def attend(q: Tensor) -> Tensor:
    return torch.softmax(q @ q.mT * 0.5, -1) @ q


def leaky(q: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(q @ q.mT * 0.5, -1)
    return p @ q, p


def gated(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x) * (x + 1)


def tensor() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 2, 16, 16)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters["fuser"].clear()
    yield
    counters["fuser"].clear()


class TestCounters:
    def test_regions_are_counted_by_pattern_and_by_what_became_of_them(self) -> None:
        compiled(attend, (tensor(),), inner="eager")
        assert counters["fuser"] == {"attention.softmax": 1}
        compiled(leaky, (tensor(),), inner="eager")
        assert counters["fuser"]["attention.softmax"] == 1
        assert counters["fuser"]["declined: attention.softmax"] == 1
        compiled(gated, (tensor(),), inner="eager", policy="auto")
        assert counters["fuser"]["left: activation.plain"] == 1
        assert outlets.rewrites() == {"attention.softmax": 1}

    def test_failures_and_what_was_taken_back(self) -> None:
        place = Where("n")
        verdicts = [
            Verdict("mine.a", place, "triton", outcome)
            for outcome in ("wrong", "verified", "unverified")
        ]
        missed = NearMiss("mine.b", place, "no")
        failed = Failure("mine", place, "Error")
        outlets.publish(Record([], [missed], [failed], verdicts), told=False)
        assert counters["fuser"] == {
            "declined: mine.b": 1,
            "failed: mine": 1,
            "taken back: mine.a": 1,
        }

    def test_explain_and_verify_leave_them_as_they_were(self) -> None:
        counters["fuser"]["attention.softmax"] += 3
        fuser.explain(leaky, tensor(), options=OPTIONS)
        fuser.verify(attend, tensor(), options=OPTIONS)
        assert counters["fuser"] == {"attention.softmax": 3}


SCRIPT = """
{imports}
def attend(q):
    return torch.softmax(q @ q.mT * 0.5, -1) @ q
options = {{"fuser.inner": "eager", "fuser.policy": "always", **{options}}}
torch.compile(attend, backend="fuser", options=options)(torch.randn(1, 2, 8, 4))
"""


def ran(
    folder: Path, imports: str = "import torch", options: Any = None, **environment: str
) -> str:
    """Standard error of a fresh process that compiles an attention."""
    file = folder / "attend.py"
    file.write_text(SCRIPT.format(imports=imports, options=options or {}))
    own = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH_", "FUSER_"))}
    env = {**own, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, str(file)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


class TestLogs:
    @pytest.mark.parametrize("imports", ["import torch", "import fuser\nimport torch"])
    def test_one_line_for_each_graph(self, tmp_path: Path, imports: str) -> None:
        (line,) = ran(tmp_path, imports, TORCH_LOGS="fuser").splitlines()
        assert "[0/0] fuser: 1 region rewritten (1 graph, 7 nodes, " in line

    def test_more_is_the_whole_report(self, tmp_path: Path) -> None:
        text = ran(tmp_path, TORCH_LOGS="+fuser")
        assert "[0/0] REWRITTEN  attention.softmax\n" in text
        assert text.count("fuser: 1 region rewritten") == 1

    def test_less_is_nothing(self, tmp_path: Path) -> None:
        assert ran(tmp_path) == ""
        assert ran(tmp_path, TORCH_LOGS="-fuser") == ""

    def test_what_is_reported_already_is_not_logged_again(self, tmp_path: Path) -> None:
        options = {"fuser.debug": True}
        text = ran(tmp_path, options=options, TORCH_LOGS="+fuser")
        assert text.count("REWRITTEN  attention.softmax") == 1

    def test_errors_that_count_as_unknown(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A report that cannot be made stops no program."""
        monkeypatch.setattr(swallowed, "raise_ours", False)
        monkeypatch.setattr(outlets, "_log", lambda record: 1 / 0)
        with caplog.at_level("DEBUG", logger="fuser"):
            compiled(attend, (tensor(),), inner="eager")
        assert "counted as unknown: division by zero" in caplog.text


class TestTrace:
    def artifacts(self, folder: Path) -> dict[str, str]:
        """Payloads by name, of those that carry the compile's id."""
        (file,) = folder.glob("*.log")
        found: dict[str, list[str]] = {}
        lines = []
        for line in file.read_text().splitlines():
            if line.startswith("\t"):
                lines.append(line[1:])
                continue
            about = json.loads(line[line.index("{") :]) if "{" in line else {}
            lines = []
            if about.get("artifact", {}).get("name", "").startswith("fuser"):
                assert (about["frame_id"], about["frame_compile_id"]) == (0, 0)
                found[f"{about['artifact']['name']}, {about['artifact']['encoding']}"] = lines
        return {name: "\n".join(lines) for name, lines in found.items()}

    def test_reports_are_artifacts_of_the_compile(self, tmp_path: Path) -> None:
        ran(tmp_path, TORCH_TRACE=str(tmp_path / "trace"))
        found = self.artifacts(tmp_path / "trace")
        assert set(found) == {"fuser_report, json", "fuser_report_text, string"}
        data = json.loads(found["fuser_report, json"])
        assert [r["pattern"] for r in data["rewritten"]] == ["attention.softmax"]
        assert "REWRITTEN  attention.softmax" in found["fuser_report_text, string"]
        assert "@@ graph 0: 4 nodes removed, 1 added @@" in found["fuser_report_text, string"]

    def test_without_a_trace_no_report_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> None:
            pytest.fail("it was made")

        monkeypatch.setattr(tools_private.trace_log, "handlers", [])  # pytest has added its own
        monkeypatch.setattr(outlets, "_trace", fail)
        monkeypatch.setattr(outlets, "_log", fail)
        compiled(attend, (tensor(),), inner="eager")


def names(function: Any, *args: Any) -> set[str]:
    """Of a profile's events, in a call of a compiled function that is compiled already."""
    function(*args).sum().backward()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        function(*args).sum().backward()
    return {event.name for event in found.events() or ()}


def function_of(lowering: str) -> Any:
    options: dict[str, Any] = {**OPTIONS, "fuser.inner": "aot_eager", "fuser.lowering": lowering}
    return torch.compile(attend, backend="fuser", options=options)


class TestProfile:
    @pytest.mark.skipif(not launch.interpreting(), reason="kernels run in the interpreter here")
    def test_launches_are_named_for_the_pattern_and_the_users_line(self) -> None:
        record = Record()
        with listening(record.extend):
            found = names(function_of("triton"), tensor().requires_grad_())
        line = attend.__code__.co_firstlineno + 1
        origin = f"fuser: attention.softmax at {Path(__file__).name}:{line}"
        assert f"{origin}, forward_kernel" in found
        assert origin == f"fuser: {record.rewritten[0].origin}"  # by which a report has the layers
        assert len({name for name in found if name.startswith(origin)}) > 2

    def test_operators_are_named_for_their_family(self) -> None:
        found = names(function_of("reference"), tensor().requires_grad_())
        assert {"fuser::attention", "fuser::attention_backward"} <= found

    @pytest.mark.skipif(not launch.interpreting(), reason="kernels run in the interpreter here")
    def test_without_a_profiler_no_range_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str) -> None:
            pytest.fail(name)

        monkeypatch.setattr(launch, "named_range", fail)
        function_of("triton")(tensor())
        assert not tools_private.is_profiled()

    @pytest.mark.parametrize("origin", ["attention.softmax at model.py:12", "mine", ""])
    def test_the_head_of_a_module_says_for_whom_it_is(self, origin: str) -> None:
        assert printed.origin_of(printed.first_line(origin) + "\nimport triton\n") == origin

    def test_a_range_is_nothing_that_a_trace_records(self) -> None:
        def ranged(x: Tensor) -> Tensor:
            with tools_private.named_range("ours"):
                return x.sin()

        from torch.fx.experimental.proxy_tensor import make_fx

        with profile(activities=[ProfilerActivity.CPU]) as found:
            graph = make_fx(ranged)(torch.ones(2)).graph
        assert "ours" in {event.name for event in found.events() or ()}
        assert [n.op for n in graph.nodes] == ["placeholder", "call_function", "output"]
