from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

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


def test_declarations_are_torchs(tmp_path):
    """Torch itself declares what csrc calls, as of the oldest version, with the same types."""
    header = (ROOT / "csrc/torch_abi.h").read_text()
    names = re.findall(r"\b(?:TorchError|int32_t|void) (\w+)\(", header)
    for device in ("cpu", "cuda"):
        parts = re.findall(r"aoti_torch_##device##(\w+)\(", header)
        names += [f"aoti_torch_{device}{part}" for part in parts]
    assert len(names) > 50
    folder = "torch/csrc/inductor/aoti_torch/generated"
    lines = [
        "#include <cstdint>",
        "#include <type_traits>",
        f"#include <{folder}/c_shim_aten.h>",
        f"#include <{folder}/c_shim_cpu.h>",
        f"#include <{folder}/c_shim_cuda.h>",
        "#include <torch/csrc/inductor/aoti_torch/c/shim_cpu.h>",
        "#include <torch/csrc/stable/c/shim.h>",
        '#include "torch_abi.h"',
        "static_assert(garevla::torch_target_version == TORCH_TARGET_VERSION);",
        "static_assert(std::is_same_v<garevla::StackValue, StableIValue>);",
    ]
    lines += [
        f"static_assert(std::is_same_v<decltype(::{name}), decltype(garevla::{name})>);"
        for name in names
    ]
    (tmp_path / "check.cpp").write_text("\n".join(lines) + "\n")
    # Torch's own is not for code that names a target version.
    (tmp_path / "ATen").mkdir()
    features = "#define AT_MKLDNN_ENABLED() 1\n#define AT_MKL_ENABLED() 0\n"
    (tmp_path / "ATen/Config.h").write_text(features)
    oldest = re.search(r"(\d+)ull << 56\) \| \((\d+)ull << 48", header)
    target = int(oldest[1]) << 56 | int(oldest[2]) << 48
    flags = ["-std=c++20", "-fsyntax-only", "-I", ROOT / "csrc", "-I", tmp_path, "-DUSE_CUDA"]
    flags += [f"-DTORCH_TARGET_VERSION={target}ull"]
    flags += ["-isystem", Path(torch.__file__).parent / "include"]
    result = run("c++", *flags, tmp_path / "check.cpp")
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "86", "90", "100", "120"])
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


@pytest.mark.slow
def test_cmake_build_passes_its_tests_with_sanitizers(tmp_path):
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    if run("cmake", "-E", "capabilities").returncode != 0:
        pytest.skip("cmake does not run")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
        "-DGAREVLA_SANITIZE=address,undefined",
    ]
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
    shutil.copy(ROOT / "csrc/torch_abi.h", tmp_path / "csrc")
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
        "oldest_torch": "2.11",
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


@pytest.mark.slow
@needs_compiler
def test_only_what_changed_is_compiled_again(project):
    (project / "csrc/other.cpp").write_text('#include "torch_abi.h"\nint garevla_other;\n')
    source = project / "csrc/library.cpp"
    assert compiled(build(project)[0]) == ["library.o", "other.o"]
    assert compiled(build(project)[0]) == []
    source.write_text(source.read_text() + "\n")
    assert compiled(build(project)[0]) == ["library.o"]
    os.utime(project / "csrc/torch_abi.h")
    assert compiled(build(project)[0]) == ["other.o"]
    assert compiled(build(project, CXXFLAGS="-DOTHER")[0]) == ["library.o", "other.o"]


def compiled(result):
    """Names of the object files that a build made."""
    assert result.returncode == 0, result.stdout
    return sorted(re.findall(r"^\[\d+/\d+\] .*/(\S+) ", result.stdout, re.M))


@needs_compiler
@pytest.mark.parametrize(("switch", "platform"), [("force", "linux_x86_64"), ("skip", "any")])
def test_one_wheel_for_every_python(project, switch, platform):
    if switch == "force" and os.uname().machine != "x86_64":
        pytest.skip("another machine, another name")
    # The list in pyproject.toml is of packages that this project lacks.
    settings = (project / "pyproject.toml").read_text()
    settings = re.sub(r'    "garevla\..*",\n|^package-dir.*\n', "", settings, flags=re.M)
    (project / "pyproject.toml").write_text(settings)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    environment = os.environ | {"GAREVLA_NATIVE": switch, "GAREVLA_CUDA": "skip"}
    result = run(sys.executable, "-c", code, cwd=project, env=environment)
    assert result.returncode == 0, result.stdout
    (wheel,) = project.glob("*.whl")
    assert wheel.name == f"garevla-1.0-py3-none-{platform}.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert ("garevla/_native.so" in names) == (switch == "force")
    assert "garevla/_native_build.json" in names


