from __future__ import annotations

import pytest

from benchmarks import schedule
from benchmarks.schedule import History, Schedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    return now


def test_half_of_the_budget_is_kept_for_later_cases(clock):
    plan = Schedule(100, cases=5)
    plan.begin_case()
    assert plan.fits(60)
    assert not plan.fits(61)
    for _ in range(4):
        plan.begin_case()
    assert plan.fits(100)
    clock[0] = 99
    assert not plan.fits(2)
    assert not plan.used_up
    clock[0] = 101
    assert plan.used_up


def test_booked_time_is_the_cases_own(clock):
    plan = Schedule(100, cases=2)
    plan.begin_case()
    plan.book(70)
    assert plan.fits(5)
    assert not plan.fits(6)
    plan.begin_case()
    assert plan.fits(100)


def test_history_predicts():
    history = History()
    assert history.seconds_at(64, exponent=2) is None
    assert history.bytes_at(64) is None
    history.record(16, 9.0, 100)
    history.record(16, 1.0)
    assert history.seconds_at(32, exponent=2) == pytest.approx(4)
    assert history.bytes_at(32) == pytest.approx(400)
