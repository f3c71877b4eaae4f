"""InfoNCE alone: plain forms are right, packages are called as they ask to be, none is silent."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import floor, peers, profiler, similarity, tables
from benchmarks.accuracy import TOLERANCE, Oracle
from benchmarks.cases import Case, make_psi
from benchmarks.implementations import IMPLEMENTATIONS, Implementation, build
from benchmarks.peers import PEERS, PLAIN, plain_loss
from benchmarks.presets import INFO_NCE, LOSS_OFF, add_arguments, chosen_plans
from benchmarks.tables import pairs

CPU = torch.device("cpu")
PACKAGES = [name for name, peer in PEERS.items() if peer.on_gpu_only]
ON_CPU = [
    name
    for name, peer in PEERS.items()
    if name not in PACKAGES and peer.precision == "float32" and name != "torch, compiled"
]
SCALE = 30.0


def case_of(dtype: str, batch: int = 7) -> Case:
    return Case(*INFO_NCE, batch, 1, 16, dtype)


def errors_of(name: str, case: Case, device: torch.device = CPU) -> float:
    psi = make_psi(case, device)
    oracle = Oracle(case, device)
    assert oracle.disagreement < 1e-12
    return oracle.errors_of(build(name, case, psi), psi).largest


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ON_CPU)
def test_agrees_with_the_oracle(name, dtype, monkeypatch: pytest.MonkeyPatch):
    case = case_of(dtype)
    if (reason := IMPLEMENTATIONS[name].unavailable(case, CPU)) is not None:
        pytest.skip(reason)
    # Several chunks, the last of them smaller.
    monkeypatch.setattr(peers, "CHUNK", 2)
    bound = 1e-12 if dtype == "float64" else 3 * errors_of(PLAIN, case)
    assert errors_of(name, case) <= bound


@pytest.mark.slow
def test_compiled_agrees_with_the_oracle():
    assert errors_of("torch, compiled", case_of("float64")) < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PACKAGES)
def test_packages_agree_with_the_oracle(name, dtype):
    device = torch.device("cuda")
    case = Case(*INFO_NCE, 256, 1, 512, dtype)
    if (reason := IMPLEMENTATIONS[name].unavailable(case, device)) is not None:
        pytest.skip(reason)
    if name == "cut-cross-entropy" and dtype == "float32":
        pytest.skip("its backward pass is of half precision")
    assert errors_of(name, case, device) < TOLERANCE["float16"]


# What the packages' functions do by their documentation, in plain PyTorch.


class LinearCrossEntropy:
    def __call__(self, weight, features, targets):
        return F.cross_entropy(features @ weight.mT, targets)


def flash_loss(queries, keys, labels=None, scale=None, head_dim=256):
    queries, keys = (x.view(len(x), -1, head_dim).flatten(1) for x in (queries, keys))
    return F.cross_entropy(queries @ keys.mT, labels, reduction="none")


class ClipLoss:
    def __init__(self, temperature=0.07, normalized_inputs=False, stable=True):
        self.scale, self.normalized, self.stable = 1 / temperature, normalized_inputs, stable

    def __call__(self, images, texts):
        if not self.normalized:
            images, texts = (F.normalize(x, dim=1) for x in (images, texts))
        loss = plain_loss(texts, images, self.scale)
        return loss.detach() + 100 * (loss - loss.detach()) if self.stable else loss


def cut_loss(features, weight, targets, filter_eps="high"):
    if filter_eps is not None:
        weight = weight.detach()
    return F.cross_entropy(features @ weight.mT, targets)


STAND_INS = {
    "Liger-Kernel": (
        "liger_kernel.transformers",
        {"LigerFusedLinearCrossEntropyLoss": LinearCrossEntropy},
    ),
    "Inf-CL": ("inf_cl", {"cal_flash_loss": flash_loss}),
    "memeff": ("memeff", {"MemoryEfficientCLIPLoss": ClipLoss}),
    "cut-cross-entropy": ("cut_cross_entropy", {"linear_cross_entropy": cut_loss}),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_called_as_they_ask(name, monkeypatch: pytest.MonkeyPatch):
    module, members = STAND_INS[name]
    monkeypatch.setitem(sys.modules, module.split(".")[0], SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**members))
    # A width that is no multiple of Inf-CL's block.
    features = torch.randn(2, 7, 384, dtype=torch.float64)
    text, video = (x.requires_grad_() for x in F.normalize(features, dim=2))
    losses = (PEERS[name].make()(text, video, SCALE), plain_loss(text, video, SCALE))
    value, exact = ([x, *torch.autograd.grad(x, [text, video])] for x in losses)
    for found, right in zip(value, exact, strict=True):
        assert (found - right).norm() <= 1e-12 * right.norm()


def test_why_a_package_has_no_part_is_said(monkeypatch: pytest.MonkeyPatch):
    peer = PEERS["memeff"]

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert peer.unavailable(CPU, torch.float32) == "memeff is not installed"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")
    assert peer.version == "memeff 1.2"
    assert peer.unavailable(CPU, torch.float32) == "its kernels need a CUDA device"
    monkeypatch.setitem(sys.modules, "memeff", None)
    cuda = torch.device("cuda")
    assert "memeff" in peer.unavailable(cuda, torch.float32)
    assert peer.unavailable(cuda, torch.float64) == "its kernels have no float64"


def run(tmp_path, *names: str) -> tuple[int, list[dict]]:
    path = tmp_path / "peers.json"
    sizes = "--batch 8 --frames 3 --dim 16 --dtype float32 --row-seconds 0 --device cpu"
    status = similarity.main(
        ["--peers", *sizes.split(), "--implementations", *names, f"--json={path}"]
    )
    return status, json.loads(path.read_text())["results"]


@pytest.fixture
def _wrong_memeff(monkeypatch: pytest.MonkeyPatch) -> None:
    right = IMPLEMENTATIONS[PLAIN]

    def make(case, psi):
        call = right.make(case, psi)
        return lambda inputs: 1.01 * call(inputs)

    wrong = Implementation(make, right.unavailable, foreign=True, version="memeff 1.2")
    monkeypatch.setitem(IMPLEMENTATIONS, "memeff", wrong)
    monkeypatch.setattr(profiler, "copy_bandwidth", lambda device: 1e10)


@pytest.mark.usefixtures("_wrong_memeff")
def test_everyone_is_in_the_table(tmp_path, capsys):
    status, rows = run(tmp_path, PLAIN, "memeff", "Inf-CL", "eager")
    printed = capsys.readouterr().out
    assert "wrong or failed: memeff" in printed
    # Wrong is another project's.
    assert status == 0
    found = {row["implementation"]: row["status"] for row in rows}
    assert found == {PLAIN: "ok", "memeff": "wrong", "Inf-CL": "unavailable", "eager": "ok"}
    assert "median_seconds" not in next(row for row in rows if row["status"] == "wrong")
    columns, lines = tables.peers(rows)
    assert columns[:3] == ["<implementation", "<precision", "B = 8"]
    cells = {line[0]: line for line in lines}
    assert set(cells) == {PLAIN, "memeff 1.2", cells_name(rows), "eager, whole GARE loss, F = 3"}
    assert cells["memeff 1.2"][2] == "wrong"
    assert "against the oracle" in cells["memeff 1.2"][-1]
    assert cells[cells_name(rows)][2] == "–"
    assert cells[cells_name(rows)][-1]


def cells_name(rows: list[dict]) -> str:
    """Inf-CL's, with its version where it is installed."""
    row = next(row for row in rows if row["implementation"] == "Inf-CL")
    return row["version"] or "Inf-CL"