def test_libraries_need_what_torch_and_the_system_bring():
    libraries = sorted((ROOT / "garevla").glob("_native*.so"))
    if not libraries or shutil.which("readelf") is None:
        pytest.skip("garevla was not built in place, or no readelf")
    if int(run("c++", "-dumpversion").stdout.split(".")[0]) > 12:
        pytest.skip("a newer compiler asks for a newer C++ library")
    brought = {"libtorch_cpu.so", "libtorch_cuda.so", "libstdc++.so.6", "libm.so.6"}
    brought |= {"libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    for library in libraries:
        needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library).stdout))
        assert {name for name in needed - brought if "libcudart.so." not in name} == set()
        versions = re.findall(r"\b(GLIBC|GLIBCXX)_([\d.]+)", run("readelf", "-V", library).stdout)
        for name, most in (("GLIBC", (2, 34)), ("GLIBCXX", (3, 4, 29))):  # manylinux_2_34
            found = {
                tuple(map(int, version.split("."))) for kind, version in versions if kind == name
            }
            assert max(found) <= most, (library.name, name)


def test_messages_are_written_without_streams():
    """Streams ask a locale, which dies beside a second C++ library."""
    libraries = sorted((ROOT / "garevla").glob("_native*.so"))
    if not libraries or shutil.which("nm") is None:
        pytest.skip("garevla was not built in place, or no nm")
    for library in libraries:
        names = run("nm", "-D", "-C", library).stdout
        assert "std::runtime_error" in names
        assert not re.findall(r"\bstd::.*(?:stream|locale|ios)\b.*", names)


WRONG_ARGUMENTS = """
import sys
import torch
torch.ops.load_library(sys.argv[1])
unit, basis = torch.ones(3, 4, 2), torch.ones(3, 4, 8)
for wrong in (basis[:2], basis.double()):
    try:
        torch.ops.garevla.direction(unit, wrong, 2.0, True)
    except RuntimeError as error:
        print(error)
"""


def test_errors_with_a_second_c_plus_plus_library_and_unwinder(tmp_path):
    """As some compilers link, and torch was not: exceptions of one are foreign to the other."""
    log = ROOT / "build/native/output.log"
    printed = log.read_text() if log.exists() else ""
    links = re.findall(r"^.* -shared .* -o build/native/_native\.so$", printed, re.M)
    if not links or record_of_this_tree()["native"] != "built":
        pytest.skip("garevla was not built in place")
    library = tmp_path / "static.so"
    command = links[-1].replace("build/native/_native.so", str(library)).split()
    linked = run(*command, "-static-libstdc++", "-static-libgcc", cwd=ROOT)
    if linked.returncode != 0:
        pytest.skip(f"this compiler has no static libraries: {linked.stdout}")
    assert "libstdc++" not in run("readelf", "-d", library).stdout
    result = run(sys.executable, "-c", WRONG_ARGUMENTS, library)
    assert result.returncode == 0, result.stdout
    shapes, dtypes = result.stdout.splitlines()
    assert shapes.endswith(
        "must have shape (B, K, A) and basis (B, K, D), got [3, 4, 2] and [2, 4, 8]"
    )
    assert dtypes == "basis must be float32, got float64"


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


@needs_compiler
def test_builds_without_torch(project):
    # As in pip's isolated build.
    (project / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    result, record = build(project, PYTHONPATH=str(project))
    assert result.returncode == 0, result.stdout
    assert record["native"] == "built"
    torch.ops.load_library(project / "garevla/_native.so")


def test_unknown_switch_is_named(project):
    result, _ = build(project, GAREVLA_NATIVE="yes")
    assert result.returncode != 0
    assert "GAREVLA_NATIVE must be auto, force or skip, got 'yes'" in result.stdout


@needs_compiler
@pytest.mark.parametrize("mode", ["auto", "force"])
def test_broken_cuda_part(project, mode):
    (project / "csrc/cuda/kernels.cu").touch()
    nvcc = project / "toolkit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo "release 13.0," && exit\n'
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
