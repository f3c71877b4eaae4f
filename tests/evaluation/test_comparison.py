from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from garevla import cli
from garevla.evaluation import (
    ComparisonError,
    DualSoftmax,
    EncodedSplit,
    Evaluation,
    Protocol,
    QueryBankNorm,
    RankFile,
    RetrievalMetrics,
    compare,
    evaluate_protocol,
    rank_of_caption_sets,
    rank_of_targets,
)
from garevla.evaluation.comparison import (
    exact_sign_flip_test,
    ranks_file,
    sampled_sign_flip_test,
)


def every_sign(differences: np.ndarray) -> float:
    """The test's definition."""
    sums = [
        abs(np.dot(signs, differences))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], 1.0),
        ([0, 0, 0], 1.0),
        ([1], 1.0),
        ([1, 1, 1, 1, 1], 2 / 32),
        # McNemar's exact test: of 10 that differ, 8 are the first's; 2·(45 + 10 + 1) of 1024.
        ([1] * 8 + [-1] * 2 + [0] * 5, 112 / 1024),
        ([3, 2, -1], 4 / 8),
        ([1, -1], 1.0),
    ],
)
def test_p_values_known_by_hand(differences: list[int], expected: float) -> None:
    numbers = np.array(differences, dtype=np.int64)
    assert exact_sign_flip_test(numbers) == pytest.approx(expected, rel=1e-12)
    sampled = sampled_sign_flip_test(numbers.astype(float))
    assert sampled == pytest.approx(expected, abs=4 * np.sqrt(expected / 10_000))


@pytest.mark.parametrize("seed", range(8))
def test_p_values_of_the_definition(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-4, 6, 11)
    expected = every_sign(differences)
    assert exact_sign_flip_test(differences) == pytest.approx(expected, rel=1e-12)
    halves = differences / 2 + 0.1
    expected = every_sign(halves)
    error = np.sqrt(expected * (1 - expected) / 10_000)
    assert sampled_sign_flip_test(halves, seed=seed) == pytest.approx(expected, abs=5 * error)


def test_many_queries_are_exact_too() -> None:
    differences = np.ones(3000, dtype=np.int64)
    differences[:1600] = -1
    expected = 0.000_279  # 2·P(Binomial(3000, 1/2) ≥ 1600), by the normal law with its correction
    assert exact_sign_flip_test(differences) == pytest.approx(expected, rel=0.05)


SIZE = 12
CAPTIONS = [
    SimpleNamespace(video_id=f"v#{v}", text=f"text {v}, {n}") for v in range(SIZE) for n in "ab"
]


class Dot:
    def similarity(self, text, frames, mask):
        return text @ frames[:, 0].T


def evaluation(seed: int, captions=CAPTIONS, **options) -> Evaluation:
    generator = torch.Generator().manual_seed(seed)
    video_ids = tuple(dict.fromkeys(caption.video_id for caption in captions))
    frames = torch.eye(len(video_ids))
    targets = np.array([video_ids.index(caption.video_id) for caption in captions])
    encoded = EncodedSplit(
        frames[targets] + 0.6 * torch.randn(len(captions), len(video_ids), generator=generator),
        frames[:, None],
        torch.ones(len(video_ids), 1, dtype=torch.bool),
        targets,
        video_ids,
    )
    ties = options.pop("ties", "average")
    protocol = Protocol.of(captions, video_ids, layout="made up", split="test", ties=ties)
    bank = torch.randn(7, len(video_ids), generator=generator)
    post_processing = {"dual_softmax": DualSoftmax(5.0), "qb_norm": QueryBankNorm(bank)}
    return evaluate_protocol(
        Dot(), encoded, captions, protocol, post_processing=post_processing, **options
    )


def write(folder: Path, found: Evaluation) -> Path:
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(found.as_dict()))
    lines = "".join(f"{line}\n" for line in found.rank_lines())
    ranks_file(folder / "evaluation.json").write_text(lines, encoding="utf-8")
    return folder


def test_what_an_evaluation_says() -> None:
    found = evaluation(0)
    values = json.loads(json.dumps(found.as_dict()))
    assert values["text_to_video"] == found.metrics["text_to_video"].as_dict()
    assert values["text_to_video"]["num_queries"] == 2 * SIZE
    assert values["video_to_text"]["num_queries"] == SIZE
    assert values["post_processing"] == "none"
    assert values["protocol"] == {
        "layout": "made up",
        "split": "test",
        "num_videos": SIZE,
        "num_captions": 2 * SIZE,
        "captions_per_video": [2, 2],
        "ties": "average",
        "video_to_text": "caption_sets",
        "near_duplicates": None,
    }
    for name in ("dual_softmax", "qb_norm"):
        assert "transductive" in values[name]["post_processing"]
        assert values[name]["text_to_video"] != values["text_to_video"]
    assert "video_to_text" in values["dual_softmax"]
    assert "video_to_text" not in values["qb_norm"]
    assert values["standard_errors"]["text_to_video"]["recall_at_1"] > 0
    shown = str(found)
    assert "made up, split test: 12 videos, 24 captions, 2 per video; ties: average" in shown
    assert "text to video, dual softmax" in shown
    assert "video to text, qb norm" not in shown
    assert shown.count("transductive") == 2
    assert "standard error, bootstrap over videos, 1000 samples, seed 0" in shown


