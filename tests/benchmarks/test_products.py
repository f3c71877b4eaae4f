from __future__ import annotations

import json

import pytest

from benchmarks import products
from garevla.ops.products import onednn_unavailable


@pytest.mark.skipif(onednn_unavailable() is not None, reason=f"{onednn_unavailable()}")
def test_both_libraries_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(products, "SHAPES", {"a small product": (40, 64, 32)})
    path = tmp_path / "products.json"
    products.main(["--json", str(path)])
    (row,) = json.loads(path.read_text())["results"]
    for name in ("torch", "onednn"):
        assert row[f"{name}_gflops"] > 0
        assert 0 < row[f"{name}_error"] < 1e-6
    assert "40 × 64 × 32" in capsys.readouterr().out
