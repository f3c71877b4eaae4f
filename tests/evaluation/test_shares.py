"""Processes that share an evaluation find the ranks of one, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

import garevla
from garevla.data.splits import Caption
from garevla.evaluation import evaluate, shares, streaming_counts, streaming_ranks
from garevla.evaluation.shares import Share, share_of
from tests.distributed import run_processes
from tests.helpers import random_psi

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)

DIM, FRAMES = 8, 3


def integer_scores(text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores with many ties."""
    return text @ (frames * mask[..., None]).sum(dim=1).T


def ranks(case: tuple[int, ...], share: Share | None) -> tuple[np.ndarray, ...]:
    """Of random integers, with so many videos in each process: plain, and with near-duplicates and
    single sentences."""
    generator = torch.Generator().manual_seed(len(case))
    videos = sum(case)
    text = torch.randint(0, 3, (40, DIM), generator=generator).float()
    frames = torch.randint(0, 3, (videos, FRAMES, DIM), generator=generator).float()
    mask = torch.rand(videos, FRAMES, generator=generator) < 0.7
    # Not every video has a caption.
    targets = torch.randint(0, videos, (40,), generator=generator)
    own = slice(None) if share is None else share.rows
    arguments = (text, frames[own], integer_scores, targets, mask[own])
    tiles: dict[str, Any] = {"text_tile": 7, "video_tile": 2, "share": share}
    counts = streaming_counts(
        *arguments, video_to_text="sentences", groups=np.arange(videos) % 6, **tiles
    )
    return (
        *streaming_ranks(*arguments, **tiles),
        *(each.ranks() for each in counts if each is not None),
    )


CASES = {2: [(5, 4), (0, 7), (9, 0)], 3: [(2, 5, 4), (3, 0, 1), (0, 0, 6), (30, 1, 30)]}


class Videos(torch.utils.data.Dataset):
    """Random videos of 1 × 1 pixels; one may be broken."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        torch.manual_seed(0)
        self.videos = torch.randn(count, FRAMES, 3, 1, 1)
        self.broken = broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        if index == self.broken:
            raise ValueError(f"video {index} is broken")
        self.read.append(index)
        return self.videos[index], torch.arange(FRAMES) <= index % FRAMES, f"video{index}"


class Model(nn.Module):
    """Scores by ψ, whose float32 rounding depends on what is computed at once."""

    def __init__(self, corrects: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.corrects = corrects
        self.text, self.video = nn.Embedding(100, DIM), nn.Linear(3, DIM)
        self.psi = random_psi(DIM)
        self.scored = 0

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([int(text) for text in texts])

    def encode_text(self, tokens: torch.Tensor) -> Any:
        if self.corrects == "text":
            return self.text(tokens)
        words = (tokens.unsqueeze(1) + torch.arange(3)) % 100
        return garevla.Texts(self.text(tokens), self.text(words))

    def encode_video(self, video: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        return self.video(video.flatten(2))

    def similarity(self, text: Any, frames: torch.Tensor, mask: torch.Tensor) -> Any:
        self.scored += len(text) * len(frames)
        return garevla.gare_similarity(text, frames, self.psi, mask, corrects=self.corrects)


def figures(videos: int, texts: int, corrects: str, group: Any, broken: int | None = None) -> Any:
    """Of random captions; and what of the work was done here."""
    model, dataset = Model(corrects), Videos(videos, broken)
    captions = [Caption(f"video{i % videos}", str(i)) for i in range(texts)]
    found = evaluate(
        model,
        dataset,
        captions,
        batch_size=2,
        text_batch_size=5,
        text_tile=16,
        video_tile=3,
        group=group,
    )
    return found, len(dataset.read), model.scored


SPLITS = [
    *((23, 40, "text"), (23, 7, "text"), (3, 4, "text"), (8, 100, "text")),
    *((23, 40, "video"), (3, 4, "video")),
]


def work(rank: int, count: int) -> tuple[list, list, str]:
    found = [ranks(case, Share(distributed.group.WORLD, case)) for case in CASES[count]]
    evaluations = [figures(*split, True) for split in SPLITS]
    message = ""
    if rank == count - 1:
        with pytest.raises(ValueError, match="is broken") as raised:
            figures(23, 40, "text", True, broken=22)
        message = str(raised.value)
    return found, evaluations, message


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_find_the_ranks_of_one(count: int, tmp_path: Path):
    by_process = run_processes(count, tmp_path, work, count)
    for index, case in enumerate(CASES[count]):
        want = ranks(case, None)
        for found, *_ in by_process:
            for mine, one in zip(found[index], want, strict=True):
                assert np.array_equal(mine, one), case
    for index, (videos, texts, corrects) in enumerate(SPLITS):
        want, _, pairs = figures(videos, texts, corrects, None)
        parts = [evaluations[index] for _, evaluations, _ in by_process]
        assert all(metrics == want for metrics, *_ in parts)
        # Every video is read by one process, every pair scored by one.
        assert sum(read for _, read, _ in parts) == videos
        assert sum(scored for *_, scored in parts) == pairs == videos * texts
    assert by_process[-1][2] == "video 22 is broken"


def test_shares_begin_with_whole_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shares, "resolve_group", lambda group: group)
    for count in range(2, 9):
        monkeypatch.setattr(distributed, "get_world_size", lambda group, count=count: count)
        for rows in (1, 4, 5, 100, 101):
            share = share_of(True, rows, 4)
            assert share is not None
            assert sum(share.counts) == rows
            starts = np.cumsum((0, *share.counts))[:-1]
            assert all(start % 4 == 0 or start == rows for start in starts)
            assert max(share.counts) <= -(-rows // 4 // count) * 4 + 4
