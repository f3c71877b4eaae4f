from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import garevla
from garevla.evaluation import (
    encode_split,
    evaluate,
    rank_of_caption_sets,
    rank_of_targets,
    score_matrix,
    score_tiles,
    streaming_ranks,
    top_k,
)
from tests.helpers import random_batch, random_psi, relative_error

TILES = [1, 5, 7, 1000]


def exact_score(text, frames, mask):
    """Integers below 2**53 in float64: every tile size gives the same bits, with many ties."""
    return text @ (frames * mask[..., None]).sum(dim=1).T


def features(num_texts, num_videos, *, seed=0, values=3, frames=4, dim=6):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, values, (num_texts, dim), generator=generator).double()
    video = torch.randint(0, values, (num_videos, frames, dim), generator=generator).double()
    mask = torch.rand(num_videos, frames, generator=generator) < 0.7
    mask[:, 0] = True
    return text, video, mask


@pytest.mark.parametrize("text_tile", TILES)
@pytest.mark.parametrize("video_tile", TILES)
def test_tiles_assemble_to_the_whole(text_tile, video_tile):
    text, video, mask = features(23, 17)
    matrix = score_matrix(
        text, video, exact_score, mask, text_tile=text_tile, video_tile=video_tile
    )
    assert torch.equal(matrix, exact_score(text, video, mask))


def test_tiles_are_bounded_cover_all_pairs_once_and_carry_no_gradient():
    text, video, mask = features(23, 17)
    text.requires_grad_()
    seen = torch.zeros(23, 17)
    for texts, videos, tile in score_tiles(
        text, video, exact_score, mask, text_tile=5, video_tile=7
    ):
        assert tile.shape[0] <= 5
        assert tile.shape[1] <= 7
        assert not tile.requires_grad
        seen[texts, videos] += 1
    assert bool((seen == 1).all())
    assert torch.is_grad_enabled()


def test_frame_mask_defaults_to_all_valid():
    text, video, mask = features(5, 4)
    expected = exact_score(text, video, torch.ones_like(mask))
    assert torch.equal(score_matrix(text, video, exact_score), expected)


CASES = {
    "one caption each": (12, 12, "permuted"),
    "more texts than videos": (31, 9, "random"),
    "more videos than texts": (6, 19, "random"),
    "one text": (1, 8, "random"),
    "one video": (8, 1, "random"),
    "one pair": (1, 1, "random"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("text_tile", "video_tile"), [(1, 1), (3, 7), (7, 3), (1000, 1000)])
def test_streaming_ranks_match_the_whole_matrix(case, text_tile, video_tile):
    num_texts, num_videos, kind = CASES[case]
    text, video, mask = features(num_texts, num_videos, seed=2)
    generator = np.random.default_rng(3)
    if kind == "permuted":
        targets = generator.permutation(num_videos)
    else:
        targets = generator.integers(0, num_videos, num_texts)
    matrix = exact_score(text, video, mask)
    if min(matrix.shape) > 1:
        assert len(matrix.unique()) < matrix.numel(), "no ties to test"
    rules = ["average", "compat"] if kind == "permuted" else ["average"]
    for ties in rules:
        to_video, to_text = streaming_ranks(
            text,
            video,
            exact_score,
            targets,
            mask,
            ties=ties,
            text_tile=text_tile,
            video_tile=video_tile,
        )
        assert np.array_equal(to_video, rank_of_targets(matrix, targets, ties=ties))
        assert np.array_equal(to_text, rank_of_caption_sets(matrix, targets, ties=ties))


def test_streaming_scores_every_pair_once_in_bounded_tiles():
    text, video, mask = features(40, 30)
    scored = []

    def counting_score(text, frames, mask):
        scored.append((len(text), len(frames)))
        return exact_score(text, frames, mask)

    targets = np.random.default_rng(0).integers(0, 30, 40)
    streaming_ranks(text, video, counting_score, targets, mask, text_tile=7, video_tile=4)
    assert sum(a * b for a, b in scored) == 40 * 30
    assert max(a for a, _ in scored) <= 7
    assert max(b for _, b in scored) <= 4


def test_streaming_ranks_do_not_trust_repeatable_rounding():
    """A right pair must be compared with the very score its tile holds, never a second one."""
    text, video, mask = features(9, 9)
    calls = 0

    def drifting_score(text, frames, mask):
        nonlocal calls
        calls += 1
        return torch.full((len(text), len(frames)), 1.0 - 1e-9 * calls, dtype=torch.float64)

    to_video, _ = streaming_ranks(text, video, drifting_score, range(9), mask)
    assert to_video.tolist() == [5.0] * 9


def test_streaming_ranks_are_those_of_float32_scores_up_to_rounding():
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(50, 16, generator=generator)
    video = torch.randn(40, 3, 16, generator=generator)

    def cosine(text, frames, mask):
        pooled = nn.functional.normalize(frames.mean(dim=1), dim=-1)
        return nn.functional.normalize(text, dim=-1) @ pooled.T

    targets = torch.randint(0, 40, (50,), generator=generator)
    whole = streaming_ranks(text, video, cosine, targets)
    tiled = streaming_ranks(text, video, cosine, targets, text_tile=11, video_tile=3)
    for a, b in zip(whole, tiled, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (1000, 1000)])
