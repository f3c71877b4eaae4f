from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch

import garevla
from garevla.ops import backends, native_library
from garevla.utils import env


def test_report_has_what_a_bug_report_needs():
    report = env.collect()
    assert report["garevla"] == garevla.__version__
    assert report["packages"]["torch"] == torch.__version__
    assert report["packages"]["numpy"][0].isdigit()
    assert "open_clip_torch" in report["optional_packages"]
    assert report["cpu"]["torch_threads"] == torch.get_num_threads()
    assert report["cpu"]["products"]["float32"] in ("PyTorch's own", "oneDNN")
    assert report["cuda"]["available"] == torch.cuda.is_available()
    assert set(report["backends"]) == set(backends.backend_status())
    assert json.loads(json.dumps(report)) == report


def test_absent_packages_are_named(monkeypatch):
    real_version = importlib.metadata.version

    def version(name):
        if name == "decord":
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    report = env.collect()
    assert report["optional_packages"]["decord"] == "not installed"
    assert "decord: not installed" in env.format_report(report)


def test_reason_of_an_unavailable_backend_is_shown(monkeypatch):
    monkeypatch.setattr(backends, "backend_status", lambda: {"eager": None, "quick": "no compiler"})
    text = env.format_report(env.collect())
    assert "eager: available" in text
    assert "quick: not available: no compiler" in text


def test_a_broken_part_does_not_hide_the_others(monkeypatch):
    def broken(*args):
        raise OSError("libcuda is too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(backends, "backend_status", broken)
    report = env.collect()
    assert report["cuda"]["available"] == "unknown (OSError: libcuda is too old)"
    assert report["backends"] == "unknown (OSError: libcuda is too old)"
    assert report["packages"]["torch"] == torch.__version__
    assert "libcuda is too old" in env.format_report(report)


def test_devices_are_listed(monkeypatch):
    class Properties:
        name = "Some GPU"
        major, minor = 9, 0
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    text = env.format_report(env.collect())
    assert "0: name Some GPU, compute_capability 9.0, memory_gib 80.0" in text


def test_what_was_built_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(native_library, "BUILD_REPORT", tmp_path / "_native_build.json")
    monkeypatch.setattr(native_library, "UNAVAILABLE", None)
    monkeypatch.setattr(native_library, "CUDA_UNAVAILABLE", "no nvcc")
    runs = {"runs": "yes", "cuda_runs": "no: no nvcc"}
    assert env.collect()["native_build"] == {"native": "never tried", **runs}
    record = {"native": "built", "reason": None, "architectures": ["80", "90"]}
    (tmp_path / "_native_build.json").write_text(json.dumps(record))
    report = env.collect()
    assert report["native_build"] == record | runs
    expected = "native_build:\n  native: built\n  reason: none\n  architectures: 80, 90\n"
    assert expected in env.format_report(report)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_runs_with_core_packages_only(flags):
    """In a fresh interpreter whose optional packages cannot be imported."""
    blocked = ["av", "decord", "jsonargparse", "matplotlib", "open_clip", "pandas", "PIL"]
    blocked += ["torchvision", "tqdm", "triton"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from garevla.utils.env import main\n"
        f"main({flags!r})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    if flags:
        assert json.loads(result.stdout)["garevla"] == garevla.__version__
    else:
        assert f"garevla: {garevla.__version__}" in result.stdout
