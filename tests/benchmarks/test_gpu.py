from __future__ import annotations

import json
import sys

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_the_rehearsal_passes(tmp_path):
    assert gpu.main(["--check", "--output", str(tmp_path)]) == 0
    steps = {
        step["name"]: step for step in json.loads((tmp_path / "summary.json").read_text())["steps"]
    }
    assert list(steps)[:5] == ["environment", "build", "tests", "memcheck", "similarity"]
    assert {step["status"] for step in steps.values()} <= {"ok", "skipped"}
    rows = json.loads((tmp_path / "similarity.json").read_text())["results"]
    assert any(row["status"] == "ok" for row in rows)
    peers = json.loads((tmp_path / "peers.json").read_text())["results"]
    assert {"torch", "memeff", "native"} == {row["implementation"] for row in peers}
    assert (tmp_path / "similarity.csv").exists()
    assert "=== build" in (tmp_path / "log.txt").read_text()


def fake_steps(*codes: str, most_seconds: float = 2.0):
    return lambda output, check: [
        gpu.Step(f"step{number}", [sys.executable, "-c", code], most_seconds)
        for number, code in enumerate(codes)
    ]


def test_a_step_that_fails_or_hangs_does_not_end_the_run(tmp_path, monkeypatch):
    codes = ("raise SystemExit('broken')", "import time; time.sleep(60)", "print('fine')")
    monkeypatch.setattr(gpu, "steps", fake_steps(*codes))
    outcomes = gpu.run(tmp_path, check=True, seconds=60)
    assert [outcome.status for outcome in outcomes] == ["failed", "stopped", "ok"]
    assert "broken" in outcomes[0].detail
    assert outcomes[2].detail == "fine"


def test_a_step_that_is_stopped_tells_what_it_has(tmp_path, monkeypatch):
    code = (
        "import time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('two tests failed')\n"
    )
    # Time enough for a busy machine to begin.
    monkeypatch.setattr(gpu, "steps", fake_steps(code, most_seconds=8.0))
    (outcome,) = gpu.run(tmp_path, check=True, seconds=60)
    assert outcome.status == "stopped"
    assert outcome.detail.endswith("two tests failed")


def test_nothing_begins_without_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "steps", fake_steps("print(1)"))
    outcomes = gpu.run(tmp_path, check=True, seconds=5)
    assert [(outcome.status, outcome.detail) for outcome in outcomes] == [
        ("skipped", "no time is left")
    ]


def test_only_the_steps_asked_for_are_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "steps", fake_steps("print(1)", "print(2)", "print(3)"))
    assert gpu.main(["--output", str(tmp_path), "--steps", "step2", "step0"]) == 0
    names = [step["name"] for step in json.loads((tmp_path / "summary.json").read_text())["steps"]]
    assert names == ["step0", "step2"]
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path), "--steps", "step7"])
    assert "no step ['step7']" in capsys.readouterr().err


def test_the_most_important_come_first(tmp_path):
    names = [step.name for step in gpu.steps(tmp_path, check=False)]
    wanted = ["tests", "memcheck", "similarity", "scaling", "scaling-frames-64", "peers"]
    assert [name for name in names if name in wanted] == wanted
    assert names.index("peers") < names.index("retrieval")
