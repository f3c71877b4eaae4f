from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from garevla.data.layouts.msrvtt import load_msrvtt
from garevla.data.synthetic import ANNOTATION_DIR, VIDEO_DIR, generate_dataset
from garevla.demo import DemoConfig, _captioned_frames, run_demo, training_config
from garevla.encoders import ClipEncoder
from garevla.search import Library
from garevla.training.config import ConfigError
from garevla.training.image_pretraining import _draw_batch, pretrain_clip
from garevla.utils import locks
from garevla.utils.locks import InUseError, lock_folder

PNG = b"\x89PNG"


def test_demo_from_nothing_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = DemoConfig(
        output_dir=tmp_path,
        num_train=12,
        num_test=4,
        image_steps=2,
        epochs=1,
        num_queries=2,
    )
    metrics = run_demo(config)
    assert metrics.keys() == {"text_to_video", "video_to_text"}
    for name in ("queries.png", "run/curves.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    shown = capsys.readouterr().out
    assert "chance R@1 is 25.0 %" in shown
    assert "text to video, untrained" in shown
    library = tmp_path / "library.garevla"
    assert f"garevla serve {library}" in shown
    assert Library.open(library).status()["videos"] == 4
    # A finished demo shows its figures without training again.
    clip = (tmp_path / "clip.pt").stat().st_mtime_ns
    assert run_demo(config) == metrics
    assert (tmp_path / "clip.pt").stat().st_mtime_ns == clip


def test_one_process_runs_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS", 0.1)
    with lock_folder(tmp_path), pytest.raises(InUseError, match="another process is writing into"):
        run_demo(DemoConfig(output_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("seed", -1), ("num_queries", 0), ("num_train", 0)]
)
def test_senseless_values_are_refused_before_anything_is_made(
    tmp_path: Path, name: str, value: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} "):
        run_demo(DemoConfig(output_dir=tmp_path, **{name: value}))
    assert not (tmp_path / "data").exists()


def test_demo_settings_of_each_mode() -> None:
    for mode in ("gare", "discovla", "gare+discovla"):
        settings = training_config(DemoConfig(mode=mode, image_steps=5))
        assert settings.model.mode == mode
        assert (settings.data.pseudo_captions is None) == (mode == "gare")
        assert (settings.model.temporal_layers == 0) == (mode == "discovla")


def test_demo_trains_any_psi() -> None:
    settings = training_config(DemoConfig(psi="gap_mlp", psi_dropout_mode="pair"))
    assert (settings.model.psi, settings.model.psi_dropout_mode) == ("gap_mlp", "pair")


def test_demo_begins_with_random_weights_or_an_image_clip() -> None:
    assert DemoConfig().mode == "gare+discovla"
    assert training_config(DemoConfig()).model.pretrained.endswith("clip.pt")
    assert training_config(DemoConfig(mode="gare")).model.pretrained is None
    given = DemoConfig(mode="gare", image_steps=5)
    assert training_config(given).model.pretrained.endswith("clip.pt")
    with pytest.raises(ConfigError, match="image_steps must be at least 1, got 0"):
        DemoConfig(mode="discovla", image_steps=0)


def test_image_clip_learns_the_words_of_video_captions(tmp_path: Path) -> None:
    generate_dataset(tmp_path, num_train=4, num_test=2)
    images, captions = _captioned_frames(tmp_path)
    split = load_msrvtt(tmp_path / ANNOTATION_DIR, tmp_path / VIDEO_DIR, "train-9k")
    assert len(images) == len(captions) == 4 * 8
    for number, video_id in enumerate(split.videos):
        own = captions[8 * number : 8 * number + 8]
        told = [caption.text for caption in split.captions if caption.video_id == video_id]
        # Each frame's own description, and how the story is told with its second half.
        assert [len(texts) for texts in own] == [1] * 4 + [1 + len(told)] * 4
        assert all(texts[1:] == told for texts in own[4:])


COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}


def colored_images() -> tuple[np.ndarray, list[list[str]]]:
    generator = np.random.default_rng(0)
    images, captions = [], []
    for name, color in COLORS.items():
        for _ in range(4):
            noise = generator.integers(-20, 20, (64, 64, 3))
            images.append(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))
            captions.append([f"a {name} square"])
    return np.stack(images), captions


def test_pretrained_clip_knows_its_images(tmp_path: Path) -> None:
    images, captions = colored_images()
    path = tmp_path / "clip.pt"
    first = pretrain_clip("tiny", images, captions, tmp_path / "first.pt", steps=1, progress=False)
    loss = pretrain_clip("tiny", images, captions, path, steps=25, progress=False)
    assert loss < 0.2 * first
    encoder = ClipEncoder("tiny", str(path), temporal_layers=0).eval()
    names = list(COLORS)
    with torch.no_grad():
        texts = encoder.encode_text(encoder.tokenize([f"a {name} square" for name in names]))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (encoder.image_mean, encoder.image_std)
        )
        features = encoder.clip.visual((pixels - mean) / std)
    similarity = torch.nn.functional.normalize(features, dim=1) @ texts.T / texts.norm(dim=1)
    found = [[f"a {names[index]} square"] for index in similarity.argmax(dim=1)]
    assert found == captions


def test_pretraining_repeats(tmp_path: Path) -> None:
    images, captions = colored_images()
    states = []
    for name in ("one.pt", "two.pt"):
        pretrain_clip("tiny", images, captions, tmp_path / name, steps=2, progress=False)
        states.append(torch.load(tmp_path / name, weights_only=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pretraining_needs_different_captions(tmp_path: Path) -> None:
    images, captions = colored_images()
    for wrong in (captions[:-1], captions[:1] * len(captions), [*captions[:-1], []]):
        with pytest.raises(ValueError, match="need a caption for each image"):
            pretrain_clip("tiny", images, wrong, tmp_path / "clip.pt", steps=1, progress=False)
    assert not (tmp_path / "clip.pt").exists()


def test_captions_of_a_batch_differ_and_belong_to_their_images() -> None:
    captions = [["a"], ["a", "b"], ["b", "c", "d"], ["a"]]
    generator = np.random.default_rng(0)
    batches = [_draw_batch(captions, 3, generator) for _ in range(50)]
    for batch in batches:
        assert 2 <= len(batch) <= 3
        assert all(text in captions[index] for text, index in batch.items())
    assert set().union(*batches) == {"a", "b", "c", "d"}
    assert {len(_draw_batch(captions, 1, generator)) for _ in range(5)} == {1}
