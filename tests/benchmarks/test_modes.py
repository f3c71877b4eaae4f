from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.modes import VARIANTS, other_runs, settings_of
from benchmarks.report import write_results
from garevla.demo import DemoConfig

DEMO = DemoConfig(output_dir=Path("runs/modes"), image_steps=300, epochs=5)


@pytest.mark.parametrize(
    ("name", "psi", "dropout_mode"),
    [
        ("gare+discovla", "cross_attention", "video"),
        ("gap MLP", "gap_mlp", "video"),
        ("pair dropout", "cross_attention", "pair"),
    ],
)
def test_networks_are_compared_in_the_joint_mode(name, psi, dropout_mode):
    model = settings_of(name, 1, DEMO).model
    assert (model.mode, model.psi, model.psi_dropout_mode) == ("gare+discovla", psi, dropout_mode)
    assert model.psi_dropout > 0


def test_variants_have_folders_of_their_own():
    folders = {settings_of(name, seed, DEMO).run.output_dir for name in VARIANTS for seed in (0, 1)}
    assert len(folders) == 2 * len(VARIANTS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "modes.json"
    rows = [{"variant": name, "seed": seed} for name in ("gare", "gap MLP") for seed in (0, 1)]
    write_results(path, "benchmarks.modes", rows, demo=dataclasses.asdict(DEMO))
    return path


def test_other_runs_stay_with_their_origin(file: Path):
    document = json.loads(file.read_text())
    for row in document["results"]:
        # As in files that say it once for all rows.
        for name in ("machine", "versions", "commit", "command"):
            del row[name]
    # A setting that there was not yet.
    del document["demo"]["psi"]
    document["command"] = "python -m earlier"
    file.write_text(json.dumps(document))
    kept = other_runs(file, DEMO, variant=["gap MLP", "pair dropout"], seed=[0])
    assert [(row["variant"], row["seed"]) for row in kept] == [
        ("gare", 0),
        ("gare", 1),
        ("gap MLP", 1),
    ]
    assert {row["command"] for row in kept} == {"python -m earlier"}
    assert all("torch" in row["versions"] and row["machine"] for row in kept)


def test_runs_of_another_demo_are_not_mixed(file: Path):
    longer = dataclasses.replace(DEMO, epochs=6)
    with pytest.raises(ValueError, match="another demo"):
        other_runs(file, longer, variant=["gap MLP"], seed=[0])
    assert other_runs(file, longer, variant=["gare", "gap MLP"], seed=[0, 1]) == []


def test_no_file_holds_no_runs(tmp_path: Path):
    assert other_runs(None, DEMO) == other_runs(tmp_path / "none", DEMO) == []
