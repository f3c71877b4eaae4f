"""Which backend runs, and what is said where the one that was asked for cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import garevla
from garevla import BackendUnavailableError
from garevla.increments.base import IncrementNetwork
from garevla.ops import backends, native_library
from garevla.ops.backends import ENVIRONMENT_VARIABLE, Backend, Implementation
from garevla.ops.precision import PRECISIONS
from tests.helpers import pair_factors, random_batch, random_psi

NATIVE_OR_EAGER = "eager" if native_library.UNAVAILABLE else "native"
CPU, CUDA, META = (torch.device(kind) for kind in ("cpu", "cuda", "meta"))


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    # It asks eager in a network's first call.
    monkeypatch.setattr(IncrementNetwork, "lengths_compared", True)


def change(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Replace fields of a backend in the table."""
    table = backends._BACKENDS
    monkeypatch.setitem(table, name, replace(table[name], **changes))


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, "native", unavailable=lambda device: "the dog ate it")


def chosen(
    name: str = "auto",
    device: torch.device = CPU,
    attention: int = 3,
    dtype: torch.dtype = torch.float32,
    texts: int = 1,
) -> str:
    """The backend whose function runs for a video of one head and so many frames."""
    text, frames, _ = random_batch(texts, 1, attention, 4)
    psi = random_psi(4).to(dtype)
    arguments = *pair_factors(text.to(dtype), frames.to(dtype), psi, None), 3.0
    function = backends.resolve("pair_similarity", name, device, *arguments)
    table = backends._BACKENDS
    return next(n for n, b in table.items() if b.operations["pair_similarity"].run is function)


def test_auto_takes_what_is_fastest():
    assert chosen() == NATIVE_OR_EAGER


def all_run(monkeypatch: pytest.MonkeyPatch, *, but: str = "") -> None:
    """Let every backend say that it runs on any device, but for one."""
    for name in backends.backend_names():
        reason = "the dog ate it" if name == but else None
        change(monkeypatch, name, unavailable=lambda device, reason=reason: reason)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_auto_on_a_gpu_follows_the_precision(precision: str, monkeypatch: pytest.MonkeyPatch):
    all_run(monkeypatch)
    with garevla.use_precision(precision):
        fastest = "native" if precision in ("float32", "tf32x3") else "triton"
        assert chosen(device=CUDA, texts=2**18) == fastest
        assert chosen(device=CUDA) == chosen(device=CUDA, attention=126) == "native"
        assert chosen(device=CUDA, dtype=torch.float64, texts=2**18) == "native"
        assert chosen("triton", CUDA) == "triton"
        assert chosen(device=CPU) == "native"
        all_run(monkeypatch, but="triton")
        assert chosen(device=CUDA) == "native"
        all_run(monkeypatch, but="native")
        assert chosen(device=CUDA) == "triton"


def test_heads_and_frames_beyond_a_backend(monkeypatch: pytest.MonkeyPatch):
    all_run(monkeypatch, but="native")
    assert chosen(device=CUDA, attention=126) == "triton"
    assert chosen(device=CUDA, attention=127) == "eager"
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        chosen("triton", CUDA, attention=127)
    text, frames, _ = random_batch(2, 2, 64, 8)
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        garevla.gare_similarity(text, frames, random_psi(8, 2), backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        garevla.GareLoss(random_psi(8, 2), backend="triton")(text, frames, 20.0)


def test_what_all_disadvise_still_runs(monkeypatch: pytest.MonkeyPatch):
    for name in backends.backend_names():
        entry = backends._BACKENDS[name].operations["pair_similarity"]
        entry = replace(entry, disadvises=lambda *arguments: "no pairs today")
        operations = {**backends._BACKENDS[name].operations, "pair_similarity": entry}
        reason = None if name == "triton" else "the dog ate it"
        unavailable = lambda device, reason=reason: reason  # noqa: E731
        change(monkeypatch, name, operations=operations, unavailable=unavailable)
    assert chosen(device=CUDA) == "triton"


@pytest.mark.usefixtures("native")
def test_call_goes_before_context_goes_before_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "eager")
    with garevla.use_backend("auto"):
        assert chosen() == "eager"
        assert chosen("native") == "native"
        with garevla.use_backend("native"):
            assert chosen() == "native"
            assert chosen("eager") == "eager"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "auto")
    with garevla.use_backend("auto"):
        assert chosen() == "native"


