from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from garevla.data import SyntheticConfig, generate_dataset, load_msrvtt, read_frames
from garevla.data.synthetic import animate, draw_descriptions
from garevla.data.synthetic.animation import Animation
from garevla.data.synthetic.descriptions import (
    COLORS,
    MOTIONS,
    OPPOSITES,
    ClipDescription,
    Thing,
    all_descriptions,
)
from garevla.data.synthetic.shapes import SHAPES

SAMPLED_TIMES = np.linspace(0, 1, 8)


def everything() -> list[ClipDescription]:
    config = SyntheticConfig()
    return all_descriptions(config.colors, config.shapes, config.sizes, config.motions)


def clip(*motions: str, shape: str = "circle") -> ClipDescription:
    size = None if motions[0] in ("grows", "shrinks") else "small"
    return ClipDescription((Thing("red", shape, size),), motions)


def states(description: ClipDescription, seed: int) -> list[list]:
    animation = Animation(description, np.random.default_rng(seed))
    return [animation.state(time) for time in SAMPLED_TIMES]


# --------------------------------------------------------------------- descriptions


def test_there_are_many_descriptions_and_all_have_an_order_twin():
    found = everything()
    assert len(set(found)) == len(found) >= 1500
    for description in found:
        twin = description.order_twin()
        assert twin != description
        assert twin.order_twin() == description
        assert twin.story == description.story
        assert twin in set(found) or len(found) > 3000
    assert {description.story for description in found} == {"single", "return", "turn", "sequence"}


def test_a_caption_has_one_meaning():
    meanings: dict[str, ClipDescription] = {}
    generator = np.random.default_rng(0)
    for description in everything():
        for _ in range(6):
            caption = description.caption(generator)
            assert meanings.setdefault(caption, description) == description
            for thing in description.things:
                assert thing.color in caption
                assert thing.shape in caption


def test_splits_are_disjoint_and_test_words_occur_in_training():
    for seed in range(3):
        train, test = draw_descriptions(300, 60, seed=seed)
        assert (len(train), len(test)) == (300, 60)
        assert len(set(train) | set(test)) == 360
        seen = set().union(*(description.attributes for description in train))
        assert all(description.attributes <= seen for description in test)
        # An order twin on the other side would give away what no training clip should tell.
        for side in (train, test):
            assert {description.order_twin() for description in side} == set(side)


def test_small_training_splits_limit_the_words_of_the_test_split():
    train, test = draw_descriptions(6, 8, seed=1)
    seen = set().union(*(description.attributes for description in train))
    assert all(description.attributes <= seen for description in test)


def test_stories_have_their_shares():
    train, _ = draw_descriptions(1000, 2, seed=0)
    counts = Counter(description.story for description in train)
    assert counts["sequence"] > counts["turn"]
    only = SyntheticConfig(story_weights=(1.0, 0.0, 0.0, 0.0))
    train, test = draw_descriptions(60, 10, seed=0, config=only)
    assert {description.story for description in train + test} == {"single"}


def test_draws_repeat_and_depend_on_the_seed():
    assert draw_descriptions(50, 10, seed=4) == draw_descriptions(50, 10, seed=4)
    assert draw_descriptions(50, 10, seed=4) != draw_descriptions(50, 10, seed=5)


def test_more_videos_than_descriptions_is_an_error():
    few = SyntheticConfig(colors=("red",), shapes=("circle",), motions=("left", "right"))
    with pytest.raises(ValueError, match="different descriptions"):
        draw_descriptions(200, 10, config=few)
    with pytest.raises(ValueError, match="num_train"):
        draw_descriptions(1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colors": ("red", "beige")}, "colors"),
        ({"shapes": ()}, "shapes"),
        ({"motions": ("left", "left")}, "motions"),
        ({"frame_size": 33}, "frame_size"),
        ({"story_weights": (1.0,)}, "story_weights"),
        ({"captions_per_video": (3, 2)}, "caption"),
        ({"seconds": 0}, "seconds"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**change)


# ------------------------------------------------------------------------ animation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("right", "x", 1), ("left", "x", -1), ("down", "y", 1), ("up", "y", -1)],
)
def test_moves_go_where_they_say(motion, axis, sign, seed):
    placed = [state[0] for state in states(clip(motion), seed)]
    along = sign * np.array([getattr(p, axis) for p in placed])
    across = np.array([getattr(p, "y" if axis == "x" else "x") for p in placed])
    assert (np.diff(along) >= 0).all()
    assert along[-1] - along[0] > 0.45
    assert np.ptp(across) == 0
    assert len({p.radius for p in placed}) == 1


