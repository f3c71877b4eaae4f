from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from garevla.evaluation import (
    EncodedSplit,
    QueryResult,
    RetrievalMetrics,
    contact_sheet,
    describe_queries,
    metrics_table,
)


def test_table():
    table = metrics_table(
        {
            "text_to_video": RetrievalMetrics(41.25, 80.0, 92.5, 2.0, 5.26, 1000),
            "video_to_text": RetrievalMetrics(100.0, 100.0, 100.0, 1.0, 1.0, 27763),
        }
    )
    assert table.splitlines() == [
        "               R@1 %  R@5 %  R@10 %  MdR  MnR  queries",
        "text to video   41.2   80.0    92.5  2.0  5.3     1000",
        "video to text  100.0  100.0   100.0  1.0  1.0    27763",
    ]


class DotProduct:
    def similarity(self, text_features, frame_features, frame_mask):
        return text_features @ frame_features[:, 0].T


def test_described_queries():
    encoded = EncodedSplit(
        text_features=torch.eye(3),
        frame_features=torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.3, 0.8], [0.9, 0.2, 0.1]])[:, None],
        frame_mask=torch.ones(3, 1, dtype=torch.bool),
        targets=np.array([2, 0, 1]),
        video_ids=("a", "b", "c"),
    )
    split = SimpleNamespace(
        time_ranges={},
        captions=[SimpleNamespace(video_id=v, text=f"text {v}") for v in "cab"],
        videos={v: Path(f"{v}.mp4") for v in "cba"},
    )
    one, two = describe_queries(DotProduct(), encoded, split, [1, 0], k=2)
    assert (one.caption, one.target_id, one.target_rank) == ("text a", "a", 3.0)
    assert [r[:2] for r in one.results] == [("b", Path("b.mp4")), ("c", Path("c.mp4"))]
    assert [r[2] for r in one.results] == pytest.approx([0.3, 0.2])
    assert (two.caption, two.target_id, two.target_rank) == ("text c", "c", 1.5)
    assert [r[0] for r in two.results] == ["a", "c"]
    with pytest.raises(IndexError, match=r"queries must be in 0\.\.2, got 3"):
        describe_queries(DotProduct(), encoded, split, [3])
    with pytest.raises(ValueError, match="queries is empty"):
        describe_queries(DotProduct(), encoded, split, [])


def write_video(path, color):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), color, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@dataclass
class Sheet:
    pixels: np.ndarray
    texts: list[str] = field(default_factory=list)

    def rows_of(self, color, tolerance=12):
        near = np.abs(self.pixels - np.array(color)).max(axis=2) <= tolerance
        # Text is thin; borders and frames fill a good part of their rows.
        return np.flatnonzero(near.sum(axis=1) > 100)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    image = pytest.importorskip("PIL.Image")
    texts = []
    original = figure_class.text

    def text(self, x, y, s, **style):
        texts.append(s)
        return original(self, x, y, s, **style)

    monkeypatch.setattr(figure_class, "text", text)

    def draw_sheet(queries, **options):
        path = tmp_path / "pictures" / "sheet.png"
        texts.clear()
        contact_sheet(path, queries, **options)
        pixels = np.asarray(image.open(path).convert("RGB")).astype(int)
        return Sheet(pixels, list(texts))

    return draw_sheet


GREEN_BORDER = (26, 150, 65)


def test_correct_video_is_marked_in_its_row(tmp_path, draw):
    red = write_video(tmp_path / "red.mp4", (200, 30, 30))
    blue = write_video(tmp_path / "blue.mp4", (30, 30, 200))
    results = (("red", red, 0.75), ("blue", blue, -0.125))
    sheet = draw([QueryResult("costs $5 or $6", "blue", 2.0, results)])
    assert sheet.texts == [
        "“costs $5 or $6”",
        "1.  score 0.750\nred",
        "2.  score -0.125\nblue\n✓ correct",
    ]
    red_rows = sheet.rows_of((200, 30, 30))
    blue_rows = sheet.rows_of((30, 30, 200))
    border_rows = sheet.rows_of(GREEN_BORDER)
    assert red_rows.max() < blue_rows.min()
    assert red_rows.max() < border_rows.min() <= blue_rows.min()
    assert border_rows.max() >= blue_rows.max()


def test_absent_correct_video_is_named_and_nothing_marked(tmp_path, draw):
    red = write_video(tmp_path / "red.mp4", (200, 30, 30))
    query = QueryResult("a bird", "video7", 12.5, (("red", red, 0.75),))
    sheet = draw([query, query], num_frames=3)
    assert sheet.texts[0] == "“a bird”   (correct: video7, at rank 12.5)"
    assert len(sheet.rows_of(GREEN_BORDER)) == 0
    assert not any("✓" in text for text in sheet.texts)


def test_no_queries_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="queries is empty"):
        contact_sheet(tmp_path / "sheet.png", [])


def test_unreadable_video_is_an_error(tmp_path, draw):
    from garevla.data.video import VideoError

    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        draw([QueryResult("a bird", "bad", 1.0, (("bad", bad, 0.5),))])