@pytest.mark.usefixtures("_wrong_memeff")
def test_what_is_ours_and_wrong_fails_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch):
    ours = IMPLEMENTATIONS["memeff"]._replace(foreign=False)
    monkeypatch.setitem(IMPLEMENTATIONS, "torch, chunked", ours)
    assert run(tmp_path, PLAIN, "torch, chunked")[0] == 1


def plans_of(options: str) -> list[tuple]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    plans = chosen_plans(parser.parse_args(["--peers", *options.split()]), "cuda")
    return [(plan.kinds, plan.shapes) for plan in plans if plan.cases()]


def test_frames_are_of_the_whole_loss_alone():
    assert plans_of("--frames 64 --dtype float32") == [
        ((INFO_NCE,), ((1, 512, "float32"),)),
        ((LOSS_OFF,), ((64, 512, "float32"),)),
    ]


def test_who_is_asked_for_is_measured_where_he_fits():
    assert [kinds for kinds, _ in plans_of("--implementations memeff")] == [(INFO_NCE,)]
    assert [kinds for kinds, _ in plans_of("--workload loss")] == [(LOSS_OFF,)]


def test_another_network_changes_nothing_here():
    with pytest.raises(ValueError, match="--psi changes nothing"):
        plans_of("--psi gap_mlp")


def test_the_floor_of_info_nce_is_four_products(monkeypatch: pytest.MonkeyPatch):
    seconds: list[float] = []

    def count(left, right, out) -> None:
        seconds.append(left.shape[0] * left.shape[1] * right.shape[1])

    def best(call, device) -> float:
        seconds.clear()
        call()
        return float(sum(seconds))

    monkeypatch.setattr(torch, "mm", count)
    monkeypatch.setattr(floor, "onednn_unavailable", lambda: "left out")
    monkeypatch.setattr(floor, "best_seconds", best)
    case = Case(*INFO_NCE, 6, 1, 16)
    assert floor.measure_floor(case, CPU, 1e30).seconds == 4 * 6**2 * 16


def test_chunks_are_recomputed_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "CHUNK", 8)
    text, video = (torch.randn(64, 4).requires_grad_() for _ in range(2))
    saved: list[int] = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        peers.chunked_loss(text, video, SCALE)
    # The columns' logsumexps of eight chunks, and no logits.
    assert max(saved) <= 64 * 8


def test_the_title_names_no_frames():
    case = case_of("float32")
    assert case.title == "InfoNCE alone, forward+backward; D = 16, float32"
    assert pairs.case_of(asdict(case)) == case
