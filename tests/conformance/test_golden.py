"""The published numbers, from every backend's operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conformance.targets import Target, on_targets
from tests.helpers import GOLDEN, Golden, pair_factors, relative_error, small_gaps

FILES = sorted(GOLDEN.glob("gare_*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@on_targets()
def test_golden(target: Target, path: Path):
    """The published similarity and norms, and its InfoNCE by way of the statistics."""
    golden = Golden(path)
    psi, mask = golden.psi().to(target.device), golden["mask"].to(target.device)
    text, frames = (golden[name].to(target.device) for name in ("text", "frames"))
    temperature = golden.loss_arguments()["pool_temperature"]
    factors = pair_factors(text, frames, psi, mask)
    similarity, _, norm = target.function("pair_terms")(*factors, temperature)
    assert relative_error(similarity.T.cpu(), golden["similarity"]) < 1e-12
    assert relative_error(norm.T.cpu(), golden["delta"].norm(dim=2)) < 1e-12
    if golden.meta["A"] != golden.meta["B"]:
        return
    scale = torch.tensor(golden.meta["scale"], dtype=torch.float64, device=target.device)
    targets = torch.arange(len(text), device=target.device)
    found = target.function("pair_statistics")(*factors, temperature, scale, targets)
    rows = found.row_logsumexp - scale * found.target_similarity
    columns = found.column_logsumexp - scale * found.target_similarity
    assert relative_error((rows.mean() + columns.mean()).cpu() / 2, golden["nce"]) < 1e-11


@pytest.mark.parametrize("gap", [1.0, 1e-1, 1e-2])
@pytest.mark.parametrize("alike", ["every pair", "the matching pair"])
@on_targets()
def test_small_gaps_do_not_cancel(target: Target, gap: float, alike: str):
    text, frames, psi, exact, same_dtype = small_gaps(8, 64, gap, alike)
    with torch.no_grad():
        on_device = (x.to(target.device) for x in (text, frames, psi))
        factors = pair_factors(*on_device, None)
        similarity, _, norm = (x.cpu() for x in target.function("pair_terms")(*factors, 3.0))
    for got, plain, want in (
        (similarity.T, same_dtype.similarity, exact.similarity),
        (norm.T, same_dtype.increments.norm(dim=-1), exact.increments.norm(dim=-1)),
    ):
        assert relative_error(got, want) < 10 * relative_error(plain, want) + 1e-7
