"""The demo: real videos are made, decoded and searched by a model trained on the spot.

DiscoVLA's modes adapt a CLIP that knows images and words already; here that is a tiny one, trained
on single frames first. In mode ``gare`` it is trained whole, from random weights.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from garevla.data.dataset import VideoDataset
from garevla.data.frame_sampling import Sampling
from garevla.data.layouts.msrvtt import TEST_FILE, load_msrvtt
from garevla.data.pseudo_captions import PseudoCaptions
from garevla.data.splits import Caption
from garevla.data.synthetic import (
    ANNOTATION_DIR,
    PSEUDO_CAPTION_FILE,
    VIDEO_DIR,
    generate_dataset,
)
from garevla.data.video import read_frames
from garevla.evaluation import (
    RetrievalMetrics,
    contact_sheet,
    describe_queries,
    encode_split,
    metrics_table,
)
from garevla.increments.settings import DropoutMode
from garevla.search import IndexConfig, index_videos
from garevla.training.config import (
    ConfigError,
    Corrects,
    DataConfig,
    EvaluationConfig,
    Mode,
    ModelConfig,
    OptimizerConfig,
    Psi,
    RunConfig,
    TrainConfig,
    check_at_least,
)
from garevla.training.data import make_dataset
from garevla.training.image_pretraining import pretrain_clip
from garevla.training.log import read_metrics
from garevla.training.loop import train
from garevla.training.model import load_model
from garevla.utils.locks import lock_folder

_MAX_FRAMES = 8
_CONTEXT_LENGTH = 20


@dataclass
class DemoConfig:
    """The demo's size. The defaults take a few minutes on two CPU cores."""

    output_dir: Path = Path("runs/demo")
    """Folder for the videos, the trained model and the pictures; an interrupted demo goes on."""
    mode: Mode = "gare+discovla"
    """What is trained; see 'garevla train --help'."""
    psi: Psi = "cross_attention"
    """The increment network; likewise."""
    psi_dropout_mode: DropoutMode = "video"
    """Its dropout masks; likewise."""
    corrects: Corrects = "text"
    """What its increments are added to; likewise."""
    num_train: int = 800
    """Videos to train on."""
    num_test: int = 100
    """Held-out videos to search; none shows what a training video shows."""
    image_steps: int | None = None
    """Steps in which the tiny CLIP learns from single frames first; 0 begins with random weights.
    Default: 300, and 0 in mode gare, which trains all of it anyway."""
    epochs: int = 10
    """Passes over the training captions."""
    num_queries: int = 6
    """Captions whose best videos are drawn."""
    seed: int = 0
    """Seed of the videos and of the training."""

    def __post_init__(self) -> None:
        if self.image_steps is None:
            self.image_steps = 0 if self.mode == "gare" else 300
        check_at_least("num_queries", self.num_queries, 1)
        if self.mode != "gare" and self.image_steps < 1:
            raise ConfigError(
                f"mode {self.mode!r} adapts a CLIP that knows images and words: image_steps must "
                f"be at least 1, got {self.image_steps}"
            )


def run_demo(config: DemoConfig) -> dict[str, RetrievalMetrics]:
    """Make the videos, train, evaluate, and draw what a few queries find.

    Writes below ``config.output_dir``: ``data/``, ``run/`` (see
    :func:`garevla.training.loop.train`), ``queries.png``, and ``library.garevla``, the index of the
    held-out videos, which are copied to ``held_out/``.

    Returns:
        The trained model's figures on the held-out videos.
    """
    with lock_folder(config.output_dir):
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> dict[str, RetrievalMetrics]:
    started = time.perf_counter()
    run = config.output_dir / "run"
    # Refuses settings that make no sense, before anything is made.
    settings = training_config(config)
    prepare(config)
    print(f"Training on {config.num_train} videos, mode {config.mode} …", flush=True)
    trained = train(settings)

    log = read_metrics(run / "metrics.jsonl")
    untrained = next(entry for entry in log if entry["kind"] == "evaluation")
    rows = {
        f"{name}, {stage}": values
        for name, last in trained.items()
        for stage, values in (
            ("untrained", RetrievalMetrics(**untrained[name])),
            ("trained", last),
        )
    }
    print(f"\n{config.num_test} held-out videos; chance R@1 is {100 / config.num_test:.1f} %\n")
    print(metrics_table(rows))
    if "protocol" in untrained:  # logs of earlier versions have none
        print(f"protocol: {untrained['protocol']}")

    picture = config.output_dir / "queries.png"
    _draw_queries(settings, run / "last.pt", picture, config.num_queries)
    print(f"\nQueries and what they find: {picture}\nTraining curves: {run / 'curves.png'}")
    print(f"What the increments do: garevla analyse {run}")
    library = _index_held_out(config, settings, run / "last.pt")
    data = settings.data
    query = load_msrvtt(data.annotation_dir, data.video_dir, "test").captions[0].text
    print(
        f"\nThe held-out videos are indexed; search them:\n"
        f"  garevla search {library} {shlex.quote(query)}\n"
        f"  garevla serve {library}"
    )
    print(f"Done in {time.perf_counter() - started:.0f} s")
    return trained


