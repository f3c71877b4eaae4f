"""A small data set in the MSR-VTT layout, of real H.264 videos in which the order of events counts.

See :mod:`garevla.data.synthetic.descriptions` for what the videos show.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from garevla.data._optional import require
from garevla.data.frame_sampling import frame_indices
from garevla.data.layouts.msrvtt import CAPTION_FILE, TEST_FILE, TRAIN_FILES
from garevla.data.synthetic.animation import Animation
from garevla.data.synthetic.descriptions import (
    COLORS,
    MOTIONS,
    RADII,
    ClipDescription,
    all_descriptions,
)
from garevla.data.synthetic.shapes import SHAPES

ANNOTATION_DIR = "annotations"
VIDEO_DIR = "videos"
PSEUDO_CAPTION_FILE = "pseudo_captions.json"

_STORIES = ("single", "return", "turn", "sequence")


@dataclass(frozen=True)
class SyntheticConfig:
    """The world's vocabulary, and the form of the videos.

    Attributes:
        colors, shapes, sizes, motions: words in use, of those known.
        story_weights: share of clips with one motion, with a motion there and back, with two
            motions around a corner, and with two things one after the other.
        frame_size: side of the square frames in pixels, even.
        frame_rate: frames per second.
        seconds: from the first frame to the last; both are on the 1-fps grid, so that the sampled
            frames of order twins are alike.
        captions_per_video: the least and the most captions of a training video.
        test_captions_per_video: captions of a test video.
    """

    colors: tuple[str, ...] = tuple(COLORS)[:6]
    shapes: tuple[str, ...] = SHAPES[:4]
    sizes: tuple[str, ...] = tuple(RADII)
    motions: tuple[str, ...] = MOTIONS
    story_weights: tuple[float, float, float, float] = (0.4, 0.2, 0.1, 0.3)
    frame_size: int = 64
    frame_rate: int = 8
    seconds: int = 7
    captions_per_video: tuple[int, int] = (2, 3)
    test_captions_per_video: int = 1

    def __post_init__(self) -> None:
        for name, known in (
            ("colors", COLORS),
            ("shapes", SHAPES),
            ("sizes", RADII),
            ("motions", MOTIONS),
        ):
            words = getattr(self, name)
            unknown = [word for word in words if word not in known]
            if unknown or not words or len(set(words)) != len(words):
                raise ValueError(f"{name} must be distinct words of {list(known)}, got {words}")
        if len(self.story_weights) != len(_STORIES) or min(self.story_weights) < 0:
            raise ValueError(f"story_weights must be a weight each for {_STORIES}")
        if self.frame_size < 16 or self.frame_size % 2:
            raise ValueError(f"frame_size must be even and at least 16, got {self.frame_size}")
        least, most = self.captions_per_video
        if not 1 <= least <= most or self.test_captions_per_video < 1:
            raise ValueError("every video needs a caption, and the least is at most the most")
        if self.frame_rate < 1 or self.seconds < 1:
            raise ValueError("frame_rate and seconds must be at least 1")

    @property
    def num_frames(self) -> int:
        """Frames of each video."""
        return self.frame_rate * self.seconds + 1


def generate_dataset(
    root: str | os.PathLike[str],
    *,
    num_train: int = 800,
    num_test: int = 100,
    seed: int = 0,
    config: SyntheticConfig | None = None,
) -> None:
    """Write a data set: ``root/annotations`` and ``root/videos``.

    The annotations are those of MSR-VTT, and ``pseudo_captions.json``: video id, underscore and
    caption -> what each frame shows that is taken by default (:class:`garevla.data.Sampling`).
    They are written last, the test csv at the very end: where it exists, the data set is whole.

    The same arguments give the same videos and annotations.

    Args:
        root: folder to write into; made where it does not exist.
        num_train, num_test: videos, at least 2 and 1. What they show is disjoint, twins of order
            are on the same side, and each word that a test video needs occurs in training.
        seed: of everything.
        config: vocabulary and form.

    Raises:
        ValueError: more videos than there are different descriptions.
        ImportError: PyAV is not installed.
    """
    config = config or SyntheticConfig()
    train, test = draw_descriptions(num_train, num_test, seed=seed, config=config)
    root = Path(root)
    (root / ANNOTATION_DIR).mkdir(parents=True, exist_ok=True)
    (root / VIDEO_DIR).mkdir(parents=True, exist_ok=True)

    video_ids = [f"video{index}" for index in range(len(train) + len(test))]
    captions: dict[str, list[str]] = {}
    pseudo_captions: dict[str, list[str]] = {}
    for index, (video_id, description) in enumerate(zip(video_ids, train + test, strict=True)):
        animation = animate(description, seed, index)
        frames = animation.frames(config.num_frames, config.frame_size)
        _write_video(root / VIDEO_DIR / f"{video_id}.mp4", frames, config.frame_rate)
        generator = np.random.default_rng([seed, index, 1])
        if index < len(train):
            least, most = config.captions_per_video
            wanted = int(generator.integers(least, most + 1))
        else:
            wanted = config.test_captions_per_video
        captions[video_id] = _different_captions(description, wanted, generator)
        seen = frame_captions(animation, config)
        pseudo_captions.update({f"{video_id}_{text}": seen for text in captions[video_id]})
    _write_annotations(root / ANNOTATION_DIR, captions, len(train), pseudo_captions)


def draw_descriptions(
    num_train: int, num_test: int, *, seed: int = 0, config: SyntheticConfig | None = None
) -> tuple[list[ClipDescription], list[ClipDescription]]:
    """Draw what the videos of both splits show, all different.

    Raises:
        ValueError: as :func:`generate_dataset`.
    """
    config = config or SyntheticConfig()
    if num_train < 2 or num_test < 1:
        raise ValueError(f"need num_train >= 2 and num_test >= 1, got {num_train} and {num_test}")
    generator = np.random.default_rng([seed, 0])
    groups = _twins(config)
    train_groups = _draw(groups, num_train, config, generator, "training")
    train = [twin for group in train_groups for twin in group][:num_train]
    seen = frozenset().union(*(description.attributes for description in train))
    taken = set(train_groups)
    testable = [
        group
        for group in groups
        if group not in taken and all(twin.attributes <= seen for twin in group)
    ]
    test_groups = _draw(testable, num_test, config, generator, "test")
    test = [twin for group in test_groups for twin in group][:num_test]
    return _shuffled(train, generator), _shuffled(test, generator)


def animate(description: ClipDescription, seed: int, index: int) -> Animation:
    """Return the clip that :func:`generate_dataset` shows in its ``index``-th video."""
    return Animation(description, np.random.default_rng([seed, index, 0]))


def frame_captions(animation: Animation, config: SyntheticConfig) -> list[str]:
    """Say what each frame shows that is taken of a video by default."""
    indices = frame_indices(config.num_frames, config.frame_rate)
    return [animation.words(index / (config.num_frames - 1)) for index in indices]


Twins = tuple[ClipDescription, ClipDescription]


def _twins(config: SyntheticConfig) -> list[Twins]:
    pairs: list[Twins] = []
    seen: set[ClipDescription] = set()
    everything = all_descriptions(config.colors, config.shapes, config.sizes, config.motions)
    possible = set(everything)
    for description in everything:
        twin = description.order_twin()
        if description not in seen and twin in possible:
            seen.update((description, twin))
            pairs.append((description, twin))
    return pairs


def _draw(
    groups: list[Twins],
    num_videos: int,
    config: SyntheticConfig,
    generator: np.random.Generator,
    split: str,
) -> list[Twins]:
    counts = {story: sum(g[0].story == story for g in groups) for story in _STORIES}
    shares = {
        story: weight / counts[story]
        for story, weight in zip(_STORIES, config.story_weights, strict=True)
        if counts[story]
    }
    weights = np.array([shares[group[0].story] for group in groups])
    needed = -(-num_videos // 2)
    if needed > np.count_nonzero(weights):
        raise ValueError(
            f"there are {2 * np.count_nonzero(weights)} different descriptions for {num_videos} "
            f"{split} videos: ask for fewer, for more training videos, or for more words"
        )
    chosen = generator.choice(len(groups), needed, replace=False, p=weights / weights.sum())
    return [groups[index] for index in chosen]


def _shuffled(
    descriptions: list[ClipDescription], generator: np.random.Generator
) -> list[ClipDescription]:
    return [descriptions[index] for index in generator.permutation(len(descriptions))]


def _different_captions(
    description: ClipDescription, wanted: int, generator: np.random.Generator
) -> list[str]:
    different: dict[str, None] = {}
    # Every description has several phrasings, but not any number of them.
    for _ in range(20 * wanted):
        different[description.caption(generator)] = None
        if len(different) == wanted:
            break
    return list(different)


def _write_video(path: Path, frames: np.ndarray, frame_rate: int) -> None:
    av = require("av")
    partial = path.with_name(f".{path.name}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread and a constant quantizer, because the same frames must give the same bytes:
        # x264's rate control (its macroblock tree) now and then decides otherwise.
        stream.options = {"preset": "veryfast", "qp": "18", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _write_annotations(
    folder: Path,
    captions: dict[str, list[str]],
    num_train: int,
    pseudo_captions: dict[str, list[str]],
) -> None:
    video_ids = list(captions)
    train, test = video_ids[:num_train], video_ids[num_train:]
    videos = [
        {"video_id": i, "id": index, "split": "train" if index < num_train else "test"}
        for index, i in enumerate(video_ids)
    ]
    every_caption = [(i, text) for i in video_ids for text in captions[i]]
    sentences = [
        {"video_id": i, "sen_id": index, "caption": text}
        for index, (i, text) in enumerate(every_caption)
    ]
    _write_json(folder / CAPTION_FILE, {"videos": videos, "sentences": sentences})
    _write_json(folder / PSEUDO_CAPTION_FILE, pseudo_captions)
    # MSR-VTT's 7k training videos are a part of its 9k.
    fewer = train[: max(1, num_train * 7 // 9)]
    _write_csv(folder / TRAIN_FILES["train-9k"], ["video_id"], [[i] for i in train])
    _write_csv(folder / TRAIN_FILES["train-7k"], ["video_id"], [[i] for i in fewer])
    pairs = [(i, text) for i in test for text in captions[i]]
    _write_csv(
        folder / TEST_FILE,
        ["key", "vid_key", "video_id", "sentence"],
        [[f"ret{n}", f"msr{i[5:]}", i, text] for n, (i, text) in enumerate(pairs)],
    )


def _write_json(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file, indent=1)


def _write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
