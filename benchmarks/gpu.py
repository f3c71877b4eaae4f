"""Everything that a GPU machine has to say, in one call, offline.

    python -m benchmarks.gpu --output runs/gpu      # torch, triton, numpy and a compiler are enough
    python -m benchmarks.gpu --steps build peers    # some steps alone, in the order given here
    python -m benchmarks.gpu --check                # a rehearsal without a GPU, in a minute

Builds the extension, runs the tests marked ``gpu``, looks for wrong memory accesses, and measures,
most important first. Each step's files are written as it goes, so a run that is stopped leaves
what it has. ``summary.json`` says what came of every step; ``log.txt`` holds their output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.cases import CROSS_ATTENTION, PSIS

MODULE = "benchmarks.similarity"
MINUTES = 30.0
# The most that a step of a rehearsal may take, on a busy machine too.
REHEARSAL_SECONDS = 240.0
# What a step that took too long has to say goodbye.
GRACE_SECONDS = 15.0
# A step is not begun with less than this left.
LEAST_SECONDS = 10.0
# Tests that need torch, triton and numpy alone.
_BARE_TESTS = ("tests/head", "tests/discovla", "tests/conformance", "tests/ops", "tests/kernels")
# Stands for the seconds that a measurement may take.
_BUDGET = "{budget}"
# What a measurement needs beyond its budget: imports, the case that is running, the plot.
_MARGIN = 25.0
# What pytest returns where no test was collected.
_NO_TESTS = 5


@dataclass
class Step:
    """A command, the most seconds it may take, and why it cannot run, if so."""

    name: str
    command: list[str]
    most_seconds: float
    impossible: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a step: ``ok``, ``failed``, ``stopped`` or ``skipped``."""

    name: str
    status: str
    seconds: float
    detail: str
    command: str


def steps(output: Path, check: bool) -> list[Step]:
    """The steps, most important first."""
    device = "cpu" if check else "cuda"
    tiny = "--batch 8 --frames 3 --dim 16 --row-seconds 0 --implementations published native"
    quick = tiny if check else "--preset quick"
    peers = "--batch 8 --frames 3 --dim 16 --row-seconds 0 --implementations torch memeff native"
    wanted = [
        Step("environment", _python("-m", "garevla.utils.env", "--json"), 60),
        _build(check),
        _tests(check),
        _sanitizer("memcheck", check),
        _measure("similarity", quick, output, device, 190),
        _measure("scaling", "--preset scaling", output, device, 150),
        _measure("similarity-frames-64", "--preset quick --frames 64", output, device, 120),
        _measure("scaling-frames-64", "--preset scaling --frames 64", output, device, 100),
        _measure("similarity-bfloat16", "--preset quick --dtype bfloat16", output, device, 60),
        _measure("peers", f"--peers {peers if check else ''}", output, device, 120),
        _retrieval(output, device, check),
        *(
            _measure(f"similarity-{psi}", f"--psi {psi} {quick}", output, device, 90)
            for psi in PSIS
            if psi != CROSS_ATTENTION
        ),
        _sanitizer("racecheck", check),
    ]
    # A rehearsal shows each kind of step once.
    if not check:
        return wanted
    again = ("racecheck", "scaling", "similarity-")
    return [
        replace(step, most_seconds=REHEARSAL_SECONDS)
        for step in wanted
        if not step.name.startswith(again)
    ]


def run(
    output: Path, check: bool, seconds: float, names: Sequence[str] | None = None
) -> list[Outcome]:
    """Run all steps, or those named, within ``seconds``, writing summary.json after each.

    Raises:
        ValueError: a name that no step has.
    """
    chosen = steps(output, check)
    if names is not None:
        known = [step.name for step in chosen]
        if unknown := set(names) - set(known):
            raise ValueError(f"there is no step {sorted(unknown)}, only {known}")
        chosen = [step for step in chosen if step.name in names]
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    with open(output / "log.txt", "w", encoding="utf-8") as log:
        for step in chosen:
            outcomes.append(_run_step(step, deadline - time.monotonic(), log.write))
            log.flush()
            last = outcomes[-1]
            print(
                f"{last.name:22s}{last.status:9s}{last.seconds:6.1f} s  {last.detail}", flush=True
            )
            document = {"check": check, "steps": [asdict(outcome) for outcome in outcomes]}
            (output / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="%(default)s")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most; %(default)g")
    parser.add_argument("--check", action="store_true", help="rehearse on the CPU with tiny sizes")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="only these; default: all")
    args = parser.parse_args(arguments)
    try:
        outcomes = run(args.output, args.check, 60 * args.minutes, args.steps)
    except ValueError as error:
        parser.error(str(error))
    failed = [outcome.name for outcome in outcomes if outcome.status in ("failed", "stopped")]
    print(f"{args.output}: " + (f"not well: {', '.join(failed)}" if failed else "all well"))
    return 1 if failed else 0


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _build(check: bool) -> Step:
    if check:
        # A rehearsal must not touch the library that others are using.
        return Step("build", _python("setup.py", "--version"), 60)
    return Step("build", _python("setup.py", "build_ext", "--inplace"), 240)