def prepare(config: DemoConfig, clip_model: str = "tiny") -> None:
    """Make the videos and, where asked for, train the tiny CLIP on their frames, once.

    Args:
        clip_model: the tiny CLIP, as in :class:`garevla.encoders.ClipEncoder`.
    """
    data, clip = config.output_dir / "data", config.output_dir / "clip.pt"
    if not (data / ANNOTATION_DIR / TEST_FILE).exists():
        print(f"Making {config.num_train + config.num_test} H.264 videos in {data} …", flush=True)
        generate_dataset(
            data, num_train=config.num_train, num_test=config.num_test, seed=config.seed
        )
    if config.image_steps and not clip.exists():
        print("Training a tiny CLIP on single frames …", flush=True)
        images, captions = _captioned_frames(data)
        pretrain_clip(
            clip_model,
            images,
            captions,
            clip,
            context_length=_CONTEXT_LENGTH,
            steps=config.image_steps,
            seed=config.seed,
            progress=sys.stderr.isatty(),
        )


def training_config(config: DemoConfig) -> TrainConfig:
    """Settings of the demo's training."""
    data = config.output_dir / "data"
    adapted = config.mode != "gare"
    return TrainConfig(
        data=DataConfig(
            annotation_dir=data / ANNOTATION_DIR,
            video_dir=data / VIDEO_DIR,
            max_frames=_MAX_FRAMES,
            pseudo_captions=data / ANNOTATION_DIR / PSEUDO_CAPTION_FILE if adapted else None,
            keep_in_memory=True,
            num_workers=0,
        ),
        model=ModelConfig(
            mode=config.mode,
            name="tiny",
            pretrained=str(config.output_dir / "clip.pt") if config.image_steps else None,
            temporal_layers=0 if config.mode == "discovla" else 2,
            context_length=_CONTEXT_LENGTH,
            psi=config.psi,
            psi_dropout=0.1,
            psi_dropout_mode=config.psi_dropout_mode,
            corrects=config.corrects,
            vision_fusion_blocks=2,
            text_fusion_blocks=1,
        ),
        optimizer=OptimizerConfig(
            epochs=config.epochs,
            # Order is learnt where a batch holds both of two twins, as larger ones do more often.
            batch_size=100 if adapted else 50,
            learning_rate=3e-3 if adapted else 1e-3,
            clip_lr_scale=1.0,
            weight_decay=0.05,
        ),
        evaluation=EvaluationConfig(at_start=True, analyse=True),
        run=RunConfig(output_dir=config.output_dir / "run", seed=config.seed, resume=True),
    )


def _captioned_frames(data: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Every sampled frame of the training videos, and what may be said of it.

    That is what it shows and, in the second half of a video, the video's captions: the text tower
    is to know their words before it is frozen, as CLIP's does. Frames of the whole video would
    teach it that order twins mean the same, since theirs are alike.
    """
    split = load_msrvtt(data / ANNOTATION_DIR, data / VIDEO_DIR, "train-9k")
    pseudo_captions = PseudoCaptions.load(data / ANNOTATION_DIR / PSEUDO_CAPTION_FILE)
    captions_of: dict[str, list[Caption]] = {}
    for caption in split.captions:
        captions_of.setdefault(caption.video_id, []).append(caption)
    images, captions = [], []
    for video_id, path in split.videos.items():
        frames = read_frames(path, Sampling(_MAX_FRAMES))
        video_captions = captions_of[video_id]
        texts = [caption.text for caption in video_captions]
        frame_captions = pseudo_captions.find(video_captions[0])
        assert frame_captions is not None  # they were generated with the videos
        for index, frame_caption in enumerate(frame_captions):
            in_second_half = 2 * index >= len(frames)
            captions.append([frame_caption, *(texts if in_second_half else [])])
        images.append(frames)
    return np.concatenate(images), captions


def _index_held_out(config: DemoConfig, settings: TrainConfig, checkpoint: Path) -> Path:
    library, folder = config.output_dir / "library.garevla", config.output_dir / "held_out"
    folder.mkdir(exist_ok=True)
    split = load_msrvtt(settings.data.annotation_dir, settings.data.video_dir, "test")
    for path in split.videos.values():
        if not (folder / path.name).exists():
            shutil.copy2(path, folder)
    # An index of an earlier run of the demo, of another model, would be refused.
    shutil.rmtree(library, ignore_errors=True)
    print(f"\nIndexing {len(split.videos)} videos in {folder} …", flush=True)
    index_videos(
        IndexConfig(
            video_dir=folder,
            output=library,
            model=str(checkpoint),
            segments="whole",
            device=settings.run.device,
        ),
        progress=sys.stderr.isatty(),
    )
    return library


def _draw_queries(settings: TrainConfig, checkpoint: Path, picture: Path, num_queries: int) -> None:
    model, _ = load_model(checkpoint)
    split = load_msrvtt(settings.data.annotation_dir, settings.data.video_dir, "test")
    videos = make_dataset(VideoDataset, split, settings.data, model.encoder)
    encoded = encode_split(model, videos, split.captions)
    # Spread over the test set, hits and misses as they come.
    step = max(1, len(split.captions) // num_queries)
    queries = list(range(0, len(split.captions), step))[:num_queries]
    contact_sheet(picture, describe_queries(model, encoded, split, queries))
