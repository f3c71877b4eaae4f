from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla.data import (
    Batch,
    Caption,
    PseudoCaptionError,
    PseudoCaptions,
    Resizing,
    RetrievalSplit,
    Sampling,
    UniqueVideoBatchSampler,
    VideoDataset,
    VideoError,
    VideoTextDataset,
    VideoTransform,
    collate_pairs,
    dataset,
    load_msrvtt,
    read_frames,
)
from tests.helpers import relative_error

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), ord(text[0])] for text in texts])


@pytest.fixture
def transform() -> VideoTransform:
    return VideoTransform(24, MEAN, STD)


@pytest.fixture
def split(small_dataset: Path) -> RetrievalSplit:
    return load_msrvtt(small_dataset / "annotations", small_dataset / "videos", "train-9k")


def test_one_item_per_caption_and_padding(split, transform):
    pairs = VideoTextDataset(split, transform, sampling=Sampling(10))
    assert len(pairs) == len(split.captions) > len(split.videos)
    assert pairs.video_ids == [caption.video_id for caption in split.captions]
    for index in (0, len(pairs) - 1):
        item = pairs[index]
        assert item.caption == split.captions[index]
        assert item.video.shape == (10, 3, 24, 24)
        assert item.video.dtype == torch.float32
        assert item.frame_mask.tolist() == [True] * 8 + [False] * 2
        assert (item.video[8:] == 0).all()
        frames = read_frames(split.videos[item.caption.video_id], Sampling(10))
        expected = transform.normalize(transform.crop(frames))
        torch.testing.assert_close(item.video[:8], expected)


def test_resampled_videos_fill_all_frames(split, transform):
    item = VideoTextDataset(split, transform, sampling=Sampling(70, "resample"))[0]
    assert item.frame_mask.all()
    assert item.video.flatten(1).std(dim=1).min() > 0


def test_every_video_once_for_evaluation(split, transform):
    videos = VideoDataset(split, transform, sampling=Sampling(8, frames_per_second=0.5))
    assert len(videos) == len(split.videos)
    assert [videos[i].video_id for i in range(len(videos))] == list(split.videos)
    loader = torch.utils.data.DataLoader(videos, batch_size=4)
    video, frame_mask, video_ids = next(iter(loader))
    assert video.shape == (4, 8, 3, 24, 24)
    assert frame_mask.dtype == torch.bool
    assert frame_mask.sum(1).tolist() == [4] * 4
    assert list(video_ids) == list(split.videos)[:4]