@pytest.mark.parametrize("seed", range(5))
def test_there_and_back_and_around_the_corner(seed):
    x = np.array([state[0].x for state in states(clip("left", "right"), seed)])
    assert x[0] - x.min() > 0.35
    assert x[-1] - x.min() > 0.35
    first, last = (states(clip("down", "left"), seed)[i][0] for i in (0, -1))
    assert last.y - first.y > 0.45
    assert first.x - last.x > 0.45
    middle = states(clip("down", "left"), seed)[3][0]
    assert middle.x == first.x


@pytest.mark.parametrize("seed", range(5))
def test_sizes_change_as_they_say(seed):
    radii = np.array([state[0].radius for state in states(clip("grows"), seed)])
    assert (np.diff(radii) >= 0).all()
    assert radii[-1] > 1.8 * radii[0]
    radii = np.array([state[0].radius for state in states(clip("shrinks", "grows"), seed)])
    assert min(radii[0], radii[-1]) > 1.5 * radii.min()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("motions", "visible"),
    [
        (("appears",), "00001111"),
        (("vanishes",), "11110000"),
        (("appears", "vanishes"), "00111100"),
        (("vanishes", "appears"), "11000011"),
    ],
)
def test_things_appear_and_vanish_as_they_say(motions, visible, seed):
    assert "".join(str(len(state)) for state in states(clip(*motions), seed)) == visible


@pytest.mark.parametrize("seed", range(5))
def test_two_things_are_shown_in_order(seed):
    first, second = Thing("red", "circle", "small"), Thing("blue", "square", "large")
    shown = [[p.thing for p in s] for s in states(ClipDescription((first, second)), seed)]
    assert shown == [[first]] * 4 + [[second]] * 4


@pytest.mark.parametrize(
    "description",
    [
        *(clip(motion) for motion in MOTIONS),
        *(clip(motion, OPPOSITES[motion]) for motion in MOTIONS),
        clip("right", "down"),
        clip("up", "left"),
        ClipDescription((Thing("red", "circle", "small"), Thing("blue", "square", "large"))),
    ],
)
def test_order_twins_are_told_apart_by_the_order_of_frames_only(description):
    def mean_frames(description: ClipDescription) -> np.ndarray:
        """Mean number, place, size and redness of the things, (times, 5)."""
        draws = []
        for seed in range(300):
            rows = []
            for state in states(description, seed):
                values = [(p.x, p.y, 5 * p.radius, p.thing.color == "red") for p in state]
                rows.append((len(state), *np.sum(values or [(0, 0, 0, 0)], axis=0)))
            draws.append(rows)
        return np.mean(draws, axis=0)

    own, twin = mean_frames(description), mean_frames(description.order_twin())
    # The same frames as a bag ...
    np.testing.assert_allclose(own.mean(axis=0), twin.mean(axis=0), atol=0.03)
    # ... and not the same frames at the same times.
    assert np.abs(own - twin).max() > 0.05


def test_frames_show_the_color_where_the_thing_is():
    for shape in SHAPES:
        description = ClipDescription(
            (Thing("yellow", shape, "large"), Thing("blue", "circle", "large"))
        )
        animation = Animation(description, np.random.default_rng(1))
        frames = animation.frames(8, 64)
        assert frames.dtype == np.uint8
        assert frames.shape == (8, 64, 64, 3)
        for index, color in ((0, "yellow"), (7, "blue")):
            close = np.abs(frames[index].astype(int) - COLORS[color]).max(axis=2) < 30
            y, x = (np.argwhere(close).mean(axis=0) + 0.5) / 64
            placed = animation.state(index / 7)[0]
            assert abs(x - placed.x) < 0.03
            assert abs(y - placed.y) < 0.07
            assert 0.03 < close.mean() < 0.25


def test_pictures_of_shapes_and_sizes_differ():
    def cover(shape: str, size: str) -> float:
        description = ClipDescription((Thing("white", shape, size),), ("vanishes",))
        frame = Animation(description, np.random.default_rng(0)).frames(2, 64)[0]
        return (frame.min(axis=2) > 200).mean()

    large = {shape: cover(shape, "large") for shape in SHAPES}
    assert all(large[shape] > 2.5 * cover(shape, "small") for shape in SHAPES)
    assert min(abs(a - b) for a in large.values() for b in large.values() if a != b) > 0.001


def test_backgrounds_and_places_vary():
    clips = [
        Animation(clip("right"), np.random.default_rng(seed)).frames(1, 32) for seed in range(9)
    ]
    corners = [int(frames[0, -1, -1, 0]) for frames in clips]
    assert len(set(corners)) > 5
    assert np.ptp(corners) > 30


