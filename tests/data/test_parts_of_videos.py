"""Parts of a video, from the table of captions to the frames."""

from __future__ import annotations

import logging

import torch

from garevla.data import (
    Sampling,
    VideoDataset,
    VideoTextDataset,
    VideoTransform,
    check_split,
    load_split,
    read_frames,
)
from garevla.data.splits import log_overlap


def test_frames_of_parts_and_parts_that_there_are_not(tmp_path, write_video, caplog):
    path = write_video(tmp_path / "clip.mp4", 60)  # 8 frames a second, 7.5 seconds
    (tmp_path / "captions.csv").write_text(
        "video,caption,start,end,split\nclip,first,0,2,test\nclip,last,6,9,test\n"
        "clip,beyond,8,9,test\nclip,first,0,2.5,train\n"
    )
    report = check_split(tmp_path, tmp_path, "test", progress=False)
    assert report.num_checked == 3
    (bad,) = report.bad
    assert bad.path == path
    assert "no frame from second 8 to 9" in bad.reason
    split = load_split(tmp_path, tmp_path, "test", bad_videos="skip", progress=False)
    assert list(split.videos) == ["clip#t=0,2", "clip#t=6,9"]
    transform = VideoTransform(32, (0.5,) * 3, (0.5,) * 3)
    sampling = Sampling(4, "resample")
    for keep in (False, True):
        options = {"sampling": sampling, "keep_in_memory": keep}
        videos = VideoDataset(split, transform, **options)
        pairs = VideoTextDataset(split, transform, **options)
        for index, video_id in enumerate(split.videos):
            frames = read_frames(path, split.sampling_of(video_id, sampling))
            expected = transform.normalize(transform.crop(frames))
            for _ in range(2):
                assert torch.equal(videos[index].video, expected)
                assert torch.equal(pairs[index].video, expected)
        assert not torch.equal(videos[0].video, videos[1].video)
    train = load_split(tmp_path, tmp_path, "train", progress=False)
    with caplog.at_level(logging.WARNING):
        log_overlap(train, split)
    assert not [message for message in caplog.messages if "training videos, too" in message]