def _tests(check: bool) -> Step:
    options = ["-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    # A file that cannot be imported must not keep the others from being run.
    options.append("--continue-on-collection-errors")
    if check:
        options.append("--collect-only")
    elif importlib.util.find_spec("xdist"):
        # Most of the time Triton compiles, for each shape anew.
        options += ["-n", str(min(15, os.cpu_count() or 1))]
    complete = importlib.util.find_spec("open_clip") and not check
    folders = ["tests"] if complete else [folder for folder in _BARE_TESTS if Path(folder).is_dir()]
    missing = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    return Step("tests", _python("-m", "pytest", *options, *folders), 360, missing)


def _measure(name: str, options: str, output: Path, device: str, seconds: float) -> Step:
    files = {kind: str(output / f"{name}.{kind}") for kind in ("json", "csv", "png")}
    command = _python("-m", MODULE, *shlex.split(options), "--device", device)
    command += ["--budget", _BUDGET, "--json", files["json"], "--csv", files["csv"]]
    return Step(name, [*command, "--plot", files["png"]], seconds + _MARGIN)


def _retrieval(output: Path, device: str, check: bool) -> Step:
    sizes = "--texts 20 --videos 30 --frames 3 --dim 16 --slice 4 4" if check else "--videos 100000"
    command = _python("-m", "benchmarks.retrieval", *shlex.split(sizes), "--device", device)
    return Step("retrieval", [*command, "--json", str(output / "retrieval.json")], 60)


def _sanitizer(tool: str, check: bool) -> Step:
    """NVIDIA's checker over one small case; in a rehearsal that case alone."""
    small = "--batch 37 --frames 5 --dim 64 --row-seconds 0 --implementations native eager"
    case = _python("-m", MODULE, *shlex.split(small), "--device", "cpu" if check else "cuda")
    sanitizer = shutil.which("compute-sanitizer")
    # Sanitizers see an allocation only where the allocator of torch does not keep it.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if check:
        return Step(tool, case, 60, None, environment)
    missing = None if sanitizer else "compute-sanitizer is not installed"
    prefix = [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    return Step(tool, [*prefix, *case], 100, missing, environment)


def _run_step(step: Step, left: float, write: Callable[[str], object]) -> Outcome:
    limit = min(step.most_seconds, left)
    budget = f"{max(1.0, limit - _MARGIN):.0f}"
    arguments = [budget if part == _BUDGET else part for part in step.command]
    command = shlex.join(arguments)
    write(f"\n=== {step.name}: {command}\n")
    if step.impossible or left < LEAST_SECONDS:
        reason = step.impossible or "no time is left"
        write(reason + "\n")
        return Outcome(step.name, "skipped", 0.0, reason, command)
    begin = time.monotonic()
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_take_interrupts,
    )
    try:
        text, _ = process.communicate(timeout=limit)
        ended = True
    except subprocess.TimeoutExpired:
        text = _interrupted(process)
        ended = False
    write(text)
    seconds = time.monotonic() - begin
    told = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    detail = told[-1][:100] if told else ""
    if not ended:
        return Outcome(step.name, "stopped", seconds, f"after {limit:.0f} s; {detail}", command)
    good = (0, _NO_TESTS) if step.name == "tests" else (0,)
    status = "ok" if process.returncode in good else "failed"
    return Outcome(step.name, status, seconds, detail, command)


def _take_interrupts() -> None:
    """Of what runs in the background, a shell has them ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(process: subprocess.Popen[str]) -> str:
    """End it, and what it has said: pytest tells on being interrupted what has failed so far."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


if __name__ == "__main__":
    sys.exit(main())
