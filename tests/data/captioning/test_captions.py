"""Every sampled frame gets a caption, by models of every kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from garevla.data import Sampling, captioning
from garevla.data.captioning import CaptioningError
from garevla.data.video import VideoError
from tests.data.captioning.tiny_models import KINDS, WORDS


class Mute:
    """A captioning model with few words: none for the frames it is told."""

    name = "mute"
    image_processor = staticmethod(lambda images, **_: {"frames": torch.tensor(range(len(images)))})

    def __init__(self, mute: Callable[[int], bool]) -> None:
        self.mute = mute

    def __call__(self, inputs: dict[str, torch.Tensor]) -> list[str]:
        return ["" if self.mute(i) else f"frame {i}" for i in inputs["frames"].tolist()]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_sampled_frame_gets_a_caption_of_its_own(kind, caption, videos, tmp_path):
    output = tmp_path / "deep" / "pseudo.json"
    report = caption(output, kind)
    found = json.loads(output.read_text())
    assert list(found) == list(videos)
    assert all(len(texts) == 8 for texts in found.values())
    texts = [text for texts in found.values() for text in texts]
    assert all(len(text.split()) == 5 and set(text.split()) <= set(WORDS) for text in texts)
    # The model looks at the frame: not all of them are called the same.
    assert len(set(texts)) > 4
    assert report == captioning.CaptioningReport(output, 4, 32, 0, ())
    assert [path.name for path in output.parent.iterdir()] == ["pseudo.json"]


def test_frames_are_those_of_training_in_their_order(caption, videos, monkeypatch, tmp_path):
    seen = []

    class Recorder(Mute):
        def image_processor(self, images, *, input_data_format, return_tensors):
            assert (input_data_format, return_tensors) == ("channels_last", "pt")
            seen.extend(images)
            return {"frames": torch.tensor(range(len(images)))}

    monkeypatch.setattr(captioning, "Captioner", lambda *_: Recorder(lambda i: False))
    sampling = Sampling(3, "resample", 2.0)
    caption(tmp_path / "out.json", model="any", sampling=sampling, batch_size=2)
    frames = [captioning.read_frames(path, sampling) for path in videos.values()]
    np.testing.assert_array_equal(np.stack(seen), np.concatenate(frames))
    # In batches of 2 and 1.
    texts = json.loads((tmp_path / "out.json").read_text())["video0"]
    assert texts == ["frame 0", "frame 1", "frame 0"]


def test_batches_and_processes_do_not_change_captions(caption, tmp_path):
    caption(tmp_path / "a.json")
    caption(tmp_path / "b.json", batch_size=3)
    caption(tmp_path / "c.json", num_workers=2)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()


@pytest.mark.gpu
def test_on_a_gpu(caption, tmp_path):
    caption(tmp_path / "cpu.json", device="cpu")
    report = caption(tmp_path / "gpu.json", device="cuda", num_workers=1)
    assert report.num_frames == 32
    on_cpu, on_gpu = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("cpu", "gpu")
    )
    same = [a == b for i in on_cpu for a, b in zip(on_cpu[i], on_gpu[i], strict=True)]
    assert sum(same) > 16


def test_frames_without_words_take_the_nearest_caption(caption, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(captioning, "Captioner", lambda *_: Mute(lambda i: i not in (2, 4, 7)))
    with caplog.at_level(logging.WARNING):
        report = caption(tmp_path / "out.json", model="any")
    texts = json.loads((tmp_path / "out.json").read_text())["video3"]
    assert texts == [f"frame {i}" for i in (2, 2, 2, 2, 4, 4, 7, 7)]
    assert report.num_filled == 4 * 5
    assert "20 frames without words" in caplog.text


def test_a_video_without_words_is_a_bad_one(caption, monkeypatch, tmp_path):
    monkeypatch.setattr(captioning, "Captioner", lambda *_: Mute(lambda i: True))
    with pytest.raises(VideoError, match=r"video3\.mp4: mute has no words"):
        caption(tmp_path / "out.json", model="any")
    with pytest.raises(CaptioningError, match="none of 4 videos can be captioned"):
        caption(tmp_path / "out.json", model="any", bad_videos="skip")
    assert not (tmp_path / "out.json").exists()
