"""A made-up task of mteb, whose videos come from a stand-in for torchcodec's decoder."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from garevla.data import Sampling

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mteb = pytest.importorskip("mteb", minversion="2.26")
    datasets = pytest.importorskip("datasets")
pytest.importorskip("torchvision")

from garevla.evaluation.mteb import SearchModel

COLORS = (40, 90, 140, 190, 240)


class Decoder:
    """A video of one shade of gray, 5 frames at 2 per second."""

    def __init__(self, shade):
        self.shade = shade
        self.metadata = SimpleNamespace(average_fps=2.0)

    def __len__(self):
        return 5

    def get_frames_at(self, indices):
        assert indices == [0, 2, 4]
        return SimpleNamespace(data=torch.full((3, 3, 20, 30), self.shade, dtype=torch.uint8))


class Shades(nn.Module):
    """Scores a text, a number, by its distance from the shade of a video's valid frames."""

    def __init__(self):
        super().__init__()
        self.encoder = SimpleNamespace(
            image_size=8,
            image_mean=(0.0,) * 3,
            image_std=(1.0,) * 3,
            logit_scale=nn.Parameter(torch.ones(())),
        )

    def tokenize(self, texts):
        return torch.tensor([[int(text)] for text in texts])

    def encode_text(self, tokens):
        return tokens.float() / 255

    def encode_video(self, video, frame_mask):
        assert video.shape[1:] == (4, 3, 8, 8)
        assert frame_mask.tolist() == [[True, True, True, False]] * len(video)
        return video.mean(dim=(3, 4)).mean(dim=2, keepdim=True)

    def similarity(self, text, frames, mask):
        pooled = (frames * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return -(text - pooled.T).abs()


def texts():
    # The last one is nearer to its neighbour's video than to its own.
    shades = (41, 88, 143, 190, 200)
    rows = {"id": [f"t{i}" for i in range(5)], "text": [str(shade) for shade in shades]}
    return datasets.Dataset.from_dict(rows)


def videos():
    rows = {"id": [f"v{i}" for i in range(5)], "video": list(COLORS)}

    def decode(batch):
        decoded = {"video": [Decoder(s) for s in batch["video"]]} if "video" in batch else {}
        return {**batch, **decoded}

    return datasets.Dataset.from_dict(rows).with_transform(decode)


def task(corpus, queries, letters, top_ranked=None):
    query, document = letters

    class MadeUp(mteb.abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"MadeUp{query}2{document}",
            description="Shades of gray.",
            dataset={"path": "made/up", "revision": "1"},
            type="Any2AnyRetrieval",
            category=f"{query}2{document}",
            modalities=["text", "video"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="recall_at_1",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, **options):
            relevant = {f"{query}{i}": {f"{document}{i}": 1} for i in range(5)}
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": corpus,
                        "queries": queries,
                        "relevant_docs": relevant,
                        "top_ranked": top_ranked,
                    }
                }
            }
            self.data_loaded = True

    return MadeUp()


def scores(made_up):
    model = SearchModel(Shades(), Sampling(4))
    assert isinstance(model, mteb.SearchProtocol)
    result = mteb.evaluate(model, made_up, cache=None, show_progress_bar=False)
    (figures,) = result.task_results[0].scores["test"]
    return figures


@pytest.mark.filterwarnings("ignore")
def test_figures_of_a_task():
    text_to_video = scores(task(videos(), texts(), "tv"))
    assert text_to_video["recall_at_1"] == pytest.approx(0.8)
    assert text_to_video["recall_at_3"] == 1
    assert scores(task(texts(), videos(), "vt"))["recall_at_1"] == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore")
def test_reranking_is_among_the_candidates():
    candidates = {f"t{i}": [f"v{i}", f"v{(i + 1) % 5}"] for i in range(5)}
    figures = scores(task(videos(), texts(), "tv", candidates))
    assert figures["recall_at_1"] == 1


def test_searches_that_make_no_sense():
    model = SearchModel(Shades(), Sampling(4))
    with pytest.raises(RuntimeError, match=r"search\(\) needs index\(\)"):
        model.search(texts(), top_k=1, encode_kwargs={})
    model.index(videos(), encode_kwargs={"batch_size": 2})
    with pytest.raises(ValueError, match="queries must be texts"):
        model.search(videos(), top_k=1, encode_kwargs={})
    with pytest.raises(ValueError, match=r"'text' or 'video' is needed, found \['id'\]"):
        model.index(texts().remove_columns("text"), encode_kwargs={})
    found = model.search(texts(), top_k=2, encode_kwargs={})
    assert list(found["t4"]) == ["v3", "v4"]
