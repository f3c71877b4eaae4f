"""Retrieval ranks, figures, whole-test-set evaluation and reports."""

from __future__ import annotations

from garevla.evaluation.bootstrap import StandardErrors, standard_errors
from garevla.evaluation.comparison import ComparisonError, RankFile, compare
from garevla.evaluation.evaluation import Evaluation, evaluate_protocol
from garevla.evaluation.metrics import (
    RetrievalMetrics,
    TieRule,
    rank_of_caption_sets,
    rank_of_sentences,
    rank_of_targets,
)
from garevla.evaluation.near_duplicates import NearDuplicates
from garevla.evaluation.post_processing import DualSoftmax, PostProcessing, QueryBankNorm
from garevla.evaluation.protocol import Protocol
from garevla.evaluation.report import QueryResult, contact_sheet, describe_queries, metrics_table
from garevla.evaluation.retrieval import (
    EncodedSplit,
    SupportsRetrieval,
    encode_split,
    encode_texts,
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
    "ComparisonError",
    "DualSoftmax",
    "EncodedSplit",
    "Evaluation",
    "NearDuplicates",
    "PostProcessing",
    "Protocol",
    "QueryBankNorm",
    "QueryResult",
    "RankCounts",
    "RankFile",
    "RetrievalMetrics",
    "StandardErrors",
    "SupportsRetrieval",
    "TieRule",
    "VideoToText",
    "compare",
    "contact_sheet",
    "describe_queries",
    "encode_split",
    "encode_texts",
    "evaluate",
    "evaluate_encoded",
    "evaluate_protocol",
    "metrics_table",
    "rank_of_caption_sets",
    "rank_of_sentences",
    "rank_of_targets",
    "score_matrix",
    "score_tiles",
    "standard_errors",
    "streaming_counts",
    "streaming_ranks",
    "top_k",
]
