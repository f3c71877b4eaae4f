"""What is told of open_clip's models without building them, and the table of docs/backbones.md."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest
from open_clip.tokenizer import HFTokenizer

from garevla import cli
from garevla.encoders.catalog import by_fit, list_models, model_entry
from garevla.encoders.pretrained import _preprocess_of
from garevla.encoders.tokenizers import TokenizerSource, load_tokenizer
from tests.encoders.small_models import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_every_model_is_listed_once_and_fits_mode_gare() -> None:
    models = list_models()
    assert [model.name for model in models] == open_clip.list_models()
    assert all(model.fit.fits("gare") for model in models)
    assert sum(map(len, by_fit(models).values())) == len(models)
    pe = model_entry("PE-Core-B-16")
    assert (pe.image_size, pe.dim, pe.context_length) == (224, 1024, 32)
    assert pe.pretrained == ("meta",)
    assert not pe.fit.fits("discovla")
    assert model_entry("ViT-B-32-quickgelu").fit.fits("gare+discovla")


def test_tests_meet_every_kind_of_towers() -> None:
    """Each with a small random model; see test_backbones.py."""
    met = {model_entry(name).fit for name in FAMILIES}
    assert met == set(by_fit(list_models()))


def test_the_documents_table_is_right() -> None:
    rows = re.findall(r"^\| (`.+`) \|(.+)\|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 10
    everything = list_models()
    met = set()
    for texts, cells in rows:
        _, _, gare, words, discovla = (cell.strip() for cell in cells.split("|"))
        families = re.findall("`(.+?)`", texts)
        models = [each for each in everything if all(map(each.is_of, families))]
        assert models, texts
        for model in models:
            assert model.fit.fits("gare") == (gare == "yes"), model.name
            assert (model.fit.word_obstacle is None) == (words == "yes"), model.name
            for mode in ("discovla", "gare+discovla"):
                assert model.fit.fits(mode) == (discovla == "yes"), model.name
            met.add(model.name)
    assert met == set(open_clip.list_models())


def test_the_command_lists_and_selects(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "SigLIP2-256"]) == 0
    printed = capsys.readouterr().out
    assert "ViT-B-32-SigLIP2-256 " in printed
    assert "not discovla, gare+discovla: a timm image tower" in printed
    assert "webli" in printed
    assert "ViT-B-32-quickgelu" not in printed
    assert cli.main(["models", "--mode", "discovla"]) == 0
    printed = capsys.readouterr().out
    assert "ViT-B-32-quickgelu" in printed
    assert "SigLIP" not in printed
    assert cli.main(["models", "--mode", "discovla", "--family", "siglip"]) == 1


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("ViT-B-32-quickgelu", "openai", ("shortest", "bicubic", open_clip.OPENAI_DATASET_MEAN)),
        ("ViT-H-14-quickgelu", "dfn5b", ("squash", "bicubic", open_clip.OPENAI_DATASET_MEAN)),
        ("PE-Core-B-16", "meta", ("squash", "bilinear", (0.5, 0.5, 0.5))),
        # Of weights in a file: what those that open_clip knows have in common.
        ("ViT-B-16-SigLIP2", "weights.pt", ("squash", "bicubic", (0.5, 0.5, 0.5))),
        ("ViT-L-14", None, ("shortest", "bicubic", None)),
        ("ViT-H-14", None, (None, "bicubic", open_clip.OPENAI_DATASET_MEAN)),
        ("ViT-e-14", None, (None, None, None)),
    ],
)
def test_preprocessing_is_that_of_the_weights(
    name: str, weights: str | None, expected: tuple[object, ...]
) -> None:
    found = _preprocess_of(name, weights)
    assert tuple(map(found.get, ("resize_mode", "interpolation", "mean"))) == expected


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "ViT-L-14-CLIPA", "roberta-ViT-B-32"])
def test_config_files_name_their_tokenizer_as_open_clip_reads_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import json

    made = []

    def note(self: HFTokenizer, source: str, **options: object) -> None:
        options.pop("context_length", None)
        made.append((str(source), {n: v for n, v in options.items() if v is not None}))

    monkeypatch.setattr(HFTokenizer, "__init__", note)
    load_tokenizer.cache_clear()
    text = json.dumps(open_clip.get_model_config(name)["text_cfg"])
    load_tokenizer(TokenizerSource(name))
    load_tokenizer(TokenizerSource("", text))
    assert made[0] == made[1]
    (tmp_path / "tokenizer_config.json").touch()
    load_tokenizer(TokenizerSource("", text, str(tmp_path)))
    assert made[2] == (str(tmp_path), made[0][1])
    load_tokenizer.cache_clear()