def test_contexts_nest_and_end_with_an_exception():
    with garevla.use_backend("eager"):
        with pytest.raises(KeyError), garevla.use_backend("native"):
            raise KeyError
        assert chosen() == "eager"
        with garevla.use_backend("auto"):
            assert chosen() == NATIVE_OR_EAGER
        assert chosen() == "eager"
    assert chosen() == NATIVE_OR_EAGER


def watched(ran: list[str], name: str = "eager") -> dict[str, Implementation]:
    """A backend's operations, which write their names down when they run."""

    def watch(operation: str, implementation: Implementation) -> Implementation:
        return replace(
            implementation, run=lambda *args: ran.append(operation) or implementation.run(*args)
        )

    return {key: watch(key, value) for key, value in backends._BACKENDS[name].operations.items()}


def everything(backend: str) -> None:
    """Calls that need each operation once."""
    psi = random_psi(8)
    text, frames, _ = random_batch(3, 3, 2, 8)
    captions = torch.randn(3, 2, 8)
    garevla.gare_similarity(text, frames, psi, backend=backend)
    garevla.GareLoss(psi, backend=backend)(text, frames, 20.0)
    garevla.GareLoss(psi, backend=backend, lambda_direction=0.0)(text, frames, 20.0)
    sampled = {"lambda_direction": 1.0, "direction_samples": 2, "beta": 0, "lambda_trust": 0}
    garevla.GareLoss(psi, backend=backend, **sampled)(text, frames, 20.0)
    garevla.DiscoVLALoss(backend=backend)(text, frames, 20.0, None, captions)
    garevla.GareDiscoVLALoss(psi, backend=backend)(text, frames, 20.0, None, captions)
    mlp = garevla.GapMLPPsi(8, 4)
    garevla.gare_similarity(text, frames, mlp, backend=backend)
    garevla.GareLoss(mlp, backend=backend)(text, frames, 20.0)
    garevla.GareLoss(mlp, backend=backend)(text, frames, 20.0, return_similarity=True)


EVERYTHING = ["pair_similarity", "pair_terms", "direction", "pair_statistics", "pair_statistics"]
EVERYTHING += ["sampled_direction", "frame_alignment", "pair_terms", "direction", "frame_alignment"]
EVERYTHING += ["hidden_similarity", "hidden_statistics", "hidden_terms"]


def test_a_choice_reaches_every_operation(monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []
    change(monkeypatch, "eager", operations=watched(ran))
    # The call goes before the context, for every operation.
    with garevla.use_backend("triton"):
        everything("eager")
    assert ran == EVERYTHING
    assert set(ran) == set(backends._BACKENDS["eager"].operations)


def test_an_old_triton_is_named(monkeypatch: pytest.MonkeyPatch):
    from garevla.kernels import backend

    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "OLDEST_TRITON", (99, 1))
    reason = backend._unusable.__wrapped__("cpu")
    assert re.fullmatch(r"the kernels are for Triton 99\.1 and newer, this is \d.*", reason)


def test_a_backend_from_outside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    ran: list[str] = []
    operations = watched(ran)
    garevla.register_backend(
        Backend("mine", lambda device: None, operations, preference={"cpu": 9})
    )
    with pytest.raises(ValueError, match="there is a backend 'mine' already"):
        garevla.register_backend(Backend("mine", lambda device: None, operations))
    assert garevla.backend_status()["mine"] is None
    everything("auto")
    assert ran == EVERYTHING
    with garevla.use_backend("mine"):
        everything("auto")
    assert ran == 2 * EVERYTHING


def test_an_operation_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    scores = {"pair_similarity": backends._BACKENDS["eager"].operations["pair_similarity"]}
    preference = {"cpu": 9}
    garevla.register_backend(Backend("scores", lambda device: None, scores, preference))
    everything("auto")
    with pytest.raises(BackendUnavailableError, match=r"'scores'.*no operation 'pair_terms'"):
        everything("scores")


def test_unknown_names(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        ValueError, match=r"^backend must be 'auto' or .*'eager', 'native'.*, got 'fast'"
    ):
        chosen("fast")
    with (
        pytest.raises(ValueError, match="backend must be"),
        garevla.use_backend("fast"),
    ):
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(ValueError, match="GAREVLA_BACKEND must be"):
        chosen()


@pytest.mark.usefixtures("unavailable")
def test_unavailable_by_name(monkeypatch: pytest.MonkeyPatch):
    message = "backend 'native' cannot run here: the dog ate it"
    text, frames, _ = random_batch(2, 2, 2, 8)
    with pytest.raises(BackendUnavailableError, match=message):
        garevla.gare_similarity(text, frames, random_psi(8), backend="native")
    with garevla.use_backend("native"), pytest.raises(BackendUnavailableError, match=message):
        chosen()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "native")
    with pytest.raises(BackendUnavailableError, match=message):
        chosen()
    assert chosen("eager") == "eager"


