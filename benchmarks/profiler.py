"""Measures implementations side by side: one row for each implementation and case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks import growth, memory
from benchmarks.accuracy import ORACLES_AGREE, Oracle, tolerance
from benchmarks.cases import Case, Inputs, copies_beyond_cache, make_inputs, make_psi
from benchmarks.floor import Floor, copy_bandwidth, measure_floor
from benchmarks.implementations import (
    COMPILED,
    PUBLISHED,
    UNBOUND,
    Run,
    build,
    evaluate,
    unavailable,
)
from benchmarks.presets import Plan
from benchmarks.timing import calls_per_sample, seconds_of, summarise
from garevla import CrossAttentionPsi

Row = dict[str, Any]
Say = Callable[[str], None]

# A batch this small is tried first where nothing is known of an implementation yet.
PILOT_BATCH = 32
# Of the memory that is free.
USABLE_SHARE = 0.8
MOST_SAMPLES = 25
FEWEST_SAMPLES = 3
# A call longer than this is sampled twice, and its memory measured in its warm-up.
SLOW_CALL = 2.0
# What compiling may take; not begun with less left.
COMPILE_SECONDS = 30
# Values of one case at its full batch may differ by this many tolerances.
VALUE_SLACK = 10

OK, OUT_OF_MEMORY, TOO_LONG = "ok", "out of memory", "too long"
NOT_RUN, UNAVAILABLE, WRONG, FAILED = "not run", "unavailable", "wrong", "failed"


class NotMeasuredError(Exception):
    """An implementation has no time in a case: status and reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class _History:
    """What an implementation took at the batch sizes so far."""

    batches: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_batches: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


@dataclass
class _Candidate:
    """An implementation that runs a case: being timed."""

    name: str
    run: Callable[[Inputs], object]
    row: Row
    estimate: float
    samples: list[float] = field(default_factory=list)

    def wanted_samples(self, row_seconds: float) -> int:
        if self.estimate > SLOW_CALL:
            return 2
        return max(FEWEST_SAMPLES, min(MOST_SAMPLES, round(row_seconds / self.estimate)))


