"""Two evaluations of the same queries, and whether their figures differ by more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from garevla.data.messages import brief
from garevla.evaluation.evaluation import DIRECTIONS
from garevla.evaluation.metrics import RetrievalMetrics

EVALUATION_FILE = "evaluation.json"

_NUM_FLIPS = 10_000
# Numbers of a chunk of signs, which bounds memory.
_CHUNK = 2_000_000


class ComparisonError(ValueError):
    """Evaluations that cannot be compared, or files of them that cannot be read."""


def ranks_file(evaluation: Path) -> Path:
    """Where the ranks are that belong to a file of figures."""
    return evaluation.with_suffix(".ranks.jsonl")


@dataclass(frozen=True)
class RankFile:
    """What :func:`garevla.training.evaluate_checkpoint` wrote.

    Attributes:
        path: the file of figures.
        protocol: as :meth:`garevla.evaluation.Protocol.as_dict`.
        post_processing: by name, in words.
        texts: caption of each query by (direction, name), None of a video.
        ranks: by (post-processing, direction) and query's name.
    """

    path: Path
    protocol: Mapping[str, Any]
    post_processing: Mapping[str, str]
    texts: Mapping[tuple[str, str], str | None]
    ranks: Mapping[tuple[str, str], Mapping[str, float]]

    @classmethod
    def load(cls, path: Path) -> RankFile:
        """Read the files of an evaluation.

        Args:
            path: the file of figures, or a run's folder, which has it under its default name.

        Raises:
            FileNotFoundError: there are no such files.
            ComparisonError: they are not as they were written.
        """
        if path.is_dir():
            path = path / EVALUATION_FILE
        for file in (path, ranks_file(path)):
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; 'garevla evaluate' writes it")
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            found = {
                name: section["post_processing"]
                for name, section in {"plain": figures, **figures}.items()
                if isinstance(section, dict) and "post_processing" in section
            }
            protocol = figures["protocol"]
            texts: dict[tuple[str, str], str | None] = {}
            ranks: dict[tuple[str, str], dict[str, float]] = {}
            for line in ranks_file(path).read_text(encoding="utf-8").split("\n"):
                if not line:
                    continue
                values = json.loads(line)
                direction, query = values["direction"], values["query"]
                texts[direction, query] = values["text"]
                for name, rank in values["ranks"].items():
                    ranks.setdefault((name, direction), {})[query] = float(rank)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ComparisonError(
                f"{path} and {ranks_file(path)} are no evaluation's figures and ranks: {error!r}"
            ) from error
        return cls(path, protocol, found, texts, ranks)


@dataclass(frozen=True)
class Difference:
    """One figure of two evaluations.

    Attributes:
        figure: its name in :class:`RetrievalMetrics`.
        first, second: what it is in each.
        p_value: probability of so large a difference, in either direction, where both are equally
            good; two-sided.
    """

    figure: str
    first: float
    second: float
    p_value: float


def compare(
    first: RankFile, second: RankFile, *, seed: int = 0
) -> dict[tuple[str, str], list[Difference]]:
    """Test the figures of two evaluations by exchanging the ranks of each video at random.

    Where two models are equally good, it is chance which of them gives a video's queries which
    ranks (paired permutation test; of one caption per video and R@K this is McNemar's exact test).
    Ranks follow the average rule of ties.

    Args:
        first, second: of the same queries and protocol.
        seed: of the draws by which the mean rank is tested; the others are tested exactly.

    Returns:
        Differences of R@1, R@5, R@10 and the mean rank, by post-processing and direction, for what
        both have.

    Raises:
        ComparisonError: other queries or protocols; the message says which.
    """
    _check_comparable(first, second)
    found = {}
    for key in first.ranks:
        if key in second.ranks:
            queries = list(first.ranks[key])
            one, other = (
                np.array([each.ranks[key][query] for query in queries]) for each in (first, second)
            )
            found[key] = _differences(one, other, _video_numbers(key[1], queries), seed)
    return found


def _check_comparable(first: RankFile, second: RankFile) -> None:
    files = f"{first.path} and {second.path} cannot be compared"
    differing = [
        f"{name}: {first.protocol.get(name)!r} and {second.protocol.get(name)!r}"
        for name in {**first.protocol, **second.protocol}
        if first.protocol.get(name) != second.protocol.get(name)
    ]
    differing += [
        f"{name}: {first.post_processing[name]!r} and {second.post_processing[name]!r}"
        for name in first.post_processing
        if first.post_processing[name]
        != second.post_processing.get(name, first.post_processing[name])
    ]
    if differing:
        raise ComparisonError(f"{files}, their protocols differ: {'; '.join(differing)}")
    for one, other in ((first, second), (second, first)):
        absent = [query for query in one.texts if query not in other.texts]
        if absent:
            direction, name = absent[0]
            raise ComparisonError(
                f"{files}, {len(absent)} of {len(one.texts)} queries of {one.path} are not in "
                f"{other.path}, such as {name} ({direction})"
            )
    changed = [query for query, text in first.texts.items() if second.texts[query] != text]
    if changed:
        raise ComparisonError(
            f"{files}, {len(changed)} queries have other texts, such as {changed[0][1]}: "
            f"{brief(first.texts[changed[0]])} and {brief(second.texts[changed[0]])}"
        )


def _video_numbers(direction: str, queries: list[str]) -> np.ndarray:
    is_text = direction == DIRECTIONS[0]
    videos = [query.rpartition("#")[0] if is_text else query for query in queries]
    return np.unique(videos, return_inverse=True)[1]


def _differences(
    first: np.ndarray, second: np.ndarray, videos: np.ndarray, seed: int
) -> list[Difference]:
    p_values = {
        f"recall_at_{k}": exact_sign_flip_test(
            np.bincount(videos, weights=(first <= k) * 1.0 - (second <= k)).astype(np.int64)
        )
        for k in (1, 5, 10)
    }
    p_values["mean_rank"] = sampled_sign_flip_test(
        np.bincount(videos, weights=first - second), seed=seed
    )
    one, other = (RetrievalMetrics.from_ranks(ranks).as_dict() for ranks in (first, second))
    return [
        Difference(figure, one[figure], other[figure], p_value)
        for figure, p_value in p_values.items()
    ]


def exact_sign_flip_test(differences: np.ndarray) -> float:
    """Probability that a sum of integers of random signs is as far from 0 as with their own.

    Args:
        differences: (N,) int64.
    """
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    # probability[total + s]: that the sum is s.
    probability = np.zeros(2 * total + 1)
    probability[total] = 1
    reach = 0
    for size in np.sort(sizes).tolist():
        middle = probability[total - reach : total + reach + 1] / 2
        reach += size
        probability[total - reach : total + reach + 1] = 0
        probability[total - reach : total + reach + 1 - 2 * size] += middle
        probability[total - reach + 2 * size : total + reach + 1] += middle
    observed = abs(int(differences.sum()))
    tails = probability[: total - observed + 1].sum() + probability[total + observed :].sum()
    return min(1.0, float(tails))


def sampled_sign_flip_test(
    differences: np.ndarray, *, num_samples: int = _NUM_FLIPS, seed: int = 0
) -> float:
    """The same for any numbers, from random signs; what is observed counts as one sample."""
    differences = differences[differences != 0]
    # A sum in another order may differ by rounding.
    observed = abs(differences.sum()) * (1 - 1e-9)
    generator = np.random.default_rng(seed)
    as_far, left = 1, num_samples
    while left:
        size = min(left, max(1, _CHUNK // max(1, len(differences))))
        signs = generator.integers(0, 2, (size, len(differences)), dtype=np.int8) * 2 - 1
        as_far += int((np.abs(signs @ differences) >= observed).sum())
        left -= size
    return as_far / (num_samples + 1)


def comparison_table(
    differences: Mapping[tuple[str, str], list[Difference]],
) -> str:
    """Format differences as plain text: a header, then a line for each figure."""
    rows = [["", "figure", "A", "B", "B - A", "p"]]
    for (name, direction), found in differences.items():
        title = direction.replace("_", " ")
        title += "" if name == "plain" else f", {name.replace('_', ' ')}"
        for each in found:
            figure = "MnR" if each.figure == "mean_rank" else f"R@{each.figure[10:]} %"
            change = each.second - each.first
            rows.append(
                [
                    title,
                    figure,
                    f"{each.first:.2f}",
                    f"{each.second:.2f}",
                    f"{change:+.2f}",
                    f"{each.p_value:.4f}" if each.p_value >= 1e-4 else f"{each.p_value:.1e}",
                ]
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