def test_videos_of_one_description_differ():
    frames = [animate(clip("right"), *seeds).frames(1, 32) for seeds in ((0, 1), (0, 2), (1, 1))]
    assert all((frames[i] != frames[i - 1]).mean() > 0.5 for i in range(3))
    again = animate(clip("right"), 0, 1).frames(1, 32)
    np.testing.assert_array_equal(again, frames[0])


def test_frame_words():
    animation = Animation(clip("right"), np.random.default_rng(0))
    assert animation.words(0.0).startswith("a small red circle ")
    assert animation.words(0.0).endswith("left")
    assert animation.words(1.0).endswith("right")
    assert Animation(clip("appears"), np.random.default_rng(0)).words(0.0) == "nothing"


# ------------------------------------------------------------------------ data sets


def test_layout_is_that_of_msrvtt(small_dataset: Path):
    annotations, videos = small_dataset / "annotations", small_dataset / "videos"
    train = load_msrvtt(annotations, videos, "train-9k")
    fewer = load_msrvtt(annotations, videos, "train-7k")
    test = load_msrvtt(annotations, videos, "test")
    assert (len(train.videos), len(fewer.videos), len(test.videos)) == (10, 7, 6)
    assert set(fewer.videos) < set(train.videos)
    assert not set(train.videos) & set(test.videos)
    counts = Counter(caption.video_id for caption in train.captions)
    assert set(counts.values()) <= {2, 3}
    assert len(set(train.captions)) == len(train.captions)
    assert len({caption.text for caption in test.captions}) == len(test.captions) == 6
    with (annotations / "MSRVTT_JSFUSION_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["key", "vid_key", "video_id", "sentence"]
    assert rows[0]["vid_key"] == f"msr{rows[0]['video_id'].removeprefix('video')}"


def test_videos_show_what_was_described(small_dataset: Path):
    train, test = draw_descriptions(10, 6, seed=3)
    for index, description in enumerate(train + test):
        frames = read_frames(small_dataset / "videos" / f"video{index}.mp4")
        drawn = animate(description, 3, index).frames(57, 32)[::8]
        assert frames.shape == drawn.shape
        assert np.abs(frames.astype(int) - drawn).mean() < 8


def test_pseudo_captions_fit_the_sampled_frames(small_dataset: Path):
    annotations = small_dataset / "annotations"
    pseudo_captions = json.loads((annotations / "pseudo_captions.json").read_text())
    sentences = json.loads((annotations / "MSRVTT_data.json").read_text())["sentences"]
    assert list(pseudo_captions) == [f"{s['video_id']}_{s['caption']}" for s in sentences]
    train, test = draw_descriptions(10, 6, seed=3)
    for sentence in sentences:
        words = pseudo_captions[f"{sentence['video_id']}_{sentence['caption']}"]
        frames = read_frames(small_dataset / "videos" / f"{sentence['video_id']}.mp4")
        assert len(words) == len(frames)
        index = int(sentence["video_id"].removeprefix("video"))
        animation = animate((train + test)[index], 3, index)
        assert words == [animation.words(time) for time in SAMPLED_TIMES]


def test_the_same_seed_gives_the_same_files(tmp_path: Path):
    config = SyntheticConfig(frame_size=32, frame_rate=2, seconds=3)

    def files(name: str, seed: int) -> dict[str, bytes]:
        root = tmp_path / name
        generate_dataset(root, num_train=4, num_test=2, seed=seed, config=config)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    first, again, other = files("a", 1), files("b", 1), files("c", 2)
    assert len(first) == 6 + 5
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".mp4"))


def test_long_videos_and_several_test_captions(tmp_path: Path):
    config = SyntheticConfig(
        frame_size=32,
        frame_rate=2,
        seconds=20,
        captions_per_video=(1, 1),
        test_captions_per_video=3,
    )
    generate_dataset(tmp_path, num_train=2, num_test=2, config=config)
    test = load_msrvtt(tmp_path / "annotations", tmp_path / "videos", "test")
    assert set(Counter(caption.video_id for caption in test.captions).values()) == {3}
    pseudo_captions = json.loads((tmp_path / "annotations" / "pseudo_captions.json").read_text())
    frames = read_frames(next(iter(test.videos.values())))
    assert {len(words) for words in pseudo_captions.values()} == {12} == {len(frames)}


def test_settings_are_plain_values():
    assert SyntheticConfig(**dataclasses.asdict(SyntheticConfig())) == SyntheticConfig()
