"""Videos that are encoded once stand in for their frames everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import garevla
from garevla.evaluation import score_matrix, streaming_ranks, top_k
from garevla.increments.base import IncrementNetwork
from garevla.increments.low_rank.videos import _FEW_TEXTS
from tests.helpers import random_batch, random_gap_mlp, random_psi, relative_error

DIM = 16
NETWORKS: dict[str, Callable[[], IncrementNetwork]] = {
    "one head": lambda: random_psi(DIM),
    "four heads": lambda: random_psi(DIM, 4),
    "gap mlp": lambda: random_gap_mlp(DIM, 24),
}


@pytest.fixture(params=NETWORKS)
def psi(request) -> IncrementNetwork:
    return NETWORKS[request.param]().double()


@pytest.fixture(params=[False, True], ids=["whole", "compact"])
def compact(request) -> bool:
    return request.param


def batch(texts: int = 5, videos: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    text, frames, mask = random_batch(texts, videos, 4, DIM)
    return text, frames, mask


@pytest.mark.parametrize("texts", [1, _FEW_TEXTS, _FEW_TEXTS + 1])
def test_scores(psi, compact, backend, texts):
    text, frames, mask = batch(texts)
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    want = garevla.gare_similarity(text, frames, psi, mask)
    got = garevla.gare_similarity(text, videos)
    assert relative_error(got, want) < 1e-13
    if not compact:
        assert torch.equal(got, want)


def test_padding_may_hold_anything(psi, compact):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    poisoned = frames.detach().masked_fill(~mask.unsqueeze(-1), torch.nan)
    other = garevla.encode_videos(poisoned, psi, mask, compact=compact)
    assert torch.equal(garevla.gare_similarity(text, videos), garevla.gare_similarity(text, other))


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("texts", [5, _FEW_TEXTS + 1])
def test_gradients(psi, compact, backend, texts):
    text, frames, mask = batch(texts)
    weight = torch.randn(texts, len(frames), dtype=torch.float64)
    inputs = text, frames, *psi.parameters()
    want = gradients((garevla.gare_similarity(text, frames, psi, mask) * weight).sum(), *inputs)
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    got = gradients((garevla.gare_similarity(text, videos) * weight).sum(), *inputs)
    for mine, its in zip(got, want, strict=True):
        assert relative_error(mine, its) < 1e-9 or its.norm() < 1e-9


def test_loss_and_its_gradients(psi, compact, backend):
    text, frames, mask = random_batch(7, 7, 4, DIM, least_frames=2)
    loss = garevla.GareLoss(psi)
    inputs = text, frames, *psi.parameters()
    want = loss(text, frames, 20.0, mask)
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    got = loss(text, videos, 20.0)
    assert relative_error(got.loss, want.loss) < 1e-13
    pairs = zip(gradients(got.loss, *inputs), gradients(want.loss, *inputs), strict=True)
    for mine, its in pairs:
        assert relative_error(mine, its) < 1e-8 or its.norm() < 1e-8


def test_pairs(psi, compact):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    got = garevla.gare_increments(text, videos)
    assert relative_error(got, garevla.gare_increments(text, frames, psi, mask)) < 1e-13


@pytest.mark.parametrize(
    "index",
    [
        slice(2, 5),
        slice(None, None, 3),
        [4, 0, 0],
        torch.tensor([6, -1]),
        torch.arange(7) > 2,
    ],
    ids=str,
)
def test_index(psi, compact, index):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)[index]
    want = garevla.gare_similarity(text, frames[index], psi, mask[index])
    assert len(videos) == want.shape[1]
    assert relative_error(garevla.gare_similarity(text, videos), want) < 1e-13


def test_slices_are_views(psi, compact):
    _, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    assert videos[2:5].frame_mask.data_ptr() == videos.frame_mask[2:].data_ptr()


def test_joining(psi, compact):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    together = garevla.Videos.cat([videos[4:], videos[:0], videos[:4]])
    want = garevla.gare_similarity(text, videos[[4, 5, 6, 0, 1, 2, 3]])
    assert torch.equal(garevla.gare_similarity(text, together), want)


def test_encoding_in_pieces(psi, compact, monkeypatch):
    text, frames, mask = batch()
    whole = garevla.encode_videos(frames, psi, mask, compact=compact)
    monkeypatch.setattr("garevla.head.videos._ENCODED_AT_ONCE", 3)
    pieces = garevla.encode_videos(frames, psi, mask, compact=compact)
    got, want = (garevla.gare_similarity(text, videos) for videos in (pieces, whole))
    assert relative_error(got, want) < 1e-13


def test_what_cannot_be_joined(psi):
    _, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask)
    others = {
        "frames": garevla.encode_videos(frames[:, :3], psi),
        "dtype": videos.to(dtype=torch.float32),
        "dim|kind": garevla.encode_videos(torch.randn(2, 4, 8), random_psi(8)),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            garevla.Videos.cat([videos, other])
    with pytest.raises(ValueError, match="empty"):
        garevla.Videos.cat([])


def test_compact_videos_of_two_networks_are_not_joined():
    _, frames, mask = batch()
    one, two = (
        garevla.encode_videos(frames, random_psi(DIM), mask, compact=True) for _ in range(2)
    )
    with pytest.raises(ValueError, match="weights of psi"):
        garevla.Videos.cat([one, two])
    whole = garevla.encode_videos(frames, random_psi(DIM), mask)
    with pytest.raises(ValueError, match="low_rank and compact"):
        garevla.Videos.cat([one, whole])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("at_once", [1, 2**22])
def test_narrow_numbers(psi, compact, dtype, at_once, monkeypatch):
    """Compact videos are the exact ones of the rounded frames; whole ones round more."""
    monkeypatch.setattr("garevla.head.videos._WIDENED_AT_ONCE", at_once)
    text, frames, mask = batch()
    text, psi = text.detach().float(), psi.float()
    frames = frames.detach().float()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact, dtype=dtype)
    assert videos.dtype == dtype
    got = garevla.gare_similarity(text, videos)
    rounded = frames.to(dtype).float()
    want = garevla.gare_similarity(text.double(), rounded.double(), psi.double(), mask)
    rows_round = not compact and "rows" in videos._parts.of_videos
    unit = torch.finfo(dtype if rows_round else torch.float32).eps
    assert got.dtype == torch.float32
    assert relative_error(got, want) < 8 * unit


def test_to_another_dtype_afterwards(psi, compact):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    narrow = videos.to(dtype=torch.float16)
    assert narrow.dtype == torch.float16
    assert narrow.nbytes < videos.nbytes
    got, want = (garevla.gare_similarity(text, x) for x in (narrow, videos))
    assert relative_error(got, want) < 8 * torch.finfo(torch.float16).eps
    assert videos.to("cpu").dtype == videos.dtype


def test_compact_is_small():
    frames, psi = torch.randn(20, 12, 512), random_psi(512)
    one, many = (
        {c: garevla.encode_videos(frames[:n], psi, compact=c).nbytes for c in (False, True)}
        for n in (1, 20)
    )
    frame_bytes = frames[1:].nbytes
    assert many[True] - one[True] < 1.3 * frame_bytes
    assert many[False] - one[False] > 3 * frame_bytes


@pytest.mark.parametrize("mmap", [False, True])
def test_saving(psi, compact, tmp_path, mmap):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact)
    path = tmp_path / "library.videos"
    videos[2:].save(path)
    loaded = garevla.Videos.load(path, mmap=mmap)
    assert not loaded.frame_mask.requires_grad
    assert torch.equal(
        garevla.gare_similarity(text, loaded), garevla.gare_similarity(text, videos[2:])
    )


def test_a_slice_is_saved_alone(tmp_path):
    frames = torch.randn(200, 4, DIM)
    videos = garevla.encode_videos(frames, random_psi(DIM))
    videos[:2].save(tmp_path / "few")
    videos.save(tmp_path / "all")
    assert (tmp_path / "few").stat().st_size < (tmp_path / "all").stat().st_size / 10


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "library.videos"
    garevla.encode_videos(torch.randn(3, 4, DIM), random_psi(DIM)).save(path)
    if damage == "other":
        torch.save({"format": "another"}, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -100])
    with pytest.raises(ValueError, match=r"library\.videos holds no videos"):
        garevla.Videos.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        garevla.Videos.load(tmp_path / "absent")


def test_evaluation(psi, compact):
    text, frames, mask = batch(20)
    text, frames = text.detach(), frames.detach()
    videos = garevla.encode_videos(frames, psi, mask, compact=compact).detach()

    def score(t: Tensor, f: Tensor, m: Tensor) -> Tensor:
        return garevla.gare_similarity(t, f, psi, m)

    kept, tile = garevla.GareLoss(psi).similarity, {"text_tile": 6, "video_tile": 3}
    matrix = score_matrix(text, videos, kept, **tile)
    assert relative_error(matrix, score_matrix(text, frames, score, mask, **tile)) < 1e-13
    want = top_k(text, frames, score, mask, k=2, **tile)[1]
    assert torch.equal(top_k(text, videos, kept, k=2, **tile)[1], want)
    targets = [i % 7 for i in range(20)]
    ranks = streaming_ranks(text, videos, kept, targets, **tile)
    for got, its in zip(ranks, streaming_ranks(text, frames, score, targets, mask), strict=True):
        assert got.tolist() == its.tolist()


def test_wrong_arguments(psi):
    text, frames, mask = batch()
    videos = garevla.encode_videos(frames, psi, mask)
    calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (TypeError, "psi has no part", lambda: garevla.gare_similarity(text, videos, psi)),
        (
            TypeError,
            "frame_mask has no part",
            lambda: garevla.gare_similarity(text, videos, frame_mask=mask),
        ),
        (TypeError, "psi must be", lambda: garevla.gare_similarity(text, frames)),
        (TypeError, "text_features", lambda: garevla.gare_similarity([1.0], videos)),
        (ValueError, r"\(A, 16\)", lambda: garevla.gare_similarity(text[:, :5], videos)),
        (ValueError, "videos is empty", lambda: garevla.gare_similarity(text, videos[:0])),
        (TypeError, "slice, a list", lambda: videos[3]),
        (IndexError, "1-d", lambda: videos[mask]),
        (IndexError, "out of", lambda: videos[[70]]),
        (ValueError, "dtype must be one of", lambda: videos.to(dtype=torch.int8)),
        (
            ValueError,
            "dtype must be one of",
            lambda: garevla.encode_videos(frames, psi, dtype=torch.complex64),
        ),
        (TypeError, "psi must be", lambda: garevla.encode_videos(frames, mask)),
        (ValueError, r"\(B, F, D\)", lambda: garevla.encode_videos(text, psi)),
        (
            ValueError,
            "float16 cannot hold",
            lambda: garevla.encode_videos(frames * 1e5, psi, dtype=torch.float16),
        ),
        (ValueError, "no valid frame", lambda: garevla.encode_videos(frames, psi, mask & False)),
        (
            ValueError,
            "backend must be",
            lambda: garevla.gare_similarity(text, videos, backend="unknown"),
        ),
    ]
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


def test_dropout():
    _, frames, mask = batch()
    psi = random_psi(DIM, dropout=0.5).double()
    videos = garevla.encode_videos(frames, psi, mask)
    assert len(videos) == 7
    with pytest.raises(ValueError, match=r"psi\.eval"):
        garevla.encode_videos(frames, psi, mask, compact=True)
    by_pair = random_psi(DIM, dropout=0.5, dropout_mode="pair").double()
    with pytest.raises(ValueError, match=r"psi\.eval"):
        garevla.encode_videos(frames, by_pair, mask)
    garevla.encode_videos(frames, by_pair.eval(), mask, compact=True)
