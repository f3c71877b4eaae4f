"""The cost model of the pair kernels: what it says is what the documents and ``"auto"`` say."""

from __future__ import annotations

import pytest

from benchmarks import expected
from garevla.ops.precision import PRECISIONS


def test_the_document_says_what_the_model_says():
    document = expected.DOCUMENT.read_text()
    assert expected.replaced(document) == document


def test_auto_follows_the_model():
    """It takes native where the model expects Triton's scores to take three times as long."""
    for precision in PRECISIONS:
        triton = expected.TRITON["pair_scores", precision].seconds()
        assert (triton > 3 * expected.native_scores(precision)) == (precision == "float32")


def test_a_document_without_the_markers_is_an_error():
    with pytest.raises(ValueError, match="must contain"):
        expected.replaced("nothing")
