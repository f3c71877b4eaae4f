"""Retrieval ranks, figures, whole-test-set evaluation and reports."""

from __future__ import annotations

from garevla.evaluation.metrics import (
    RetrievalMetrics,
    TieRule,
    rank_of_caption_sets,
    rank_of_sentences,
    rank_of_targets,
)
from garevla.evaluation.post_processing import DualSoftmax, PostProcessing, QueryBankNorm
from garevla.evaluation.report import QueryResult, contact_sheet, describe_queries, metrics_table
from garevla.evaluation.retrieval import (
    EncodedSplit,
    SupportsRetrieval,
    encode_split,
    evaluate,
    evaluate_encoded,
)
from garevla.evaluation.streaming import (
    RankCounts,
    VideoToText,
    streaming_counts,
    streaming_ranks,
)
from garevla.evaluation.tiles import score_matrix, score_tiles, top_k

__all__ = [
    "DualSoftmax",
    "EncodedSplit",
    "PostProcessing",
    "QueryBankNorm",
    "QueryResult",
    "RankCounts",
    "RetrievalMetrics",
    "SupportsRetrieval",
    "TieRule",
    "VideoToText",
    "contact_sheet",
    "describe_queries",
    "encode_split",
    "evaluate",
    "evaluate_encoded",
    "metrics_table",
    "rank_of_caption_sets",
    "rank_of_sentences",
    "rank_of_targets",
    "score_matrix",
    "score_tiles",
    "streaming_counts",
    "streaming_ranks",
    "top_k",
]