@pytest.mark.parametrize("k", [1, 4, 13])
def test_top_k_matches_a_stable_sort(tile, k):
    text, video, mask = features(11, 13, values=2)
    matrix = exact_score(text, video, mask).numpy()
    order = np.array([sorted(range(13), key=lambda j, row=row: (-row[j], j)) for row in matrix])
    scores, indices = top_k(
        text, video, exact_score, mask, k=k, text_tile=tile[0], video_tile=tile[1]
    )
    assert np.array_equal(indices.numpy(), order[:, :k])
    assert np.array_equal(scores.numpy(), np.take_along_axis(matrix, order[:, :k], axis=1))


@pytest.mark.parametrize("k", [0, 14])
def test_top_k_out_of_range_is_an_error(k):
    text, video, mask = features(11, 13)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.B = 1\.\.13"):
        top_k(text, video, exact_score, mask, k=k)


def test_bad_tile_arguments_are_errors():
    text, video, mask = features(5, 4)

    def score_all(*args, **kwargs):
        return list(score_tiles(*args, **kwargs))

    with pytest.raises(ValueError, match="text_features must have shape"):
        score_all(text[:0], video, exact_score)
    with pytest.raises(ValueError, match="frame_features must have shape"):
        score_all(text, video[:0], exact_score)
    with pytest.raises(ValueError, match="frame_features must have shape"):
        score_all(text, video[:, 0], exact_score)
    with pytest.raises(ValueError, match="frame_mask must have shape"):
        score_all(text, video, exact_score, mask[:, :1])
    with pytest.raises(ValueError, match="text_tile must be >= 1"):
        score_all(text, video, exact_score, text_tile=0)
    with pytest.raises(ValueError, match="score must return shape"):
        score_all(text, video, lambda t, f, m: torch.zeros(len(f), len(t)))
    video[2, 0] = torch.nan
    mask[2, 0] = True
    with pytest.raises(ValueError, match="NaN for text 0, video 2"):
        score_all(text, video, exact_score, mask, video_tile=2)
    with pytest.raises(ValueError, match="NaN for text 0, video 2"):
        streaming_ranks(text, video, exact_score, [0, 0, 1, 1, 3], mask, video_tile=2)


@dataclass(frozen=True)
class Caption:
    video_id: str
    text: str


class NumberVideos(torch.utils.data.Dataset):
    """Video i shows the number i in its first frame; its second frame is padding."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = self.numbers[index]
        video = torch.full((2, 3, 4, 4), float(number))
        video[1] = 1e6
        return video, torch.tensor([True, False]), f"video{number}"


class NumberModel(nn.Module):
    """Reads numbers off captions and videos; scores them by minus their distance."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Dropout(0.5)
        self.calls = {"text": 0, "video": 0}

    def tokenize(self, texts):
        return torch.tensor([[int(text.split()[-1])] for text in texts])

    def encode_text(self, tokens):
        self.calls["text"] += len(tokens)
        return self.dropout(self.scale * tokens.float())

    def encode_video(self, video, frame_mask):
        self.calls["video"] += len(video)
        return self.dropout(self.scale * video.mean(dim=(2, 3, 4))[..., None])

    def similarity(self, text_features, frame_features, frame_mask):
        mask = frame_mask[..., None]
        pooled = (frame_features * mask).sum(dim=1) / mask.sum(dim=1)
        return -torch.cdist(self.dropout(text_features), pooled)


def captions_of(numbers):
    return [Caption(f"video{n}", f"the number {n}") for n in numbers]