@pytest.mark.usefixtures("unavailable")
def test_auto_falls_back():
    assert chosen() == "eager"
    status = garevla.backend_status()
    assert (status["native"], status["eager"]) == ("the dog ate it", None)
    garevla.GareLoss(random_psi(8))(*random_batch(2, 2, 2, 8)[:2], 20.0).loss.backward()


@pytest.mark.usefixtures("native")
def test_devices_without_kernels_are_named():
    status = garevla.backend_status("cpu")
    assert (status["native"], status["eager"]) == (None, None)
    assert "no kernels for meta devices" in garevla.backend_status("meta")["native"]
    assert chosen("eager", META) == "eager"
    with garevla.use_backend("auto"):
        assert chosen("auto", META) == "eager"
    with pytest.raises(BackendUnavailableError, match="no kernels for meta devices"):
        chosen("native", META)


def broken(kind: str) -> bytes:
    """The bytes of a library that cannot serve."""
    if kind == "garbage":
        return b"no library\n" * 100
    whole = native_library.LIBRARY.read_bytes()
    if kind == "truncated":
        return whole[:100]
    # A function that this torch does not have.
    other = whole.replace(b"torch_parallel_for", b"torch_parallel_fox")
    assert other != whole
    return other


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", ["garbage", "truncated", "another torch"])
def test_reason_why_a_library_does_not_load(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    library, report = tmp_path / "_native.so", tmp_path / "_native_build.json"
    library.write_bytes(broken(kind))
    monkeypatch.setattr(native_library, "LIBRARY", library)
    monkeypatch.setattr(native_library, "BUILD_REPORT", report)
    reason = native_library._load()
    assert reason.startswith("_native.so cannot be used:")
    assert "build it again" in reason
    # Known beforehand, it is not even tried.
    report.write_text(json.dumps({"oldest_torch": "99.1"}))
    assert native_library._load() == (
        f"_native.so is for torch 99.1 and newer, and this is torch {torch.__version__}"
    )


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("cuda_of_torch", "record", "reason"),
    [
        (None, {}, "this torch is without CUDA"),
        ("12.6", {"cuda_version": "13.0"}, "for CUDA 13.0, and this torch is for CUDA 12.6"),
        ("13.2", {"cuda_version": "13.0"}, "_native_cuda.so cannot be used:"),
    ],
    ids=str,
)
def test_reason_why_cuda_kernels_do_not_load(
    cuda_of_torch: str | None,
    record: dict[str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    library, report = tmp_path / "_native_cuda.so", tmp_path / "_native_build.json"
    monkeypatch.setattr(native_library, "CUDA_LIBRARY", library)
    monkeypatch.setattr(native_library, "BUILD_REPORT", report)
    report.write_text(json.dumps({"cuda_reason": "no nvcc"}))
    assert native_library._load_cuda() == "no nvcc"
    library.write_bytes(broken("garbage"))
    report.write_text(json.dumps(record))
    monkeypatch.setattr(torch.version, "cuda", cuda_of_torch)
    assert reason in native_library._load_cuda()


def test_reason_why_there_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = tmp_path / "_native_build.json"
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(native_library, "BUILD_REPORT", report)
    assert "not built" in native_library._load()
    report.write_text(json.dumps({"reason": "no compiler"}))
    assert native_library._load() == "no compiler"


@pytest.mark.parametrize("kind", ["garbage", "no operators"])
def test_a_broken_library_leaves_a_working_package(kind: str, tmp_path: Path):
    package = tmp_path / "garevla"
    shutil.copytree(
        native_library.LIBRARY.parent,
        package,
        ignore=shutil.ignore_patterns("*.so", "*.json", "data"),
    )
    library = package / "_native.so"
    if kind == "garbage":
        library.write_bytes(broken(kind))
    else:
        # Any library: as one of another version of garevla, it lacks what this one wants.
        shutil.copy(next(Path(torch.__file__).parent.glob("lib/libshm.so")), library)
    code = (
        "import json, torch, garevla; psi = garevla.CrossAttentionPsi(8); "
        "s = garevla.gare_similarity(torch.randn(2, 8), torch.randn(3, 4, 8), psi); "
        "print(json.dumps([garevla.__file__, list(s.shape), garevla.backend_status()]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    file, shape, status = json.loads(result.stdout)
    assert Path(file).parent == package
    assert shape == [2, 3]
    assert status["eager"] is None
    assert "build it again" in status["native"]
