"""Measures implementations side by side: one row for each implementation and case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks import memory
from benchmarks.accuracy import ORACLES_AGREE, Errors, Oracle, tolerance
from benchmarks.cases import Case, Inputs, Network, copies_beyond_cache, make_inputs, make_psi
from benchmarks.floor import Floor, copy_bandwidth, measure_floor
from benchmarks.implementations import (
    COMPILED,
    IMPLEMENTATIONS,
    PUBLISHED,
    UNBOUND,
    Run,
    build,
    evaluate,
)
from benchmarks.presets import Plan
from benchmarks.rows import (
    FAILED,
    NOT_RUN,
    OK,
    OUT_OF_MEMORY,
    TOO_LONG,
    UNAVAILABLE,
    WRONG,
    NotMeasuredError,
    Row,
    compare_with,
)
from benchmarks.schedule import History, Schedule
from benchmarks.timing import Sample, calls_per_sample, sample, summarize, undisturbed

Say = Callable[[str], None]

# A batch this small is tried first where nothing is known of an implementation yet.
PILOT_BATCH = 32
# Of the memory that is free.
USABLE_SHARE = 0.8
MOST_SAMPLES = 25
FEWEST_SAMPLES = 3
# The call that tells the memory of a longer one is its first sample; two more are taken,
SLOW_CALL = 2.0
# and none of a call longer than this.
VERY_SLOW_CALL = 10.0
# What compiling may take; not begun with less left.
COMPILE_SECONDS = 30
# Values of one case at its full batch may differ by this many tolerances.
VALUE_SLACK = 10


@dataclass
class _Candidate:
    """An implementation that runs a case: being timed."""

    name: str
    run: Callable[[Inputs], object]
    row: Row
    estimate: float
    samples: list[Sample] = field(default_factory=list)


class Profiler:
    """Runs a plan's cases on a device."""

    def __init__(self, plan: Plan, device: torch.device, say: Say) -> None:
        self.plan, self.device, self.say = plan, device, say
        self.bandwidth = copy_bandwidth(device)
        self._schedule = Schedule(plan.budget, len(plan.cases()))
        self._history: dict[tuple[object, ...], History] = {}
        self._errors: dict[tuple[object, ...], Errors] = {}
        self._oracles: dict[tuple[object, ...], Oracle] = {}

    def rows_of(self, case: Case) -> list[Row]:
        """Measure all implementations in one case, interleaved."""
        self._schedule.begin_case()
        torch._dynamo.reset()
        rows = {
            name: {
                "implementation": name,
                **asdict(case),
                "precision": IMPLEMENTATIONS[name].precision,
                "version": IMPLEMENTATIONS[name].version,
                "status": OK,
                "reason": None,
            }
            for name in self.plan.names
        }
        for name, row in rows.items():
            self._say(case, f"{name}, a first look")
            self._attempt(row, lambda name=name, row=row: self._look_ahead(name, case, row))
        candidates: list[_Candidate] = []
        # The cheap ones first: what there is no time for is the most expensive.
        for name, row in sorted(rows.items(), key=lambda pair: _predicted(pair[1])):
            if row["status"] == OK:
                self._say(case, name)
                self._attempt(
                    row, lambda name=name, row=row: candidates.append(self._begin(name, case, row))
                )
        _compare_values(candidates, case)
        candidates = [one for one in candidates if one.row["status"] == OK]
        if candidates:
            self._say(case, "timing")
            floor = measure_floor(case, self.device, self.bandwidth)
            self._time(candidates, case)
            for candidate in candidates:
                self._complete(candidate, case, floor)
        self._release()
        compare_with(PUBLISHED, list(rows.values()))
        return list(rows.values())

    def _say(self, case: Case, what: str) -> None:
        self.say(f"{case.title}, B = {case.batch}: {what}")

    def _attempt(self, row: Row, step: Callable[[], object]) -> None:
        """Take a step towards a row's time; say in the row why there is none."""
        try:
            step()
        except NotMeasuredError as reason:
            row.update(status=reason.status, reason=reason.reason)
            if IMPLEMENTATIONS[row["implementation"]].foreign and reason.status == FAILED:
                # No compiler, or a package that cannot do it here: nothing is wrong with garevla.
                row.update(status=UNAVAILABLE)

    def _look_ahead(self, name: str, case: Case, row: Row) -> None:
        """Predict time and memory from smaller batches; raise where nothing is to be run."""
        reason = IMPLEMENTATIONS[name].unavailable(case, self.device)
        if reason is None and name == COMPILED:
            reason = self._not_compiled(case)
        if reason is not None:
            raise NotMeasuredError(UNAVAILABLE, reason)
        if self._schedule.used_up:
            raise NotMeasuredError(NOT_RUN, "the time budget was used up")
        if not self._known(name, case).batches and name != COMPILED and case.batch > PILOT_BATCH:
            self._pilot(name, case)
        history = self._known(name, case)
        row.update(
            predicted_seconds=history.seconds_at(
                case.batch, exponent=3.0 if case.direction == "exact" else 2.0
            ),
            predicted_bytes=history.bytes_at(case.batch),
        )

    def _not_compiled(self, case: Case) -> str | None:
        if case.direction == "exact" and not self.plan.compile_exact:
            return "with direction, compiling takes a minute: --preset paper"
        batches = self.plan.compiled_batches
        if batches is not None and case.batch not in batches:
            return (
                f"compiled at B = {', '.join(map(str, batches))} only, unless --batch asks for it"
            )
        return None

    def _begin(self, name: str, case: Case, row: Row) -> _Candidate:
        """First calls: whether it fits, is right, what memory it takes; book time for the rest."""
        self._check_feasible(name, case, row)
        psi = make_psi(case, self.device)
        run = build(name, case, psi)
        self._check_error(name, run, psi, case, row)
        candidate = self._warm_up(name, run, psi, case, row)
        self._schedule.book(self._timing_seconds(candidate.estimate))
        return candidate

    def _check_feasible(self, name: str, case: Case, row: Row) -> None:
        seconds, count = row["predicted_seconds"], row["predicted_bytes"]
        free = memory.available(self.device)
        if count is not None and free is not None and count > USABLE_SHARE * free:
            raise NotMeasuredError(OUT_OF_MEMORY, "predicted from smaller batches")
        if seconds is None:
            return
        if seconds > self.plan.call_limit:
            reason = f"predicted from smaller batches; a call may take {self.plan.call_limit:g} s"
            raise NotMeasuredError(TOO_LONG, reason)
        first_calls = 1 if seconds > SLOW_CALL else 2
        needed = first_calls * seconds + self._timing_seconds(seconds)
        if not self._schedule.fits(needed + (COMPILE_SECONDS if name == COMPILED else 0)):
            raise NotMeasuredError(NOT_RUN, "the time budget has no room for it")

    def _timing_seconds(self, estimate: float) -> float:
        return estimate * _samples_after(estimate, self.plan.row_seconds)

    def _known(self, name: str, case: Case) -> History:
        """History of this implementation, or of another form that bounds it."""
        names = (name, UNBOUND, PUBLISHED) if name == COMPILED else (name,)
        found = (self._history.get((one, case.series)) for one in names)
        return next((history for history in found if history is not None), History())

    def _pilot(self, name: str, case: Case) -> None:
        """One small batch, where the first of the plan might already be too large."""
        small = replace(case, batch=PILOT_BATCH)
        psi, inputs = make_psi(small, self.device), make_inputs(small, self.device, 1)[0]
        run = build(name, small, psi)
        self._guarded(lambda: evaluate(run, inputs, small, psi))
        self._measure_first(name, small, lambda: evaluate(run, inputs, small, psi))

    def _check_error(self, name: str, run: Run, psi: Network, case: Case, row: Row) -> None:
        """Errors against the oracle at this batch, or at the largest that it can do."""
        oracle = self._oracle(case)
        key = (name, case.series, oracle.case.batch)
        if key not in self._errors:
            if oracle.case.batch != case.batch:
                run = build(name, oracle.case, psi)
            self._errors[key] = self._guarded(lambda: oracle.errors_of(run, psi))
        errors = self._errors[key]
        row.update(
            relative_error=errors.value,
            gradient_error=errors.gradient,
            error_batch=oracle.case.batch,
        )
        if not errors.largest <= tolerance(name, case):
            raise NotMeasuredError(WRONG, f"error {errors.largest:.1e} against the oracle")

    def _oracle(self, case: Case) -> Oracle:
        oracle = Oracle.cached(self._oracles, case, self.device)
        disagreement = oracle.disagreement
        if not disagreement <= ORACLES_AGREE:
            raise RuntimeError(f"the two float64 oracles differ by {disagreement:.1e}")
        return oracle

    def _warm_up(self, name: str, run: Run, psi: Network, case: Case, row: Row) -> _Candidate:
        """First calls: memory, an estimate of the time."""
        # Of two batches, so that nothing is compiled again later.
        first, inputs = make_inputs(case, self.device, 2)
        kept: list[torch.Tensor] = []

        def call() -> None:
            torch.manual_seed(0)
            kept[:] = evaluate(run, inputs, case, psi)

        # The comparison with the oracle was a first call, where it was one of this size.
        cheap = _predicted(row) <= SLOW_CALL or name == COMPILED
        if cheap and row["error_batch"] != case.batch:
            self._guarded(lambda: evaluate(run, first, case, psi))
        first_sample, row["peak_growth_bytes"] = self._measure_first(name, case, call)
        estimate = first_sample.seconds
        row["value"] = float(kept[0].detach().double().norm())
        if estimate > 2 * self.plan.call_limit:
            raise NotMeasuredError(TOO_LONG, f"one call took {estimate:.1f} s")
        samples = [first_sample] if estimate > SLOW_CALL else []
        return _Candidate(name, _call(run, case, psi), row, estimate, samples)

    def _measure_first(
        self, name: str, case: Case, call: Callable[[], object]
    ) -> tuple[Sample, int | None]:
        """Seconds and peak growth of one call, remembered for predictions."""
        samples: list[Sample] = []

        def timed() -> None:
            samples.append(sample(call, self.device))

        peak = self._guarded(lambda: memory.peak_growth(timed, self.device))
        self._history_of(name, case).record(case.batch, samples[0].seconds, peak)
        return samples[0], peak

    def _history_of(self, name: str, case: Case) -> History:
        return self._history.setdefault((name, case.series), History())

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except NotMeasuredError:
            raise
        except Exception as error:
            self._release()
            if _is_out_of_memory(error):
                raise NotMeasuredError(OUT_OF_MEMORY, "the allocator gave up") from error
            lines = str(error).strip().splitlines() or [""]
            raise NotMeasuredError(FAILED, f"{type(error).__name__}: {lines[0]}") from error

    def _time(self, candidates: list[_Candidate], case: Case) -> None:
        inputs = make_inputs(case, self.device, copies_beyond_cache(case, self.device))
        wanted = {
            one.name: _samples_after(one.estimate, self.plan.row_seconds) for one in candidates
        }
        turn = 0

        def next_inputs() -> Inputs:
            nonlocal turn
            turn += 1
            return inputs[turn % len(inputs)]

        for round_ in range(max(wanted.values())):
            for one in candidates:
                late = self._schedule.used_up and one.samples
                if round_ >= wanted[one.name] or late or one.row["status"] != OK:
                    continue
                self._attempt(one.row, lambda one=one: self._sample(one, next_inputs))

    def _sample(self, candidate: _Candidate, next_inputs: Callable[[], Inputs]) -> None:
        def call() -> object:
            return candidate.run(next_inputs())

        calls = calls_per_sample(candidate.estimate)
        candidate.samples.append(
            self._guarded(
                lambda: undisturbed(
                    call, self.device, calls, lambda: self._schedule.fits(candidate.estimate)
                )
            )
        )

    def _complete(self, candidate: _Candidate, case: Case, floor: Floor) -> None:
        row = candidate.row
        if row["status"] != OK:
            return
        summary = summarize(one.seconds for one in candidate.samples)
        self._history_of(candidate.name, case).record(case.batch, summary.median)
        row.update(
            median_seconds=summary.median,
            lower_quartile_seconds=summary.lower,
            upper_quartile_seconds=summary.upper,
            seconds=[one.seconds for one in candidate.samples],
            contended_samples=sum(one.contended for one in candidate.samples),
            pairs_per_second=case.batch**2 / summary.median,
            floor=floor.as_dict(),
            floor_seconds=floor.seconds,
            floor_fraction=floor.seconds / summary.median,
        )

    def _release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _samples_after(estimate: float, row_seconds: float) -> int:
    """How many samples to take, besides the first call of a slow implementation."""
    if estimate > VERY_SLOW_CALL:
        return 0
    if estimate > SLOW_CALL:
        return 2
    return max(FEWEST_SAMPLES, min(MOST_SAMPLES, round(row_seconds / estimate)))


def _predicted(row: Row) -> float:
    return row.get("predicted_seconds") or 0.0


def _compare_values(candidates: list[_Candidate], case: Case) -> None:
    """At the full batch, where the oracle may not reach, they must agree with each other."""
    values = sorted(one.row["value"] for one in candidates)
    if not values:
        return
    middle = values[len(values) // 2]
    for candidate in candidates:
        difference = abs(candidate.row["value"] - middle) / max(abs(middle), 1e-12)
        if not difference <= VALUE_SLACK * tolerance(candidate.name, case):
            reason = f"its value differs from the others' by {difference:.1e}"
            candidate.row.update(status=WRONG, reason=reason)


def _call(run: Run, case: Case, psi: Network) -> Callable[[Inputs], object]:
    return lambda inputs: evaluate(run, inputs, case, psi)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in text for words in ("out of memory", "can't allocate memory", "failed to allocate")
    )
