"""The training modes and the parts of the joint one, compared on the demo's generated videos.

    python -m benchmarks.modes --json benchmarks/results/cpu-2core/modes.json

    python -m benchmarks.modes --variants 'gap MLP' 'pair dropout' --json …   # these alone

Videos and the tiny CLIP are made once; each variant is trained once per seed (initial weights,
order of the data, dropout). R@1 on the held-out videos after the last epoch, in per cent. Runs of
other variants and seeds that the file holds already stay in it, and say where they come from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.report import origin_of, write_results
from garevla.demo import DemoConfig, prepare, training_config
from garevla.training import train
from garevla.training.config import TrainConfig

UNION = "gare+discovla"
# Name -> mode, then changes of settings by section. What is "off" is so in gare+discovla; the last
# two replace its increment network, which is a cross-attention with a dropout mask per video.
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "gare": ("gare", {}),
    "discovla": ("discovla", {}),
    "gare+discovla": (UNION, {}),
    "head off": ("discovla", {"model": {"temporal_layers": 2}}),
    "fusion off": (
        UNION,
        {"model": {"vision_fusion_blocks": 0, "text_fusion_blocks": 0}},
    ),
    "distillation off": (UNION, {"loss": {"distillation_weight": 0.0}}),
    "temporal transformer off": (UNION, {"model": {"temporal_layers": 0}}),
    "gap MLP": (UNION, {"model": {"psi": "gap_mlp"}}),
    "pair dropout": (UNION, {"model": {"psi_dropout_mode": "pair"}}),
}


def settings_of(name: str, seed: int, demo: DemoConfig) -> TrainConfig:
    """The demo's settings with a variant's changes."""
    mode, changes = VARIANTS[name]
    settings = training_config(dataclasses.replace(demo, mode=mode))
    for section, values in changes.items():
        replaced = dataclasses.replace(getattr(settings, section), **values)
        settings = dataclasses.replace(settings, **{section: replaced})
    folder = demo.output_dir / "modes" / f"{name.replace(' ', '-')}-{seed}"
    run = dataclasses.replace(settings.run, output_dir=folder, seed=seed)
    return dataclasses.replace(settings, run=run)


def train_variant(name: str, seed: int, demo: DemoConfig) -> dict[str, Any]:
    """Train one variant in this process; returns its figures."""
    torch.set_num_threads(1)
    settings = settings_of(name, seed, demo)
    start = time.perf_counter()
    metrics = train(settings, progress=False)
    return {
        "variant": name,
        "seed": seed,
        "seconds": time.perf_counter() - start,
        **{direction: values.as_dict() for direction, values in metrics.items()},
    }


def other_runs(
    path: Path | None, demo: DemoConfig, **made: Collection[object]
) -> list[dict[str, Any]]:
    """Rows of a result file, if there is one, that are not about to be made again.

    Args:
        made: column -> values: every combination of them is about to be made.

    Raises:
        ValueError: they are of another demo.
    """
    if path is None or not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    kept = [
        {**origin_of(document), **row}
        for row in document["results"]
        if not all(row[column] in values for column, values in made.items())
    ]
    # A setting that is younger than the file had its default.
    theirs = {**dataclasses.asdict(DemoConfig()), **document["demo"]}
    if kept and theirs != {**dataclasses.asdict(demo), "output_dir": theirs["output_dir"]}:
        raise ValueError(f"{path} holds runs of another demo: {document['demo']}")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/modes"))
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), help="some of: %(default)s"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="variants trained at a time")
    parser.add_argument("--json", type=Path, help="write the results here, beside those of others")
    args = parser.parse_args()
    demo = DemoConfig(output_dir=args.output_dir, image_steps=300, epochs=args.epochs)
    try:
        others = other_runs(args.json, demo, variant=args.variants, seed=args.seeds)
    except ValueError as error:
        parser.error(str(error))
    prepare(demo)
    results: list[dict[str, Any]] = []
    # Finished runs are kept: training resumes, and a finished run returns its figures at once.
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(train_variant, name, seed, demo)
            for seed in args.seeds
            for name in args.variants
        ]
        for job in jobs:
            results.append(job.result())
            print(
                json.dumps({k: results[-1][k] for k in ("variant", "seed", "seconds")}), flush=True
            )
    print(tables.markdown(*tables.modes(results)))
    if args.json:
        rows = others + results
        write_results(args.json, "benchmarks.modes", rows, demo=dataclasses.asdict(demo))


if __name__ == "__main__":
    main()
