from __future__ import annotations

import logging
from pathlib import Path

from garevla.data import Caption, RetrievalSplit
from garevla.data.splits import log_overlap


def split_of(**files: Path) -> RetrievalSplit:
    captions = tuple(Caption(video_id, "a dog") for video_id in files)
    return RetrievalSplit(captions, files)


def test_test_videos_that_are_training_videos_are_counted(tmp_path, caplog):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "b.mp4")
    train = split_of(a=tmp_path / "a.mp4", b=tmp_path / "b.mp4")
    with caplog.at_level(logging.INFO):
        log_overlap(train, split_of(c=tmp_path / "c.mp4"))
        assert not caplog.records
        log_overlap(train, split_of(a=tmp_path / "a.mp4", c=tmp_path / "c.mp4"))
        log_overlap(train, split_of(c=tmp_path / "c.mp4", d=tmp_path / "link.mp4"))
    assert "1 of 2 test videos are training videos, too" in caplog.messages[0]
    assert [message[-3:] for message in caplog.messages] == [": a", ": d"]
