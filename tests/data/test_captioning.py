from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla.data import AnnotationError, Sampling, captioning, load_msrvtt
from garevla.data.captioning import CaptionConfig, CaptioningError, caption_videos, run_captioning
from garevla.data.pseudo_captions import PseudoCaptions
from garevla.data.video import VideoError
from garevla.utils import locks
from garevla.utils.locks import InUseError, lock_file
from garevla.utils.processes import Processes

WORDS = ["red", "blue", "green", "circle", "square", "moves", "left", "right", "up", "down"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Weights this large make random models look at the image.
LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 1.0,
}
IMAGES = {**LAYERS, "image_size": 16, "patch_size": 8}
TEXT = {
    **LAYERS,
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def save_blip(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    text = {**TEXT, "sep_token_id": 3, "encoder_hidden_size": 32, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=IMAGES, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    say_words_only(model.text_decoder.cls.predictions.bias)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def save_git(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    model = GitForCausalLM(GitConfig(vision_config=IMAGES, **TEXT))
    say_words_only(model.output.bias)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    GitProcessor(images, tokenizer).save_pretrained(folder)


def save_encoder_decoder(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import (
        BertConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    decoder = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**IMAGES), decoder)
    model = VisionEncoderDecoderModel(config)
    say_words_only(model.decoder.cls.predictions.bias)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


KINDS = {"blip": save_blip, "git": save_git, "encoder-decoder": save_encoder_decoder}


def say_words_only(bias: torch.Tensor) -> None:
    with torch.no_grad():
        bias[: len(SPECIAL)] = -1e4


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folders of tiny captioning models with random weights."""
    root = tmp_path_factory.mktemp("models")
    (root / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))

    def model(kind: str) -> str:
        transformers = pytest.importorskip("transformers")
        folder = root / kind
        if not folder.exists():
            torch.manual_seed(0)
            KINDS[kind](folder, transformers.BertTokenizer(str(root / "vocab.txt")))
        return str(folder)

    return model


@pytest.fixture(scope="session")
def videos(small_dataset: Path) -> dict[str, Path]:
    return {f"video{i}": small_dataset / "videos" / f"video{i}.mp4" for i in (3, 0, 4, 8)}


@pytest.fixture
def caption(
    models: Callable[[str], str], videos: dict[str, Path]
) -> Callable[..., captioning.CaptioningReport]:
    """caption_videos with a tiny model, in this process."""

    def run(output: Path, kind: str = "blip", **changes: typing.Any) -> captioning.CaptioningReport:
        options = {"num_beams": 2, "max_new_tokens": 5, "num_workers": 0, "progress": False}
        model = changes.pop("model", None) or models(kind)
        return caption_videos(
            changes.pop("videos", videos), output, model=model, **{**options, **changes}
        )

    return run


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial.jsonl")


def journalled(output: Path) -> list[str]:
    return [json.loads(line)["video_id"] for line in journal_of(output).open().readlines()[1:]]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Interrupt the run when it comes to a video."""

    def stop(video_id: str) -> None:
        read = captioning.read_frames

        def read_or_stop(path: Path, sampling: Sampling) -> np.ndarray:
            if path.stem == video_id:
                raise KeyboardInterrupt
            return read(path, sampling)

        monkeypatch.setattr(captioning, "read_frames", read_or_stop)

    return stop


class Mute:
    """A captioning model with few words: none for the frames it is told."""

    name = "mute"
    image_processor = staticmethod(lambda images, **_: {"frames": torch.tensor(range(len(images)))})

    def __init__(self, mute: Callable[[int], bool]) -> None:
        self.mute = mute

    def __call__(self, inputs: dict[str, torch.Tensor]) -> list[str]:
        return ["" if self.mute(i) else f"frame {i}" for i in inputs["frames"].tolist()]


# ------------------------------------------------------------------------- captions


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


# ------------------------------------------------------------------------- stop and go on


def test_a_run_stopped_twice_goes_on_to_the_same_end(
    caption, stop_at, monkeypatch, tmp_path, capsys
):
    caption(tmp_path / "whole.json")
    output = tmp_path / "parts.json"
    stop_at("video4")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    assert journalled(output) == ["video3", "video0"]
    # As if killed while writing the second.
    journal_of(output).write_bytes(journal_of(output).read_bytes()[:-20])
    monkeypatch.undo()

    # What is done is not read again.
    stop_at("video3")
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    assert journalled(output) == ["video3", "video0", "video4"]
    monkeypatch.undo()

    stop_at("video0")
    caption(output, batch_size=5, progress=True)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal_of(output).exists()
    assert "captioning: 100%" in capsys.readouterr().err


def test_a_killed_process_goes_on_to_the_same_end(caption, models, videos, tmp_path):
    caption(tmp_path / "whole.json")
    output = tmp_path / "killed.json"
    script = f"""
import os, pathlib, signal
from garevla.data import captioning
read = captioning.read_frames
def read_or_die(path, sampling):
    if path.stem == "video4":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, sampling)
captioning.read_frames = read_or_die
captioning.caption_videos(
    { ({i: str(path) for i, path in videos.items()})!r}, {str(output)!r},
    model={models("blip")!r}, num_beams=2, max_new_tokens=5, num_workers=0, progress=False,
)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode < 0, done.stderr
    assert journalled(output) == ["video3", "video0"]
    assert not output.exists()
    caption(output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_other_settings_cannot_go_on(caption, models, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    for changes, message in (
        ({"sampling": Sampling(max_frames=4)}, "max_frames: 12 -> 4"),
        (
            {"num_beams": 1, "sampling": Sampling(mode="resample")},
            "sampling: 'grid' -> 'resample', num_beams: 2",
        ),
        ({"model": models("git")}, "model: .*blip' -> .*git'"),
    ):
        with pytest.raises(CaptioningError, match=f"other settings .*{message}.* remove it"):
            caption(output, **changes)
    assert len(journalled(output)) == 3


def test_a_run_stopped_before_the_first_video_binds_to_nothing(caption, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video3")
    for max_frames in (12, 2):
        with pytest.raises(KeyboardInterrupt):
            caption(output, sampling=Sampling(max_frames))
        (line,) = journal_of(output).read_text().splitlines()
        assert json.loads(line)["settings"]["max_frames"] == max_frames


def test_a_damaged_journal_is_named_with_its_line(caption, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    lines = journal_of(output).read_text().splitlines(keepends=True)
    for number, damaged in ((1, "{}\n"), (3, "???\n"), (3, "[]\n")):
        journal_of(output).write_text("".join([*lines[: number - 1], damaged, *lines[number:]]))
        with pytest.raises(CaptioningError, match=rf"partial\.jsonl, line {number}: damaged"):
            caption(output)


def test_a_video_that_has_changed_is_captioned_anew(
    caption, videos, stop_at, monkeypatch, tmp_path
):
    copies = {i: Path(shutil.copy(path, tmp_path)) for i, path in videos.items()}
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output, videos=copies)
    monkeypatch.undo()
    shutil.copy(videos["video4"], copies["video0"])
    caption(output, videos=copies)
    found = json.loads(output.read_text())
    assert list(found) == list(videos)
    assert found["video0"] == found["video4"] != found["video3"]


def test_a_video_that_has_become_bad_loses_its_captions(caption, videos, stop_at, tmp_path):
    copies = {i: Path(shutil.copy(path, tmp_path)) for i, path in videos.items()}
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output, videos=copies)
    copies["video0"].unlink()
    left = {i: path for i, path in copies.items() if i != "video8"}
    caption(output, videos=left, bad_videos="skip")
    assert list(json.loads(output.read_text())) == ["video3", "video4"]


def test_only_videos_asked_for_are_written(caption, videos, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    report = caption(output, videos={i: videos[i] for i in ("video4", "video3")})
    assert list(json.loads(output.read_text())) == ["video4", "video3"]
    assert report.num_videos == 2


def test_a_finished_file_is_not_touched(caption, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.json exists already"):
        caption(tmp_path / "out.json", model="any")
    assert (tmp_path / "out.json").read_text() == "mine"
    assert not journal_of(tmp_path / "out.json").exists()


# ------------------------------------------------------------------------- what can be wrong


@pytest.fixture
def some_bad(videos: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["video0"].read_bytes()[:600])
    return {**videos, "video0": cut, "video4": tmp_path / "absent.mp4"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_video_stops_the_run(caption, some_bad, num_workers, tmp_path):
    with pytest.raises(VideoError, match=r"cut\.mp4: truncated") as caught:
        caption(tmp_path / "out.json", videos=some_bad, num_workers=num_workers)
    assert caught.value.path == some_bad["video0"]
    assert journalled(tmp_path / "out.json") == ["video3"]


def test_bad_videos_are_skipped_when_asked(caption, some_bad, tmp_path, caplog):
    output = tmp_path / "out.json"
    with caplog.at_level(logging.WARNING):
        report = caption(output, videos=some_bad, bad_videos="skip")
    assert list(json.loads(output.read_text())) == ["video3", "video8"]
    assert [path for path, _ in report.bad] == [some_bad["video0"], some_bad["video4"]]
    assert "skipped 2 of 4 videos" in caplog.text
    assert "absent.mp4: no such file" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": {}}, "number of videos must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"bad_videos": "ignore"}, "bad_videos must be 'error' or 'skip'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_wrong_settings(caption, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        caption(tmp_path / "out.json", model="any", **changes)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(caption, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(CaptioningError, match=r"'.*nowhere' cannot be loaded; .* local copy"):
        caption(tmp_path / "out.json", model=str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CaptioningError, match="'garevla/nowhere' cannot be loaded"):
        caption(tmp_path / "out.json", model="garevla/nowhere")
    assert not list(tmp_path.iterdir())


class _NoConnection(Exception):
    """Stands for what the hub's client raises."""


def test_without_a_connection_only_local_copies_are_tried(caption, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    tried = []

    def refuse(*_: object, **options: object) -> None:
        raise _NoConnection("Name or service not known")

    def load(name: str, **options: object) -> None:
        tried.append(options["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", load)
    message = "no copy of it, and the Hugging Face hub is not reached: Name or service not known"
    with pytest.raises(CaptioningError, match=message):
        caption(tmp_path / "captions.json", model="garevla/nowhere")
    assert tried == [True]


def test_without_a_connection_the_command_fails_in_seconds(videos, tmp_path):
    pytest.importorskip("transformers")
    folder = next(iter(videos.values())).parent
    flags = ["--video_dir", str(folder), "--output", str(tmp_path / "c.json"), "--num_workers", "0"]
    # Nothing listens there.
    network = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "garevla", "caption", *flags]
    result = subprocess.run(
        command, env={**os.environ, **network}, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 2, result.stderr
    assert "hub is not reached" in result.stderr.splitlines()[-1]
    assert "Retrying" not in result.stderr


def test_one_process_writes_a_file(caption, monkeypatch, tmp_path):
    monkeypatch.setattr(locks, "_SECONDS", 0.1)
    output = tmp_path / "captions.json"
    with (
        lock_file(output),
        pytest.raises(InUseError, match=r"another process is writing .*captions\.json: wait"),
    ):
        caption(output)


def test_models_that_do_not_caption_an_image_by_themselves(caption, models, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(models("blip"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CaptioningError, match="is a chat model, which needs a prompt"):
        caption(tmp_path / "out.json", model=str(folder))

    shutil.rmtree(folder)
    shutil.copytree(models("encoder-decoder"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CaptioningError, match=r"cannot be loaded.* Reason: Unrecognized config"):
        caption(tmp_path / "out.json", model=str(folder))


def test_without_transformers(caption, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "garevla\[caption\]"'):
        caption(tmp_path / "out.json", model="any")


# ------------------------------------------------------------------------- the command


@pytest.fixture
def config(models: Callable[[str], str], small_dataset: Path, tmp_path: Path) -> CaptionConfig:
    return CaptionConfig(
        video_dir=small_dataset / "videos",
        output=tmp_path / "pseudo.json",
        model=models("git"),
        num_beams=1,
        max_new_tokens=4,
        num_workers=0,
    )


def test_every_video_of_a_folder(config, small_dataset):
    report = run_captioning(config, progress=False)
    pseudo = PseudoCaptions.load(config.output)
    assert report.num_videos == 16
    for split in ("train-9k", "test"):
        loaded = load_msrvtt(small_dataset / "annotations", small_dataset / "videos", split)
        assert pseudo.cover(loaded) is loaded
        assert {len(pseudo.find(caption)) for caption in loaded.captions} == {8}


def test_the_videos_of_a_split(config, small_dataset, capsys):
    config = dataclasses.replace(
        config, annotation_dir=small_dataset / "annotations", split="test", max_frames=3
    )
    report = run_captioning(config)
    assert (report.num_videos, report.num_frames) == (6, 18)
    assert "captioning: 100%" in capsys.readouterr().err


def test_folders_with_links_and_with_nothing(config, videos, tmp_path):
    config.video_dir = tmp_path / "videos"
    with pytest.raises(FileNotFoundError, match="video folder"):
        run_captioning(config)
    (config.video_dir / "part").mkdir(parents=True)
    (config.video_dir / "notes.txt").touch()
    (config.video_dir / "._video3.mp4").touch()
    with pytest.raises(AnnotationError, match=r"no video \(.mp4"):
        run_captioning(config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(videos["video3"], elsewhere)
    shutil.copy(videos["video0"], config.video_dir / "part" / "my_clip.MP4")
    (config.video_dir / "link").symlink_to(elsewhere)
    (config.video_dir / "part" / "up").symlink_to(config.video_dir)
    run_captioning(config, progress=False)
    assert list(json.loads(config.output.read_text())) == ["my_clip", "video3"]


def test_videos_of_a_split_without_a_file(config, small_dataset, tmp_path, caplog):
    folder = tmp_path / "videos"
    shutil.copytree(small_dataset / "videos", folder)
    (folder / "video11.mp4").unlink()
    config = dataclasses.replace(
        config, video_dir=folder, annotation_dir=small_dataset / "annotations", split="test"
    )
    with pytest.raises(FileNotFoundError, match="video11"):
        run_captioning(config, progress=False)
    config.bad_videos = "skip"
    assert run_captioning(config, progress=False).num_videos == 5
    assert "skipped 1 of 6 videos" in caplog.text


def test_every_setting_of_the_command_reaches_the_function(config, monkeypatch):
    fields = {field.name: field for field in dataclasses.fields(CaptionConfig)}
    options = dict(caption_videos.__kwdefaults__)
    assert CaptionConfig.frame_sampling.fget(CaptionConfig) == options.pop("sampling")
    config.max_frames, config.sampling, config.frames_per_second = 5, "resample", 2.0
    assert options.keys() - fields.keys() == {"progress", "processes"}
    for name, default in options.items():
        if name in fields:
            assert fields[name].default == default
            setattr(config, name, f"the {name}")
    options["processes"] = Processes(1, 2)
    received = {}
    monkeypatch.setattr(captioning, "caption_videos", lambda *_, **given: received.update(given))
    run_captioning(config, options["processes"], progress=False)
    assert received.pop("sampling") == Sampling(5, "resample", 2.0)
    wanted = {name: f"the {name}" for name in options if name in fields}
    assert received == wanted | {"progress": False, "processes": options["processes"]}
