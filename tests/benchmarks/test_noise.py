from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import noise, tables
from benchmarks.noisy_captions import add_noise, shuffle_captions, vague
from garevla import CrossAttentionPsi, gare_similarity, mean_frame_similarity
from garevla.data.splits import Caption
from garevla.data.synthetic import draw_descriptions
from garevla.demo import DemoConfig
from garevla.encoders import ClipEncoder
from tests.helpers import relative_error

VIDEOS = 60
DESCRIPTIONS = {
    f"video{index}": each for index, each in enumerate(draw_descriptions(VIDEOS, 2, seed=0)[0])
}
CAPTIONS = [
    Caption(video_id, DESCRIPTIONS[video_id].caption(np.random.default_rng(index)))
    for index, video_id in enumerate([*DESCRIPTIONS, *DESCRIPTIONS])
]


def outline(video_id: str) -> tuple[object, ...]:
    description = DESCRIPTIONS[video_id]
    return tuple(thing.shape for thing in description.things), description.motions


@pytest.mark.parametrize(
    ("text", "less"),
    [
        ("a small red circle moves up", "a circle moves up"),
        ("an orange square gets bigger", "a square gets bigger"),
        ("first a big pink cross, then a little cyan circle", "first a cross, then a circle"),
        ("a white triangle becomes smaller", "a triangle becomes smaller"),
    ],
)
def test_vague_captions(text: str, less: str):
    assert vague(text) == vague(less) == less


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
def test_wrong_captions(share: float):
    found = shuffle_captions(CAPTIONS, share, seed=3)
    assert [c.video_id for c in found] == [c.video_id for c in CAPTIONS]
    assert Counter(c.text for c in found) == Counter(c.text for c in CAPTIONS)
    # Some phrase says the same of two videos by chance: whose caption it is counts.
    own = {(c.video_id, c.text) for c in CAPTIONS}
    moved = sum((c.video_id, c.text) not in own for c in found)
    assert moved == round(share * len(CAPTIONS))
    assert found == shuffle_captions(CAPTIONS, share, seed=3)
    assert share == 0 or found != shuffle_captions(CAPTIONS, share, seed=4)


def test_captions_of_one_video_cannot_be_exchanged():
    with pytest.raises(ValueError, match="3 of 3 captions to be shuffled are of one video"):
        shuffle_captions([Caption("one", text) for text in "abc"], 1.0, seed=0)


def test_shared_captions_and_their_right_videos():
    noisy = add_noise(CAPTIONS, DESCRIPTIONS, shared=0.4, seed=1)
    changed = [a != b for a, b in zip(noisy.captions, CAPTIONS, strict=True)]
    assert noisy.is_vague.tolist() == changed
    assert sum(changed) == round(0.4 * len(CAPTIONS))
    chosen = list(range(5, VIDEOS + 5))
    right = noisy.right_videos(chosen)
    several = 0
    for i, text in enumerate(chosen):
        for j, video in enumerate(chosen):
            same = outline(CAPTIONS[text].video_id) == outline(CAPTIONS[video].video_id)
            assert right[i, j] == (i == j or (changed[text] and same))
            several += i != j and changed[text] and same
    assert several > 5


@pytest.fixture(scope="module")
def videos() -> dict[str, noise.Videos]:
    torch.manual_seed(0)
    found = {}
    for name, ids in (("train", [*DESCRIPTIONS][:20]), ("test", [*DESCRIPTIONS][20:28])):
        captions = tuple(caption for caption in CAPTIONS if caption.video_id in ids)
        captions = captions if name == "train" else captions[: len(ids)]
        mask = torch.ones(len(ids), 4, dtype=torch.bool)
        found[name] = noise.Videos(torch.randn(len(ids), 4, 96), mask, tuple(ids), captions)
    return found


@pytest.mark.parametrize("name", noise.VARIANTS)
def test_a_variant(
    name: str, videos: dict[str, noise.Videos], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(noise, "BATCH_SIZE", 8)
    monkeypatch.setattr(
        noise,
        "make_encoder",
        lambda demo, layers: ClipEncoder("tiny", None, temporal_layers=layers, max_frames=4),
    )
    demo = DemoConfig(output_dir=tmp_path, num_train=VIDEOS, num_test=2, epochs=1)
    row = noise.train_variant(name, "40 % shared", 0, demo, videos)
    assert np.isfinite(row["loss"]).all()
    assert row["text_to_video"]["num_queries"] == row["video_to_text"]["num_queries"] == 8
    if name == "InfoNCE":
        again = noise.train_variant(name, "40 % shared", 0, demo, videos)
        assert {**row, "processor_seconds": 0} == {**again, "processor_seconds": 0}


def test_table():
    rows = [
        {
            "variant": variant,
            "noise": each,
            "seed": recall,
            "text_to_video": {"recall_at_1": recall},
            "video_to_text": {"recall_at_1": recall + 1},
        }
        for variant, each, recall in (
            *(("a", "none", 10.0), ("a", "none", 20.0)),
            *(("b", "some", 1.0), ("b", "none", 2.0), ("b", "none", 4.0)),
        )
    ]
    columns, lines = tables.noise(rows)
    assert columns == ["<variant", "none", "some", "seeds"]
    assert lines[0] == ["a", "15.0 ± 7.1, 16.0 ± 7.1", "–", "2"]
    assert lines[1][-1] == "1–2"


def test_pooling_is_gares_without_increments():
    torch.manual_seed(0)
    texts, frames = torch.randn(3, 8), torch.randn(5, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    psi = CrossAttentionPsi(8)
    torch.nn.init.zeros_(psi.mean_proj.weight)
    own = gare_similarity(texts, frames, psi, mask)
    assert relative_error(noise.pooled_similarity(texts, frames, mask), own) < 1e-6
    frames = torch.nn.functional.normalize(frames, dim=-1)
    mean = gare_similarity(texts, frames, psi, mask, **noise.MEAN_FRAME)
    assert relative_error(mean, mean_frame_similarity(texts, frames, mask)) < 1e-6
