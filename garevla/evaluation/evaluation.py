"""Figures of a test set with their protocol, standard errors and the rank of every query."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from garevla.evaluation.bootstrap import StandardErrors, standard_errors
from garevla.evaluation.metrics import RetrievalMetrics, as_targets
from garevla.evaluation.near_duplicates import NearDuplicates
from garevla.evaluation.post_processing import PostProcessing
from garevla.evaluation.protocol import Protocol
from garevla.evaluation.report import metrics_table
from garevla.evaluation.retrieval import EncodedSplit, SupportsRetrieval
from garevla.evaluation.streaming import RankCounts, streaming_counts
from garevla.evaluation.tiles import TEXT_TILE, VIDEO_TILE
from garevla.utils.modes import evaluation_mode

if TYPE_CHECKING:
    from garevla.data.splits import Caption

PLAIN = "plain"
DIRECTIONS = ("text_to_video", "video_to_text")


@dataclass(frozen=True)
class Query:
    """A text or a video that was ranked.

    Attributes:
        name: of a video its id, of a caption that and its number among the video's captions.
        video: index of the video, or of the caption's video.
        text: the caption; None for a video.
    """

    name: str
    video: int
    text: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation finds.

    Attributes:
        protocol: what was ranked and how.
        queries: of each direction.
        counts: by post-processing (``"plain"`` is none) and direction, in the order of the queries.
        post_processing: by the same names, in words.
        num_resamples, seed: of the standard errors; see
            :func:`garevla.evaluation.bootstrap.standard_errors`.
    """

    protocol: Protocol
    queries: Mapping[str, Sequence[Query]]
    counts: Mapping[str, Mapping[str, RankCounts]]
    post_processing: Mapping[str, str]
    num_resamples: int = 1000
    seed: int = 0

    @cached_property
    def metrics(self) -> dict[str, RetrievalMetrics]:
        """Figures without post-processing, by direction."""
        return self.metrics_of(PLAIN)

    def metrics_of(self, name: str) -> dict[str, RetrievalMetrics]:
        """Figures under a post-processing, by direction."""
        return {
            direction: RetrievalMetrics.from_ranks(counts.ranks(self.protocol.ties))
            for direction, counts in self.counts[name].items()
        }

    @cached_property
    def errors(self) -> dict[str, dict[str, StandardErrors]]:
        """Standard errors, by post-processing and direction."""
        return {
            name: {
                direction: self._errors(direction, counts) for direction, counts in found.items()
            }
            for name, found in self.counts.items()
        }

    def _errors(self, direction: str, counts: RankCounts) -> StandardErrors:
        videos = np.array([query.video for query in self.queries[direction]])
        if self.protocol.ties == "compat":
            # A query with ties has several ranks.
            videos = np.repeat(videos, counts.tied + 1)
        return standard_errors(
            counts.ranks(self.protocol.ties),
            videos,
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def as_dict(self) -> dict[str, Any]:
        """Figures, standard errors and protocol, ready for JSON; what post-processing gives
        has its own name."""
        found = {
            name: {
                **{key: figures.as_dict() for key, figures in self.metrics_of(name).items()},
                "standard_errors": {key: e.as_dict() for key, e in self.errors[name].items()},
                "post_processing": self.post_processing[name],
            }
            for name in self.counts
        }
        return {
            **found.pop(PLAIN),
            "protocol": self.protocol.as_dict(),
            "bootstrap": {"num_resamples": self.num_resamples, "seed": self.seed},
            **found,
        }

    def rank_lines(self) -> Iterator[str]:
        """JSON lines, one for each query: direction, name, text, and its rank (of ties the average)
        by post-processing."""
        for direction in DIRECTIONS:
            ranks = {
                name: found[direction].ranks().tolist()
                for name, found in self.counts.items()
                if direction in found
            }
            for index, query in enumerate(self.queries[direction]):
                line = {
                    "direction": direction,
                    "query": query.name,
                    "text": query.text,
                    "ranks": {name: values[index] for name, values in ranks.items()},
                }
                yield json.dumps(line, ensure_ascii=False)

    def __str__(self) -> str:
        """The figures as a table, and what they were made of."""
        rows, errors = {}, {}
        for name in self.counts:
            for direction, figures in self.metrics_of(name).items():
                row = direction if name == PLAIN else f"{direction}, {name}"
                rows[row] = figures
                errors[row] = self.errors[name][direction]
        lines = [metrics_table(rows, errors), f"protocol: {self.protocol}"]
        lines += [
            f"{name.replace('_', ' ')}: {words}" for name, words in self.post_processing.items()
        ]
        lines.append(
            f"±: standard error, bootstrap over videos, {self.num_resamples} samples, "
            f"seed {self.seed}"
        )
        return "\n".join(lines)


def evaluate_protocol(
    model: SupportsRetrieval,
    encoded: EncodedSplit,
    captions: Sequence[Caption],
    protocol: Protocol,
    *,
    near_duplicates: NearDuplicates | None = None,
    post_processing: Mapping[str, PostProcessing] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
) -> Evaluation:
    """Rank an encoded split under a protocol, plain and with any post-processing beside that.

    Args:
        model, encoded: as :func:`garevla.evaluation.evaluate_encoded`.
        captions: those that were encoded.
        protocol: the tie rule and the convention of video-to-text retrieval that hold.
        near_duplicates: videos that are right for each other's captions.
        post_processing: by the names that their figures have.
        num_resamples, seed: as :func:`garevla.evaluation.bootstrap.standard_errors`.
        text_tile, video_tile: as :func:`garevla.evaluation.score_tiles`.

    Raises:
        ValueError: as :func:`streaming_counts`; ``"compat"`` ties with several captions of a video,
            or with anything that the published code has not got.
    """
    post_processing = post_processing or {}
    as_targets(encoded.targets, len(encoded.targets), len(encoded.video_ids), ties=protocol.ties)
    if protocol.ties == "compat" and near_duplicates is not None:
        raise ValueError("ties='compat' knows one right answer of a query, not near-duplicates")
    counts = {}
    with evaluation_mode(model):
        for name, processing in {PLAIN: None, **post_processing}.items():
            found = streaming_counts(
                encoded.text_features,
                encoded.frame_features,
                model.similarity,
                encoded.targets,
                encoded.frame_mask,
                video_to_text=protocol.video_to_text,
                groups=None if near_duplicates is None else near_duplicates.groups,
                post_processing=processing,
                text_tile=text_tile,
                video_tile=video_tile,
                share=encoded.share,
            )
            counts[name] = {
                direction: each
                for direction, each in zip(DIRECTIONS, found, strict=True)
                if each is not None
            }
    return Evaluation(
        protocol,
        _queries(encoded, captions),
        counts,
        {PLAIN: "none", **{name: str(each) for name, each in post_processing.items()}},
        num_resamples,
        seed,
    )


def _queries(encoded: EncodedSplit, captions: Sequence[Caption]) -> dict[str, list[Query]]:
    seen: Counter[str] = Counter()
    texts = []
    for caption, video in zip(captions, encoded.targets.tolist(), strict=True):
        texts.append(Query(f"{caption.video_id}#{seen[caption.video_id]}", video, caption.text))
        seen[caption.video_id] += 1
    videos = [
        Query(encoded.video_ids[video], video) for video in np.unique(encoded.targets).tolist()
    ]
    return {"text_to_video": texts, "video_to_text": videos}
