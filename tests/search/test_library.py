from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from garevla.discovla.similarity import mean_frame_similarity
from garevla.search import Library, LibraryError
from garevla.search.format import VideoRecord, split_segment_id
from garevla.search.model import segment_vectors
from garevla.search.results import Scored, clock, merge
from garevla.search.writer import SegmentData, Writer, create
from tests.search import made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """30 videos of made-up frames, 1 to 4 segments each, for the tiny model."""
    folder = tmp_path_factory.mktemp("searched") / "library"
    folder.mkdir()
    create(folder, made.settings())
    generator = np.random.default_rng(0)
    with Writer(folder) as writer:
        for number in range(30):
            segments = []
            for segment in made.segments(generator, 1 + number % 4):
                frames = torch.from_numpy(segment.frames.astype(np.float16)).float()[None]
                mask = torch.ones(frames.shape[:2], dtype=torch.bool)
                vector = segment_vectors(frames, mask)[0].numpy()
                segments.append(SegmentData(*segment[:2], segment.frames, vector, b"jpeg"))
            record = VideoRecord(0, f"{number}.mp4".encode(), 1, 1, "", 8.0)
            writer.add(record, segments, generator.uniform(0, 0.2, made.QUERIES))
        writer.commit()
    return Library.open(folder, device="cpu")


def exact_scores(library: Library, text: str) -> dict[int, float]:
    """Of every segment, in float64."""
    features = library.model.encode_texts([text]).double()
    found = {}
    for segment in library._scan.all_ids().tolist():
        record, place = library._segment(segment)
        frames = torch.from_numpy(library._store.frames(record, place).astype(np.float64))[None]
        found[segment] = float(mean_frame_similarity(features, frames))
    return found


def best_of(results) -> dict[int, float]:
    return {result.best_segment: result.score for result in results}


@pytest.mark.parametrize("options", [{"exact": True}, {"candidates": 200}, {"candidates": 12}])
def test_scores_are_exact(library, options):
    text = "a red square moves left"
    expected = exact_scores(library, text)
    results = library.search(text, **options)
    assert len(results) == 10
    for result in results:
        assert abs(result.score - expected[result.best_segment]) < 1e-5
        assert result.path == f"{result.video_id - 1}.mp4"
        assert result.file == Path("/videos", result.path)
        assert result.thumbnail == b"jpeg"
        places = [split_segment_id(segment)[1] for segment in result.segment_ids]
        assert (result.start, result.end) == (2.0 * places[0], 2.0 * places[-1] + 2)
        assert result.score == pytest.approx(
            max(expected[segment] for segment in result.segment_ids), abs=1e-5
        )
    assert results[0].best_segment == max(expected, key=expected.__getitem__)
    assert [r.score for r in results] == sorted((r.score for r in results), reverse=True)


def test_pages_go_on_where_the_one_before_has_ended(library):
    whole = library.search("a circle", 12)
    pages = [result for skip in (0, 5, 10) for result in library.search("a circle", 5, skip=skip)]
    assert [r.best_segment for r in pages[:12]] == [r.best_segment for r in whole]
    assert library.search("a circle", 5, skip=1000) == []


def test_confidence_is_the_share_of_the_bank_that_finds_nothing_as_good(library):
    bank = np.stack([library._store.bank_scores(r) for r in library._store.videos.values()])
    for result in library.search("a circle", 30):
        better = (bank.max(axis=0) < result.score).sum()
        assert result.confidence == better / (made.QUERIES + 1)


def test_threads_find_what_one_does(library):
    texts = [f"shape number {number}" for number in range(6)]
    alone = [best_of(library.search(text)) for text in texts]
    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(lambda text: best_of(library.search(text)), texts)) == alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "  "}, "text is empty"),
        ({"text": "a", "top": 0}, "top must be at least 1"),
        ({"text": "a", "candidates": 0}, "candidates must be at least 1"),
        ({"text": "a", "skip": -1}, "skip must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(library, arguments, message):
    with pytest.raises(ValueError, match=message):
        library.search(**arguments)


def test_what_there_is_not(library):
    with pytest.raises(KeyError):
        library.video(99)
    for segment in (0, -1, 1 << 20 | 1, 99 << 20, 2**63 - 1):
        with pytest.raises(KeyError):
            library.thumbnail(segment)


def test_status(library):
    status = library.status()
    assert (status["videos"], status["segments"], status["model"]) == (30, 73, "tiny")


def test_an_index_that_has_changed_is_opened_again(tmp_path):
    made.make(tmp_path / "library")
    library = Library.open(tmp_path / "library", device="cpu")
    model = library.model
    assert not library.has_changed
    with Writer(tmp_path / "library") as writer:
        writer.remove(1)
        writer.commit()
    assert library.has_changed
    other = library.reopened()
    assert (len(other._store.videos), other.has_changed) == (4, False)
    assert other.model is model


def test_a_model_that_has_changed_is_an_error_that_names_it(tmp_path):
    made.make(tmp_path / "library", model={"model": "tiny", "pretrained": None, "digest": "0" * 64})
    library = Library.open(tmp_path / "library", device="cpu")
    with pytest.raises(LibraryError, match="the weights of tiny are not those"):
        library.search("anything")


def test_a_checkpoint_that_is_gone_is_named(tmp_path):
    model = {"model": "/nowhere/best.pt", "pretrained": None, "digest": ""}
    made.make(tmp_path / "library", model=model)
    with pytest.raises(FileNotFoundError, match=r"/nowhere/best\.pt"):
        Library.open(tmp_path / "library", device="cpu").search("anything")


def scored(*segments: tuple[int, float, float, float]) -> list[Scored]:
    return [
        Scored(number, video, start, end, score)
        for number, (video, start, end, score) in enumerate(segments)
    ]


def ranges(groups) -> list[tuple[int, float, float]]:
    return [(g[0].video_id, min(s.start for s in g), max(s.end for s in g)) for g in groups]


def test_neighbours_become_one_result():
    segments = scored(
        (1, 0, 10, 0.1), (1, 8, 18, 0.9), (1, 16, 26, 0.8), (1, 24, 34, 0.1), (1, 40, 50, 0.85),
        (2, 0, 10, 0.7), (2, 30, 40, 0.1), (3, 0, 10, 0.1),
    )  # fmt: skip
    assert ranges(merge(segments)[:3]) == [(1, 8, 26), (1, 40, 50), (2, 0, 10)]
    assert merge([]) == []


def test_a_segment_between_two_joins_them():
    segments = scored(
        (1, 0, 10, 0.9), (1, 16, 26, 0.85), (1, 8, 18, 0.8), (2, 0, 9, 0.1), (2, 20, 29, 0.1),
        (3, 0, 9, 0.1), (4, 0, 9, 0.1),
    )  # fmt: skip
    assert ranges(merge(segments))[0] == (1, 0, 26)


def test_times_in_words():
    assert [clock(seconds) for seconds in (0, 61.25, 3725.5)] == ["0:00.0", "1:01.2", "1:02:05.5"]


def test_vectors_have_the_order_of_mean_frame_similarity():
    frames, mask = torch.randn(20, 3, 8), torch.rand(20, 3) < 0.5
    mask[:, 0] = True
    text = torch.randn(2, 8)
    found = F.normalize(text, dim=-1) @ segment_vectors(frames, mask).T
    torch.testing.assert_close(found, mean_frame_similarity(text, frames, mask))
