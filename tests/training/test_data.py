"""Splits and batches of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from garevla.data import AnnotationError
from garevla.data.layouts.msrvtt import CAPTION_FILE, TRAIN_FILES
from garevla.data.synthetic import PSEUDO_CAPTION_FILE
from garevla.training import ConfigError, train
from garevla.training.log import read_metrics
from tests.training.runs import MakeConfig

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def annotations(dataset: Path, tmp_path: Path) -> Path:
    """The data set's annotation files, to change."""
    return shutil.copytree(dataset / "annotations", tmp_path / "annotations")


def test_one_video_with_many_captions_leaves_the_batches_full(
    make_config: MakeConfig, annotations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = annotations / CAPTION_FILE
    content = json.loads(path.read_text())
    first = content["sentences"][0]
    more = [{**first, "caption": f"{first['caption']} {index}"} for index in range(40)]
    path.write_text(json.dumps({**content, "sentences": content["sentences"] + more}))
    config = make_config(
        "run", data={"annotation_dir": str(annotations)}, optimizer={"epochs": 1, "batch_size": 8}
    )
    with caplog.at_level("WARNING", logger="garevla"):
        train(config)
    # 2 captions of each of 16 videos, and 40 more of one, of which each batch has one.
    message = "5 batches of 7 captions an epoch, not of 8; each epoch leaves out 37 of 72 captions"
    assert message in caplog.text
    records = read_metrics(config.run.output_dir / "metrics.jsonl")
    assert [record["kind"] for record in records].count("train") == 5


def test_one_training_video_is_refused(make_config: MakeConfig, annotations: Path) -> None:
    path = annotations / TRAIN_FILES["train-9k"]
    header, first, *_ = path.read_text().splitlines()
    path.write_text(f"{header}\n{first}\n")
    config = make_config("run", data={"annotation_dir": str(annotations)})
    with pytest.raises(AnnotationError, match="split 'train-9k' has captions of 1 video that can"):
        train(config)


def test_a_context_length_at_which_all_captions_are_the_same(
    make_config: MakeConfig, annotations: Path
) -> None:
    path = annotations / CAPTION_FILE
    content = json.loads(path.read_text())
    for sentence in content["sentences"]:
        sentence["caption"] = f"a person {sentence['caption']}"
    path.write_text(json.dumps(content))
    data = {"annotation_dir": str(annotations)}
    message = "context_length 4 cuts all .* captions of split 'train-9k' to the same tokens"
    with pytest.raises(ConfigError, match=message):
        train(make_config("run", data=data, model={"context_length": 4}))
    with pytest.raises(ValueError, match="context_length must be between 3 and 24"):
        train(make_config("run", data=data, model={"context_length": 2}))


def test_mode_gare_says_that_it_leaves_pseudo_captions_aside(
    make_config: MakeConfig, dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = dataset / "annotations" / PSEUDO_CAPTION_FILE
    train(make_config("run", data={"pseudo_captions": str(path)}, optimizer={"epochs": 1}))
    assert f"mode gare has no use for pseudo captions: {path} is left aside" in caplog.text
