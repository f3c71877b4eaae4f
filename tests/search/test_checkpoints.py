"""Indexes made with checkpoints of every mode, which they remember."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from garevla.search import Library, LibraryError
from garevla.training.checkpoint import save_checkpoint
from garevla.training.config import DataConfig, ModelConfig, TrainConfig
from garevla.training.model import build_model
from tests.search.conftest import Index


def save(path: Path, mode: str, seed: int, psi: str = "cross_attention") -> None:
    config = TrainConfig(
        DataConfig(path.parent, path.parent, max_frames=4, frames_per_second=2.0),
        ModelConfig(
            mode,
            "tiny",
            None,
            temporal_layers=1 if mode == "gare" else 0,
            context_length=20,
            psi=psi,
            vision_fusion_blocks=2,
            text_fusion_blocks=1,
        ),
    )
    torch.manual_seed(seed)
    save_checkpoint(path, {"config": config.as_dict(), "model": build_model(config).state_dict()})


@pytest.mark.parametrize(
    ("mode", "psi"),
    [
        ("gare", "cross_attention"),
        ("gare", "gap_mlp"),
        ("discovla", "cross_attention"),
        ("gare+discovla", "cross_attention"),
    ],
)
def test_a_checkpoint_of_any_mode(index: Index, tmp_path, write_clip, mode, psi):
    checkpoint, videos = tmp_path / "best.pt", tmp_path / "videos"
    videos.mkdir()
    write_clip(videos / "a.mp4", 40)
    save(checkpoint, mode, 0, psi)
    index(
        videos, tmp_path / "library", model=str(checkpoint), max_frames=None, frames_per_second=None
    )
    library = Library.open(tmp_path / "library", device="cpu")
    ids = library.segment_ids()
    model = library.model.model
    assert (len(ids), library.model.sampling.max_frames) == (3, 4)
    text = library.model.encode_texts(["a circle"])
    with torch.no_grad():
        expected = [
            model.similarity(text, torch.tensor(frames).float()[None]).item()
            for frames in map(library._frames, ids.tolist())
        ]
    torch.testing.assert_close(library.exact_scores(text, ids)[0].tolist(), expected)
    assert library.search("a circle")[0].score == pytest.approx(max(expected), abs=1e-6)


def test_a_checkpoint_that_moves_or_changes(index: Index, tmp_path, write_clip):
    checkpoint, videos, library = (tmp_path / name for name in ("best.pt", "videos", "library"))
    videos.mkdir()
    write_clip(videos / "a.mp4", 8)
    save(checkpoint, "gare", 0)
    settings = {"max_frames": None, "frames_per_second": None}
    index(videos, library, model=str(checkpoint), **settings)
    before = Library.open(library, device="cpu").search("a circle")[0].score

    checkpoint.rename(tmp_path / "moved.pt")
    with pytest.raises(FileNotFoundError, match=r"best\.pt"):
        Library.open(library, device="cpu").search("a circle")
    moved = Library.open(library, device="cpu", model=tmp_path / "moved.pt")
    assert moved.search("a circle")[0].score == before

    index(videos, library, model=str(tmp_path / "moved.pt"))
    assert Library.open(library, device="cpu").search("a circle")[0].score == before

    (tmp_path / "moved.pt").unlink()
    save(tmp_path / "moved.pt", "gare", 1)
    for use in (
        lambda: Library.open(library, device="cpu").search("a circle"),
        lambda: index(videos, library),
    ):
        with pytest.raises(LibraryError, match=r"the weights of .*moved\.pt are not those"):
            use()
