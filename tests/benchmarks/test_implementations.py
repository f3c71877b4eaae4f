"""Every implementation that is timed computes the same thing."""

from __future__ import annotations

import pytest
import torch

from benchmarks import chunked
from benchmarks.accuracy import Oracle
from benchmarks.cases import Case, make_psi
from benchmarks.implementations import (
    CHUNKED,
    COMPILED,
    IMPLEMENTATIONS,
    NAMES,
    PUBLISHED,
    Run,
    build,
)

CPU = torch.device("cpu")
EXACT = [
    name for name in NAMES if name != COMPILED and IMPLEMENTATIONS[name].precision == "float32"
]
CASES = [
    Case("similarity", "forward", "off", 7, 3, 16, "float64"),
    Case("similarity", "forward+backward", "off", 7, 3, 16, "float64"),
    Case("loss", "forward", "exact", 7, 3, 16, "float64"),
    Case("loss", "forward+backward", "exact", 7, 3, 16, "float64"),
    Case("loss", "forward+backward", "off", 7, 3, 16, "float64"),
    # No smaller a sample is allowed than 32: at this size, it is all.
    Case("loss", "forward+backward", "sampled", 40, 3, 16, "float64"),
    *(
        Case(*kind, 7, 3, 16, "float64", psi)
        for psi in ("gap_mlp", "cross_attention_pair_dropout")
        for kind in (
            ("similarity", "forward", "off"),
            ("loss", "forward+backward", "exact"),
            ("loss", "forward+backward", "off"),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize("name", EXACT)
def test_agrees_with_the_oracle(name, case, monkeypatch: pytest.MonkeyPatch):
    reason = IMPLEMENTATIONS[name].unavailable(case, CPU)
    if reason is not None:
        pytest.skip(reason)
    # Several chunks, the last of them smaller.
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 2 * case.batch * case.dim)
    psi = make_psi(case, CPU)
    assert psi.training
    oracle = Oracle(case, CPU)
    assert oracle.errors_of(build(name, case, psi), psi).largest < 1e-9
    assert oracle.disagreement < 1e-9


def test_a_wrong_implementation_is_noticed():
    case = CASES[3]
    psi = make_psi(case, CPU)
    right = build(PUBLISHED, case, psi)
    wrong = Run(lambda inputs: right.call(inputs) * 1.001)
    assert Oracle(case, CPU).errors_of(wrong, psi).value > 5e-4


def test_chunks_are_recomputed_not_kept():
    case = Case("loss", "forward+backward", "off", 24, 3, 16, "float64")
    psi, inputs = make_psi(case, CPU), Oracle(case, CPU).inputs

    def saved_by(name: str) -> int:
        saved: dict[int, int] = {}

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = build(name, case, psi).call(inputs)
        del value
        return sum(saved.values())

    assert saved_by(CHUNKED) < saved_by(PUBLISHED) / 4