class Profiler:
    """Runs a plan's cases on a device, and keeps the rows."""

    def __init__(self, plan: Plan, device: torch.device, say: Say, deadline: float) -> None:
        self.plan, self.device, self.say, self.deadline = plan, device, say, deadline
        self.bandwidth = copy_bandwidth(device)
        self._history: dict[tuple[object, ...], _History] = {}
        self._errors: dict[tuple[object, ...], float] = {}
        self._oracles: dict[tuple[object, ...], Oracle] = {}

    def rows_of(self, case: Case) -> list[Row]:
        """Measure all implementations in one case, interleaved."""
        rows: list[Row] = []
        candidates: list[_Candidate] = []
        floor: Floor | None = None
        torch._dynamo.reset()
        for name in self.plan.names:
            row: Row = {"implementation": name, **asdict(case), "status": OK, "reason": None}
            rows.append(row)
            self.say(f"{case.title}, B = {case.batch}: {name}")
            try:
                self._check_available(name, case)
                self._check_feasible(name, case, row)
                psi = make_psi(case, self.device)
                run = build(name, case, psi)
                self._check_error(name, run, psi, case, row)
                candidates.append(self._warm_up(name, run, psi, case, row))
            except NotMeasuredError as reason:
                row.update(status=reason.status, reason=reason.reason)
                if name == COMPILED and reason.status == FAILED:
                    # No compiler, or one that cannot do it: nothing is wrong with the formulas.
                    row.update(status=UNAVAILABLE)
        self._compare_values(candidates, case)
        candidates = [one for one in candidates if one.row["status"] == OK]
        if candidates:
            self.say(f"{case.title}, B = {case.batch}: timing")
            floor = measure_floor(case, self.device, self.bandwidth)
            self._time(candidates, case)
        self._release()
        for candidate in candidates:
            self._complete(candidate, case, floor)
        _compare_with_published(rows)
        return rows

    def _check_available(self, name: str, case: Case) -> None:
        reason = unavailable(name, case, self.device)
        if reason is None and name == COMPILED:
            reason = self._not_compiled(case)
        if reason is not None:
            raise NotMeasuredError(UNAVAILABLE, reason)

    def _not_compiled(self, case: Case) -> str | None:
        if case.direction == "exact" and not self.plan.compile_exact:
            return "compiling takes a minute; the preset paper does"
        batches = self.plan.compiled_batches
        if batches is not None and case.batch not in batches:
            return f"compiled at batch {', '.join(map(str, batches))} only; ask for it with --batch"
        return None

    def _check_feasible(self, name: str, case: Case, row: Row) -> None:
        """Predict time and memory from smaller batches; raise where they are too much."""
        if time.monotonic() > self.deadline:
            raise NotMeasuredError(NOT_RUN, "the time budget was used up")
        history = self._known(name, case)
        if not history.batches and name != COMPILED and case.batch > PILOT_BATCH:
            self._pilot(name, case)
            history = self._known(name, case)
        most = 3.0 if case.direction == "exact" else 2.0
        seconds = growth.predict(history.batches, history.seconds, case.batch, most=most)
        count = growth.predict(history.memory_batches, history.bytes, case.batch, most=2.2)
        row.update(predicted_seconds=seconds, predicted_bytes=count)
        free = memory.available(self.device)
        if count is not None and free is not None and count > USABLE_SHARE * free:
            raise NotMeasuredError(OUT_OF_MEMORY, "predicted from smaller batches")
        if seconds is None:
            return
        if seconds > self.plan.call_limit:
            reason = f"predicted from smaller batches; the limit is {self.plan.call_limit:g} s"
            raise NotMeasuredError(TOO_LONG, reason)
        # A warm-up, and two samples at least.
        needed = 3 * seconds + (COMPILE_SECONDS if name == COMPILED else 0)
        if time.monotonic() + needed > self.deadline:
            raise NotMeasuredError(NOT_RUN, "it would not end within the time budget")

    def _known(self, name: str, case: Case) -> _History:
        """History of this implementation, or of another form that bounds it."""
        names = (name, UNBOUND, PUBLISHED) if name == COMPILED else (name,)
        found = (self._history.get((one, case.series)) for one in names)
        return next((history for history in found if history is not None), _History())

    def _pilot(self, name: str, case: Case) -> None:
        """One small batch, where the first of the plan might already be too large."""
        small = replace(case, batch=PILOT_BATCH)
        psi, inputs = make_psi(small, self.device), make_inputs(small, self.device, 1)[0]
        run = build(name, small, psi)
        self._guarded(lambda: evaluate(run, inputs, small, psi))
        seconds = seconds_of(lambda: evaluate(run, inputs, small, psi), self.device)
        peak = memory.peak_growth(lambda: evaluate(run, inputs, small, psi), self.device)
        self._remember(name, small, seconds, peak)

    def _check_error(
        self, name: str, run: Run, psi: CrossAttentionPsi, case: Case, row: Row
    ) -> None:
        """Error against the oracle at this batch, or at the largest that it can do."""
        oracle = self._oracle(case)
        key = (name, case.series, oracle.case.batch)
        if key not in self._errors:
            if oracle.case.batch != case.batch:
                run = build(name, oracle.case, psi)
            self._errors[key] = self._guarded(lambda: oracle.error_of(run, psi))
        error = self._errors[key]
        row.update(relative_error=error, error_batch=oracle.case.batch)
        if not error <= tolerance(name, case):
            raise NotMeasuredError(WRONG, f"relative error {error:.1e} against the oracle")

    def _oracle(self, case: Case) -> Oracle:
        oracle = Oracle.cached(self._oracles, case, self.device)
        disagreement = oracle.disagreement
        if not disagreement <= ORACLES_AGREE:
            raise RuntimeError(f"the two float64 oracles differ by {disagreement:.1e}")
        return oracle

    def _warm_up(
        self, name: str, run: Run, psi: CrossAttentionPsi, case: Case, row: Row
    ) -> _Candidate:
        """First calls: compilation, memory, an estimate of the time."""
        # Of two batches, so that nothing is compiled again later.
        first, inputs = make_inputs(case, self.device, 2)

        def call() -> float:
            torch.manual_seed(0)
            values = evaluate(run, inputs, case, psi)
            return float(values[0].detach().double().norm())

        expected = row.get("predicted_seconds") or 0.0
        if expected <= SLOW_CALL or name == COMPILED:
            begin = time.perf_counter()
            self._guarded(lambda: evaluate(run, first, case, psi))
            row["first_call_seconds"] = time.perf_counter() - begin
        begin = time.perf_counter()
        peak = self._guarded(
            lambda: memory.peak_growth(lambda: row.update(value=call()), self.device)
        )
        estimate = time.perf_counter() - begin
        row["peak_growth_bytes"] = peak
        self._remember(name, case, estimate, peak)
        if estimate > 2 * self.plan.call_limit:
            raise NotMeasuredError(TOO_LONG, f"one call took {estimate:.1f} s")
        return _Candidate(name, _call(run, case, psi), row, estimate)

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
        wanted = {one.name: one.wanted_samples(self.plan.row_seconds) for one in candidates}
        turn = 0

        def next_inputs() -> Inputs:
            nonlocal turn
            turn += 1
            return inputs[turn % len(inputs)]

        for round_ in range(max(wanted.values())):
            for candidate in list(candidates):
                late = time.monotonic() > self.deadline and candidate.samples
                if round_ >= wanted[candidate.name] or late or candidate.row["status"] != OK:
                    continue
                calls = calls_per_sample(candidate.estimate)
                run = candidate.run
                try:
                    seconds = self._guarded(
                        lambda run=run, calls=calls: seconds_of(
                            lambda: run(next_inputs()), self.device, calls
                        )
                    )
                    candidate.samples.append(seconds)
                except NotMeasuredError as reason:
                    candidate.row.update(status=reason.status, reason=reason.reason)

    def _complete(self, candidate: _Candidate, case: Case, floor: Floor | None) -> None:
        row = candidate.row
        if row["status"] != OK:
            return
        summary = summarise(candidate.samples)
        self._remember(candidate.name, case, summary.median, None)
        row.update(
            median_seconds=summary.median,
            lower_quartile_seconds=summary.lower,
            upper_quartile_seconds=summary.upper,
            seconds=candidate.samples,
            pairs_per_second=case.batch**2 / summary.median,
        )
        if floor is not None:
            row.update(
                floor=floor.as_dict(),
                floor_seconds=floor.seconds,
                floor_fraction=floor.seconds / summary.median,
            )

    def _compare_values(self, candidates: list[_Candidate], case: Case) -> None:
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

    def _remember(self, name: str, case: Case, seconds: float, peak: int | None) -> None:
        history = self._history.setdefault((name, case.series), _History())
        if history.batches and history.batches[-1] == case.batch:
            history.seconds[-1] = seconds
        else:
            history.batches.append(case.batch)
            history.seconds.append(seconds)
        if peak:
            history.memory_batches.append(case.batch)
            history.bytes.append(peak)

    def _release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def growth_of(rows: list[Row]) -> list[Row]:
    """Exponents of time and memory over the batch, for every series with two sizes or more."""
    series: dict[tuple[object, ...], list[Row]] = {}
    keys = ("implementation", "workload", "passes", "direction", "frames", "dim", "dtype")
    for row in rows:
        if row["status"] == OK:
            series.setdefault(tuple(row[key] for key in keys), []).append(row)
    fits = []
    for key, members in series.items():
        if len(members) < 2:
            continue
        batches = [row["batch"] for row in members]
        peaks = [row["peak_growth_bytes"] or 0 for row in members]
        fits.append(
            {
                **dict(zip(keys, key, strict=True)),
                "batches": batches,
                "time_exponent": growth.exponent(batches, [r["median_seconds"] for r in members]),
                "memory_exponent": growth.exponent(batches, peaks),
            }
        )
    return fits


def _call(run: Run, case: Case, psi: CrossAttentionPsi) -> Callable[[Inputs], object]:
    return lambda inputs: evaluate(run, inputs, case, psi)


def _compare_with_published(rows: list[Row]) -> None:
    """Ratio to the published formulas as published, in the same case and run."""
    published = next((row for row in rows if row["implementation"] == PUBLISHED), None)
    if published is None or published["status"] != OK:
        return
    for row in rows:
        if row["status"] == OK:
            row["times_published"] = published["median_seconds"] / row["median_seconds"]


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in text for words in ("out of memory", "can't allocate memory", "failed to allocate")
    )
