from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CUDA_SOURCES = sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu"))


def run(*command, **kwargs):
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **kwargs,
    )


def record_of_this_tree():
    path = ROOT / "garevla" / "_native_build.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_nothing_that_was_tried_failed():
    record = record_of_this_tree()
    if record is None:
        pytest.skip("garevla was not built in place")
    assert "failed" not in (record["native"], record["cuda"]), record
    assert (record["native"] == "built") == (ROOT / "garevla" / "_native.so").exists()


@pytest.fixture(scope="session")
def nvcc():
    home = os.environ.get("CUDA_HOME")
    path = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if path is None:
        pytest.skip("no nvcc")
    return path


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
@pytest.mark.parametrize("source", CUDA_SOURCES)
def test_cuda_source_compiles_without_warnings(nvcc, source, architecture, tmp_path):
    if f"sm_{architecture}" not in run(nvcc, "--list-gpu-code").stdout.split():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    flags = ["-std=c++20", "-O3", "-Xcompiler", "-Wall,-Wextra", "-Werror", "all-warnings"]
    flags += [f"-arch=sm_{architecture}", "-I", ROOT / "csrc"]
    # The assembler takes longest, and has run already for what setup.py built.
    built = architecture in (record_of_this_tree() or {}).get("architectures", [])
    flags += ["-ptx"] if built else ["-cubin", "-Xptxas", "-v"]
    result = run(nvcc, *flags, ROOT / "csrc/cuda" / source, "-o", tmp_path / "kernels")
    print(result.stdout)  # registers and spills of every kernel
    assert result.returncode == 0, result.stdout


def test_cmake_build_passes_its_tests_with_the_address_sanitizer(tmp_path):
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    if run("cmake", "-E", "capabilities").returncode != 0:
        pytest.skip("cmake does not run")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DGAREVLA_SANITIZE=address"]
    options += ["-DCMAKE_CXX_FLAGS_RELEASE=-O1"]  # compiles in half the time
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path, *generator, *options],
        ["cmake", "--build", tmp_path, "--parallel", "2"],
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"],
    ):
        result = run(*command)
        assert result.returncode == 0, result.stdout
    if list((ROOT / "csrc" / "tests").glob("*.cpp")):
        assert "100% tests passed" in result.stdout


@pytest.fixture
def project(tmp_path):
    """A package of one C++ source, which compiles in no time, built by the real setup.py."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("garevla", "csrc/cpu", "csrc/cuda"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "garevla/__init__.py").write_text('__version__ = "1.0"\n')
    (tmp_path / "csrc/library.cpp").write_text("int garevla_nothing() { return 0; }\n")
    return tmp_path


def build(project, **switches):
    """What ``setup.py build_ext`` ends with under these environment variables, and its record."""
    environment = {key: value for key, value in os.environ.items() if "GAREVLA" not in key}
    result = run(
        *(sys.executable, "setup.py", "build_ext", "--inplace"),
        cwd=project,
        env={**environment, "GAREVLA_CUDA": "skip", **switches},
    )
    path = project / "garevla/_native_build.json"
    return result, json.loads(path.read_text()) if path.exists() else None


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
no_compiler_works = {"CXX": "/bin/false", "CC": "/bin/false"}


@needs_compiler
def test_record_of_a_build(project):
    result, record = build(project)
    assert result.returncode == 0, result.stdout
    assert record == {
        "native": "built",
        "cuda": "skipped",
        "reason": None,
        "cuda_reason": "garevla was built with GAREVLA_CUDA=skip",
        "torch": torch.__version__,
        "cuda_version": None,
        "architectures": [],
    }
    torch.ops.load_library(project / "garevla/_native.so")


def test_failed_build_leaves_the_package_and_the_reason(project):
    library = project / "garevla/_native.so"
    library.touch()  # of an earlier build
    result, record = build(project, **no_compiler_works)
    assert result.returncode == 0, result.stdout
    assert record["native"] == "failed"
    assert "/bin/false" in record["reason"]
    assert not library.exists()


@needs_compiler
def test_reason_is_the_compilers_first_complaint(project):
    (project / "csrc/library.cpp").write_text("int garevla_nothing() { return undeclared; }\n")
    _, record = build(project)
    assert record["native"] == "failed"
    assert "library.cpp:1" in record["reason"]
    assert "undeclared" in record["reason"]


@needs_compiler
def test_library_that_does_not_load_is_a_failed_build(project):
    (project / "csrc/library.cpp").write_text("int missing();\nint with = missing();\n")
    _, record = build(project)
    assert record["native"] == "failed"
    assert "does not load" in record["reason"]
    assert not (project / "garevla/_native.so").exists()


def test_force_raises(project):
    result, record = build(project, GAREVLA_NATIVE="force", **no_compiler_works)
    assert result.returncode != 0
    assert "the native backend was not built" in result.stdout
    assert record["native"] == "failed"


def test_skip(project):
    result, record = build(project, GAREVLA_NATIVE="skip")
    assert result.returncode == 0, result.stdout
    assert record["native"] == "skipped"
    assert record["reason"] == "garevla was built with GAREVLA_NATIVE=skip"
    assert not (project / "build/native").exists()


def test_absent_torch_is_the_reason(project):
    # As in pip's isolated build: a torch that find_spec does not find.
    (project / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name)\n"
    )
    result, record = build(project, PYTHONPATH=str(project))
    assert result.returncode == 0, result.stdout
    assert record["native"] == "skipped"
    assert "torch was not installed when garevla was built" in record["reason"]


def test_unknown_switch_is_named(project):
    result, _ = build(project, GAREVLA_NATIVE="yes")
    assert result.returncode != 0
    assert "GAREVLA_NATIVE must be auto, force or skip, got 'yes'" in result.stdout


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.parametrize("mode", ["auto", "force"])
def test_broken_cuda_part(project, mode):
    (project / "csrc/cuda/kernels.cu").touch()
    nvcc = project / "toolkit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "release {torch.version.cuda}," && exit\n'
        '[ "$1" = --dryrun ] && exit\n'
        'echo "kernels.cu(1): error: out of order"; exit 1\n'
    )
    nvcc.chmod(0o755)
    switches = {"GAREVLA_CUDA": mode, "GAREVLA_CUDA_ARCHITECTURES": "9.0"}
    result, record = build(project, CUDA_HOME=str(project / "toolkit"), **switches)
    assert record["cuda"] == "failed"
    assert "kernels.cu(1): error: out of order" in record["cuda_reason"]
    if mode == "auto":
        assert result.returncode == 0, result.stdout
        assert record["native"] == "built"
        assert (project / "garevla/_native.so").exists()
    else:
        assert result.returncode != 0
        assert record["native"] == "failed"