def test_ranks_of_queries_are_those_of_the_figures() -> None:
    found = evaluation(1)
    lines = [json.loads(line) for line in found.rank_lines()]
    assert [line["text"] for line in lines] == [c.text for c in CAPTIONS] + [None] * SIZE
    assert [line["query"] for line in lines[:3]] == ["v#0#0", "v#0#1", "v#1#0"]
    for direction, figures in found.metrics.items():
        ranks = [line["ranks"]["plain"] for line in lines if line["direction"] == direction]
        assert RetrievalMetrics.from_ranks(np.array(ranks)) == figures


def test_figures_by_the_published_rule_of_ties() -> None:
    captions = CAPTIONS[::2]
    similarity = np.zeros((SIZE, SIZE))
    similarity[:5] = np.eye(SIZE)[:5]
    encoded = EncodedSplit(
        torch.from_numpy(similarity),
        torch.eye(SIZE).double()[:, None],
        torch.ones(SIZE, 1, dtype=torch.bool),
        np.arange(SIZE),
        tuple(caption.video_id for caption in captions),
    )
    for ties in ("average", "compat"):
        protocol = Protocol.of(
            captions, encoded.video_ids, layout="made up", split="test", ties=ties
        )
        found = evaluate_protocol(Dot(), encoded, captions, protocol)
        for name, rank in (
            ("text_to_video", rank_of_targets),
            ("video_to_text", rank_of_caption_sets),
        ):
            expected = RetrievalMetrics.from_ranks(rank(similarity, range(SIZE), ties=ties))
            assert found.metrics[name] == expected
            assert found.errors["plain"][name].recall_at_1 > 0
    with pytest.raises(ValueError, match="one caption per video"):
        evaluation(0, ties="compat")


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = evaluation(0), evaluation(1)
    folders = [write(tmp_path / name, each) for name, each in (("a", first), ("b", second))]
    files = [RankFile.load(folder) for folder in folders]
    found = compare(*files)
    assert list(found) == [
        ("plain", "text_to_video"),
        ("dual_softmax", "text_to_video"),
        ("qb_norm", "text_to_video"),
        ("plain", "video_to_text"),
        ("dual_softmax", "video_to_text"),
    ]
    for (name, direction), differences in found.items():
        for each in differences:
            assert each.first == getattr(first.metrics_of(name)[direction], each.figure)
            assert each.second == getattr(second.metrics_of(name)[direction], each.figure)
    # Both captions of a video change hands together.
    hits = [
        (each.counts["plain"]["text_to_video"].ranks() <= 1)
        .astype(int)
        .reshape(SIZE, 2)
        .sum(axis=1)
        for each in (first, second)
    ]
    (recall, *_) = found["plain", "text_to_video"]
    assert recall.p_value == pytest.approx(every_sign(hits[0] - hits[1]), rel=1e-12)
    assert [each.p_value for each in compare(files[0], files[0])["plain", "text_to_video"]] == [
        1
    ] * 4
    assert found == compare(*files)

    assert cli.main(["compare", str(folders[0]), str(folders[1] / "evaluation.json")]) == 0
    shown = capsys.readouterr().out
    assert "text to video, qb norm" in shown
    assert f"{recall.first:.2f}" in shown
    assert "num_videos: 12" in shown


def test_the_order_of_queries_does_not_matter(tmp_path: Path) -> None:
    files = [RankFile.load(write(tmp_path / str(seed), evaluation(seed))) for seed in (0, 1)]
    path = ranks_file(files[1].path)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert compare(files[0], RankFile.load(files[1].path)) == compare(*files)


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first", evaluation(0))
    others = {
        r"num_videos: 12 and 11; num_captions: 24 and 22": CAPTIONS[2:],
        r"num_captions: 24 and 23; captions_per_video: \[2, 2\] and \[1, 2\]": CAPTIONS[1:],
        r"1 queries have other texts, such as v#0#0: 'text 0, a' and 'new'": [
            SimpleNamespace(video_id="v#0", text="new"),
            *CAPTIONS[1:],
        ],
        r"3 of 36 queries of .*first.* are not in .*, such as v#0#0 \(text_to_video\)": [
            SimpleNamespace(video_id=c.video_id.replace("#0", "#x"), text=c.text) for c in CAPTIONS
        ],
    }
    for number, (message, captions) in enumerate(others.items()):
        other = write(tmp_path / str(number), evaluation(1, captions))
        with pytest.raises(ComparisonError, match=message):
            compare(RankFile.load(first), RankFile.load(other))
    assert cli.main(["compare", str(first), str(other)]) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_files_that_are_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", evaluation(0))
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; 'garevla evaluate'"):
        RankFile.load(tmp_path / "nowhere")
    for content in ("{}", "[1]", "{", '{"protocol": {}, "plain": 1}'):
        (folder / "evaluation.json").write_text(content)
        if content.endswith("1}"):
            ranks_file(folder / "evaluation.json").write_text('{"direction": 1}\n')
        with pytest.raises(ComparisonError, match=r"evaluation\.json .* no evaluation's figures"):
            RankFile.load(folder)
    ranks_file(folder / "evaluation.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"evaluation\.ranks\.jsonl does not exist"):
        RankFile.load(folder)
