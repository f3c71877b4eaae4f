"""The kernels' tables name what the package's own tables name."""

from __future__ import annotations

import importlib

import pytest

from garevla.increments.low_rank.factors import PAIR_FACTORS, VideoFactors
from garevla.ops.precision import PRECISIONS

pytest.importorskip("triton")
configs = importlib.import_module("garevla.kernels.configs")


@pytest.mark.parametrize(
    "table",
    [
        "INPUT_PRECISIONS",
        "DIRECTION_VALUE",
        "DIRECTION_GRADIENT",
        "ALIGNMENT",
        "ALIGNMENT_MAXIMA",
        "ALIGNMENT_GRADIENT",
    ],
)
def test_every_precision_preset_has_an_entry(table: str):
    assert getattr(configs, table).keys() == PRECISIONS.keys()


def test_every_precision_preset_has_pair_kernels():
    from garevla.kernels.pairs.configs import pair_config

    for precision in (*PRECISIONS, "float64"):
        for kernel in ("scores", "statistics", "adjoint"):
            for arch in (80, 86, 90, 120):
                assert pair_config(kernel, precision, 16, arch).rows >= 16


def test_every_precision_preset_has_hidden_layers_kernels():
    from garevla.kernels.hidden.configs import KERNELS, hidden_config

    for precision in PRECISIONS:
        for kernel in KERNELS:
            for arch in (0, 80, 86, 90, 120):
                assert hidden_config(kernel, precision, arch).rows >= 16


def test_pair_factors_are_those_of_the_videos():
    others = {"basis", "layer_norm_eps"}
    assert list(PAIR_FACTORS) == [name for name in VideoFactors._fields if name not in others]