def test_transform_crops_the_middle_and_normalizes(transform):
    # Left and right thirds black, the middle, which the crop keeps, of one color.
    frames = np.zeros((2, 48, 144, 3), dtype=np.uint8)
    frames[:, :, 36:108] = (200, 100, 50)
    cropped = transform.crop(frames)
    assert cropped.dtype == torch.uint8
    assert cropped.shape == (2, 3, 24, 24)
    color = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)
    assert (cropped == color).all()
    expected = (color / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(transform.normalize(cropped), expected.expand(2, 3, 24, 24))


def test_transform_smooths_when_it_shrinks(transform):
    # Ten by ten pixels are averaged, not a few of them picked.
    noise = np.random.default_rng(0).integers(0, 256, (1, 240, 240, 3), dtype=np.uint8)
    assert noise.std() > 70
    assert transform.crop(noise).float().std() < 15


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_transform_is_open_clips(resize_mode, interpolation, split):
    image_module = pytest.importorskip("PIL.Image")
    from open_clip.transform import PreprocessCfg, image_transform_v2

    frames = read_frames(next(iter(split.videos.values())), Sampling(2))[:, :24]
    settings = {"resize_mode": resize_mode, "interpolation": interpolation}
    ours = VideoTransform(Resizing(24, **settings), MEAN, STD)
    theirs = image_transform_v2(PreprocessCfg(24, mean=MEAN, std=STD, **settings), is_train=False)
    expected = torch.stack([theirs(image_module.fromarray(frame)) for frame in frames])
    found = ours.normalize(ours.crop(frames))
    assert relative_error(found, expected) < 0.01
    other = {"resize_mode": "squash" if resize_mode == "shortest" else "shortest"}
    wrong = VideoTransform(Resizing(24, **settings | other), MEAN, STD)
    assert relative_error(wrong.normalize(wrong.crop(frames)), expected) > 0.05


def test_resizings_that_there_are_not():
    with pytest.raises(ValueError, match=r"resize_mode must be one of .* got 'longest'"):
        Resizing(24, "longest")
    with pytest.raises(ValueError, match="image_size must be positive, got 0"):
        Resizing.of(0)


def test_collating_and_moving(split, transform):
    pairs = VideoTextDataset(split, transform, sampling=Sampling(9))
    batch = collate_pairs([pairs[3], pairs[0]], tokenize)
    assert isinstance(batch, Batch)
    assert batch.captions == [split.captions[3].text, split.captions[0].text]
    assert batch.video_ids == [split.captions[3].video_id, split.captions[0].video_id]
    assert batch.tokens.tolist() == tokenize(batch.captions).tolist()
    assert batch.video.shape == (2, 9, 3, 24, 24)
    assert batch.frame_mask.shape == (2, 9)
    moved = batch.to("meta")
    assert {moved.tokens.device.type, moved.video.device.type, moved.frame_mask.device.type} == {
        "meta"
    }
    assert moved.captions == batch.captions
    assert batch.video.device.type == "cpu"


def test_pseudo_captions_come_with_the_frames(split, transform, small_dataset):
    path = small_dataset / "annotations" / "pseudo_captions.json"
    captions = PseudoCaptions.load(path)
    pairs = VideoTextDataset(split, transform, sampling=Sampling(9), pseudo_captions=captions)
    batch = collate_pairs([pairs[3], pairs[0]], tokenize)
    tokens = batch.pseudo_caption_tokens
    assert tokens.shape[:2] == batch.frame_mask.shape
    for row, index in enumerate((3, 0)):
        texts = captions.find(split.captions[index])
        assert tokens[row][batch.frame_mask[row]].tolist() == tokenize(list(texts)).tolist()
    assert not tokens[~batch.frame_mask].any()
    assert batch.to("meta").pseudo_caption_tokens.device.type == "meta"
    # Other frames were captioned than are sampled.
    few = VideoTextDataset(split, transform, sampling=Sampling(3), pseudo_captions=captions)
    with pytest.raises(PseudoCaptionError, match=r"8 pseudo captions for 'video\d+', .* 3 frames"):
        few[0]


def test_workers_give_what_the_main_process_gives(split, transform):
    pairs = VideoTextDataset(split, transform, sampling=Sampling(8))
    sampler = UniqueVideoBatchSampler(pairs.video_ids, 6, seed=1)
    loaders = [
        torch.utils.data.DataLoader(
            pairs,
            batch_sampler=sampler,
            collate_fn=functools.partial(collate_pairs, tokenize=tokenize),
            num_workers=num_workers,
        )
        for num_workers in (0, 2)
    ]
    alone, shared = map(list, loaders)
    assert len(alone) == len(shared) == len(sampler)
    for a, b in zip(alone, shared, strict=True):
        assert (a.captions, a.video_ids) == (b.captions, b.video_ids)
        assert torch.equal(a.video, b.video)
        assert torch.equal(a.tokens, b.tokens)
    captions = [caption for batch in shared for caption in batch.captions]
    assert sorted(captions) == sorted(caption.text for caption in split.captions)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_video_stops_the_loader_with_its_name(split, transform, tmp_path, num_workers):
    bad = tmp_path / "broken.mp4"
    bad.write_bytes(b"nothing like a video")
    videos = {**split.videos, "broken": bad}
    captions = (*split.captions[:3], Caption("broken", "a broken video"))
    pairs = VideoTextDataset(RetrievalSplit(captions, videos), transform)
    loader = torch.utils.data.DataLoader(
        pairs, collate_fn=lambda items: items, num_workers=num_workers
    )
    with pytest.raises(VideoError) as caught:
        list(loader)
    assert f"{bad}: damaged, or not a video" in str(caught.value)


def test_videos_kept_in_memory_are_read_once(split, transform, monkeypatch):
    reads: list[Path] = []

    def counted(path, sampling):
        reads.append(path)
        return read_frames(path, sampling)

    monkeypatch.setattr(dataset, "read_frames", counted)
    kept = VideoTextDataset(split, transform, keep_in_memory=True)
    plain = VideoTextDataset(split, transform)
    expected = [plain[index] for index in range(len(plain))]
    assert len(reads) == len(plain)
    reads.clear()
    for _ in range(2):
        for index, item in enumerate(expected):
            assert torch.equal(kept[index].video, item.video)
            # A caller may change what it was given.
            kept[index].video.zero_()
    assert sorted(reads) == sorted(split.videos.values())
