"""Kills one of the processes of ``garevla train`` at random moments, and resumes.

    python -m tests.training.kills --kills 20

After each kill all processes must have ended, with a message, and left a checkpoint that can be
read; a run that was killed a few times must end with the weights of one that was not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from garevla.training import TrainConfig
from garevla.training.checkpoint import load_checkpoint
from garevla.utils.files import write_text
from tests.training.runs import assert_same_end

KILLS_IN_A_RUN = 5


def torchrun(count: int, *command: object) -> subprocess.Popen[str]:
    """``torchrun --nproc_per_node COUNT -m garevla COMMAND``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc_per_node", str(count), "-m", "garevla"]
    return subprocess.Popen(
        [*launcher, *options, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start(config: TrainConfig, count: int) -> subprocess.Popen[str]:
    """``garevla train`` by so many processes."""
    folder = config.run.output_dir
    folder.mkdir(exist_ok=True)
    settings = folder.with_suffix(".yaml")
    write_text(settings, yaml.safe_dump(config.as_dict()))
    return torchrun(count, "train", "--config", settings)


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it prints until it ends with this code."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def log_bytes(config: TrainConfig) -> int:
    log = config.run.output_dir / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def train_and_kill(config: TrainConfig, count: int, victim: int, grown: int, delay: float) -> bool:
    """Train, and kill one process when the log has grown by so many bytes, and a moment later.

    Returns:
        Whether it was killed: the run may have ended before.
    """
    process = start(config, count)
    before = log_bytes(config)
    workers: list[int] = []
    while process.poll() is None and len(workers) < count:
        workers = _children(process.pid)
        time.sleep(0.01)
    # A resumed run cuts the log back to its checkpoint, and goes on from there.
    while process.poll() is None and log_bytes(config) < before + grown:
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None or victim >= len(workers):
        end(process)
        return False
    try:
        os.kill(workers[victim], signal.SIGKILL)
    except ProcessLookupError:
        end(process)
        return False
    output, _ = process.communicate(timeout=120)
    if process.returncode == 0:
        return False
    assert "Signal 9 (SIGKILL)" in output, output
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    last = config.run.output_dir / "last.pt"
    if last.exists():
        load_checkpoint(last)
    return True


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


def main() -> None:
    from garevla.data.synthetic import SyntheticConfig, generate_dataset
    from tests.training.conftest import small_config, write_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    root = Path(tempfile.mkdtemp())
    generate_dataset(
        root, num_train=16, num_test=8, config=SyntheticConfig(captions_per_video=(2, 2))
    )
    write_model(root)
    sections = {"data": {"keep_in_memory": False}, "optimizer": {"epochs": 6}}
    sections["run"] = {"save_every_steps": 3, "resume": True}
    whole = small_config(root, root / "whole", **sections)
    end(start(whole, args.processes))
    length = log_bytes(whole)
    kills, runs = 0, 0
    while kills < args.kills:
        killed = small_config(root, root / f"killed{runs}", **sections)
        for _ in range(min(KILLS_IN_A_RUN, args.kills - kills)):
            victim = moments.randrange(args.processes)
            # From the start of the processes to the next few epochs.
            grown = moments.randrange(-length // 10, length // 3)
            delay = moments.uniform(0, 8) if grown <= 0 else moments.uniform(0, 0.3)
            if not train_and_kill(killed, args.processes, victim, grown, delay):
                break
            kills += 1
            last = killed.run.output_dir / "last.pt"
            step = load_checkpoint(last)["progress"]["step"] if last.exists() else "none"
            print(
                f"kill {kills}: process {victim} after {log_bytes(killed)} of {length} bytes of "
                f"the log; last checkpoint: step {step}",
                flush=True,
            )
        end(start(killed, args.processes))
        assert_same_end(whole, killed)
        assert not list(killed.run.output_dir.glob("*.tmp"))
        runs += 1
        print(f"run {runs} ended with the weights, optimizer and log of one without kills")


if __name__ == "__main__":
    main()
