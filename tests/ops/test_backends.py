"""Which backend runs, and what is said where the one that was asked for cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import garevla
from garevla import BackendUnavailableError
from garevla.ops import native
from garevla.ops.backends import ENVIRONMENT_VARIABLE, resolve_backend
from tests.helpers import random_batch, random_psi

NATIVE_OR_EAGER = "eager" if native.UNAVAILABLE else "native"


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "UNAVAILABLE", "the dog ate it")


def chosen(name: str = "auto") -> str:
    return resolve_backend(name).name


def test_auto_takes_what_is_fastest():
    assert chosen() == NATIVE_OR_EAGER


def all_run(monkeypatch: pytest.MonkeyPatch, *, but: str = "") -> None:
    """Let every backend say that it runs on any device, but for one."""
    for name, backend in garevla.ops.backends._BACKENDS.items():
        reason = "the dog ate it" if name == but else None
        spy = backend._replace(supports=lambda device, reason=reason: reason)
        monkeypatch.setitem(garevla.ops.backends._BACKENDS, name, spy)


def test_auto_on_a_gpu_prefers_triton(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    all_run(monkeypatch)
    assert resolve_backend("auto", cuda).name == "triton"
    assert resolve_backend("auto", torch.device("cpu")).name == "native"
    all_run(monkeypatch, but="triton")
    assert resolve_backend("auto", cuda).name == "native"


def test_heads_and_frames_beyond_a_backend(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    all_run(monkeypatch)
    assert resolve_backend("auto", cuda, attention=62).name == "triton"
    assert resolve_backend("auto", cuda, attention=63).name == "native"
    assert resolve_backend("triton", cuda, attention=126).name == "triton"
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        resolve_backend("triton", cuda, attention=127)
    text, frames, _ = random_batch(2, 2, 64, 8)
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        garevla.gare_similarity(text, frames, random_psi(8, 2), backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"'triton'.*at most 126"):
        garevla.GareLoss(random_psi(8, 2), backend="triton")(text, frames, 20.0)


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


def test_a_choice_reaches_every_operation(monkeypatch: pytest.MonkeyPatch):
    eager, ran = resolve_backend("eager"), []

    def watched(name: str):
        return lambda *args: ran.append(name) or getattr(eager, name)(*args)

    operations = ("pair_similarity", "pair_terms", "pair_statistics", "direction")
    names = [name for name in eager._fields if name in operations]
    spy = eager._replace(**{name: watched(name) for name in names})
    monkeypatch.setitem(garevla.ops.backends._BACKENDS, "eager", spy)
    psi = random_psi(8)
    text, frames, _ = random_batch(3, 3, 2, 8)
    garevla.gare_similarity(text, frames, psi, backend="eager")
    garevla.GareLoss(psi, backend="eager")(text, frames, 20.0)
    garevla.GareLoss(psi, backend="eager", lambda_direction=0.0)(text, frames, 20.0)
    assert ran == ["pair_similarity", "pair_terms", "direction", "pair_statistics"]


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
    meta = torch.device("meta")
    status = garevla.backend_status("cpu")
    assert (status["native"], status["eager"]) == (None, None)
    assert "no kernels for meta devices" in garevla.backend_status("meta")["native"]
    assert resolve_backend("eager", meta).name == "eager"
    with garevla.use_backend("auto"):
        assert resolve_backend("auto", meta).name == "eager"
    with pytest.raises(BackendUnavailableError, match="no kernels for meta devices"):
        resolve_backend("native", meta)


def broken(kind: str) -> bytes:
    """The bytes of a library that cannot serve."""
    if kind == "garbage":
        return b"no library\n" * 100
    whole = native.LIBRARY.read_bytes()
    if kind == "truncated":
        return whole[:100]
    # A symbol that this torch does not have.
    other = whole.replace(b"_ZN5torch7Library", b"_ZN5torch7Librarx")
    assert other != whole
    return other


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", ["garbage", "truncated", "another torch"])
def test_reason_why_a_library_does_not_load(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    library, report = tmp_path / "_native.so", tmp_path / "_native_build.json"
    library.write_bytes(broken(kind))
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native, "BUILD_REPORT", report)
    reason = native._load()
    assert reason.startswith("_native.so cannot be used:")
    assert "build it again" in reason
    # Known beforehand, it is not even tried.
    report.write_text(json.dumps({"torch": "1.0"}))
    reason = native._load()
    assert "built against torch 1.0" in reason
    assert torch.__version__ in reason
    assert "build it again" in reason


def test_reason_why_there_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = tmp_path / "_native_build.json"
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(native, "BUILD_REPORT", report)
    assert "not built" in native._load()
    report.write_text(json.dumps({"reason": "no compiler"}))
    assert native._load() == "no compiler"


@pytest.mark.parametrize("kind", ["garbage", "no operators"])
def test_a_broken_library_leaves_a_working_package(kind: str, tmp_path: Path):
    package = tmp_path / "garevla"
    shutil.copytree(native.LIBRARY.parent, package, ignore=shutil.ignore_patterns("*.so", "data"))
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