def test_evaluate_end_to_end_with_several_captions_per_video():
    model = NumberModel().train()
    model.frozen.eval()
    videos = NumberVideos([3, 1, 4, 15, 9])
    captions = captions_of([1, 9, 3, 15, 9, 4])
    captions.append(Caption("video4", "a wrong caption that says 15"))
    random_state = torch.get_rng_state()
    metrics = evaluate(
        model, videos, captions, batch_size=2, text_batch_size=3, text_tile=2, video_tile=2
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.calls == {"text": 7, "video": 5}
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training
    assert list(metrics) == ["text_to_video", "video_to_text"]
    # The wrong caption: 15, 9 are nearer to 15 than 4 is, so the right video is third.
    assert metrics["text_to_video"].recall_at_1 == pytest.approx(100 * 6 / 7)
    assert metrics["text_to_video"].mean_rank == pytest.approx(9 / 7)
    assert metrics["text_to_video"].num_queries == 7
    # Video 15 ties between its own caption set and that of video 4.
    assert metrics["video_to_text"].recall_at_1 == pytest.approx(80.0)
    assert metrics["video_to_text"].mean_rank == pytest.approx(5.5 / 5)
    assert metrics["video_to_text"].num_queries == 5


def test_modes_are_restored_after_an_error():
    model = NumberModel().train()
    model.frozen.eval()
    with pytest.raises(ValueError, match="invalid literal"):
        evaluate(model, NumberVideos([1]), [Caption("video1", "no number")])
    assert model.training
    assert not model.frozen.training


def test_encoded_split_keeps_order_and_masks():
    encoded = encode_split(
        NumberModel(), NumberVideos([3, 1, 4]), captions_of([4, 3, 1, 4]), features_on_cpu=True
    )
    assert encoded.video_ids == ("video3", "video1", "video4")
    assert encoded.targets.tolist() == [2, 0, 1, 2]
    assert encoded.text_features.flatten().tolist() == [4.0, 3.0, 1.0, 4.0]
    assert encoded.frame_features[:, 0, 0].tolist() == [3.0, 1.0, 4.0]
    assert encoded.frame_mask.tolist() == [[True, False]] * 3
    assert not encoded.text_features.requires_grad


def test_wrong_splits_are_errors():
    model = NumberModel()
    with pytest.raises(ValueError, match="captions is empty"):
        evaluate(model, NumberVideos([1]), [])
    with pytest.raises(ValueError, match="videos is empty"):
        evaluate(model, NumberVideos([]), captions_of([1]))
    with pytest.raises(ValueError, match="'video1' occurs twice"):
        evaluate(model, NumberVideos([1, 1]), captions_of([1]))
    with pytest.raises(ValueError, match=r"1 caption.* 'video8'"):
        evaluate(model, NumberVideos([1]), captions_of([1, 8]))


def test_real_videos_are_encoded_in_the_order_of_the_split(tmp_path):
    for module in ("av", "decord", "torchvision"):
        pytest.importorskip(module)
    from garevla.data import (
        Sampling,
        VideoDataset,
        VideoTransform,
        generate_dataset,
        load_msrvtt,
        read_frames,
    )

    class MeanColor(NumberModel):
        def tokenize(self, texts):
            return torch.zeros(len(texts), 3, dtype=torch.int64)

        def encode_video(self, video, frame_mask):
            return video.mean(dim=(3, 4))

    generate_dataset(tmp_path, num_train=2, num_test=5)
    split = load_msrvtt(tmp_path / "annotations", tmp_path / "videos", "test", missing="error")
    transform = VideoTransform(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    videos = VideoDataset(split, transform, sampling=Sampling(10))
    encoded = encode_split(MeanColor(), videos, split.captions, batch_size=2)
    assert encoded.video_ids == tuple(split.videos)
    for caption, target in zip(split.captions, encoded.targets, strict=True):
        frames = torch.from_numpy(read_frames(split.videos[caption.video_id], Sampling(10)))
        valid = encoded.frame_mask[target]
        assert int(valid.sum()) == len(frames) < 10
        torch.testing.assert_close(
            encoded.frame_features[target, valid], frames.float().mean(dim=(1, 2)) / 255
        )


def test_ranks_of_texts_with_words():
    psi = random_psi(8).double()
    text, frames, mask = random_batch(9, 5, 3, 8)
    texts = garevla.Texts(text, torch.randn(9, 4, 8).double(), torch.arange(4) < torch.ones(9, 1))
    score = functools.partial(garevla.gare_similarity, psi=psi, corrects="video")
    targets = np.array([4, 0, 2, 2, 1, 0, 3, 2, 4])

    def scored(texts, frames, mask):
        return score(texts, frames, frame_mask=mask)

    whole = scored(texts, frames, mask).detach()
    tiles = {"text_tile": 2, "video_tile": 3}
    found = score_matrix(texts, frames, scored, mask, **tiles)
    assert relative_error(found, whole) < 1e-12
    by_text, by_video = streaming_ranks(texts, frames, scored, targets, mask, **tiles)
    np.testing.assert_array_equal(by_text, rank_of_targets(whole, targets))
    np.testing.assert_array_equal(by_video, rank_of_caption_sets(whole, targets))
