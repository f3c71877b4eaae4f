"""Builds the compiled backend, garevla/_native.so, where this machine can; docs/building.md.

Environment variables:
    GAREVLA_NATIVE: ``auto`` (default: build it; where that fails, install without it), ``force``
        (fail instead) or ``skip``.
    GAREVLA_CUDA: the same for its CUDA kernels.
    GAREVLA_CUDA_ARCHITECTURES: such as ``80;90;100``; default: those of the GPUs present, else
        these three. PTX of the newest is always added.
    GAREVLA_BUILD_JOBS: compilers at a time; default: the usable cores.
    GAREVLA_DEBUG: ``1`` builds without optimisation and with debug symbols.
    GAREVLA_SANITIZE: ``address`` builds with the address sanitizer.

What came of it is written to garevla/_native_build.json, with the reasons for what is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LIBRARY = "_native.so"
RECORD = "_native_build.json"
TEMPORARY = Path("build/native")  # the same for every kind of installation, so that it is reused
LOG = TEMPORARY / "output.log"
DEFAULT_ARCHITECTURES = ["80", "90", "100"]


class MissingError(Exception):
    """The machine lacks something that the build needs; the message says what."""


class BuildFailedError(Exception):
    """The build was tried and failed; the message says why."""


@dataclass
class Record:
    """What was built; each part is ``built``, ``skipped`` or ``failed``."""

    native: str = "skipped"
    cuda: str = "skipped"
    reason: str | None = None
    cuda_reason: str | None = None
    torch: str | None = None
    cuda_version: str | None = None
    architectures: list[str] = field(default_factory=list)


def switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "force", "skip"):
        raise CompileError(f"{name} must be auto, force or skip, got {value!r}")
    return value


def sources(*patterns: str) -> list[str]:
    return sorted(path.as_posix() for pattern in patterns for path in Path().glob(pattern))


def cpu_sources() -> list[str]:
    return sources("csrc/*.cpp", "csrc/cpu/*.cpp")


def cuda_sources() -> list[str]:
    return sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp")


def check_machine() -> None:
    """Raise MissingError unless a build can be tried."""
    if switch("GAREVLA_NATIVE") == "skip":
        raise MissingError("garevla was built with GAREVLA_NATIVE=skip")
    if importlib.util.find_spec("torch") is None:
        raise MissingError(
            "torch was not installed when garevla was built: install torch first, then "
            "pip install --no-build-isolation garevla"
        )
    if not cpu_sources():
        raise MissingError("the C++ sources (csrc) were not there when garevla was built")
    if sys.platform == "win32":
        raise MissingError("the native backend does not build on Windows")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise MissingError(f"no C++ compiler ({compiler}) was found when garevla was built")


@dataclass
class Cuda:
    """What to compile CUDA sources with, and for which architectures, such as ``90``."""

    nvcc: str
    version: str
    architectures: list[str] = field(default_factory=list)

    def folders(self, variable: str, flag: str) -> list[str]:
        """Folders of nvcc's own: nvcc may be a script or in another folder than its toolkit."""
        command = [self.nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        line = re.search(rf"^#\$ {variable}=(.*)$", printed, re.M)
        flags = shlex.split(line[1]) if line else []
        return [folder.removeprefix(flag) for folder in flags if folder.startswith(flag)]


def find_cuda() -> Cuda:
    """The CUDA compiler, or MissingError."""
    import torch
    from torch.utils import cpp_extension

    if switch("GAREVLA_CUDA") == "skip":
        raise MissingError("garevla was built with GAREVLA_CUDA=skip")
    if torch.version.cuda is None:
        raise MissingError("garevla was built with a torch that has no CUDA")
    if not sources("csrc/cuda/*.cu"):
        raise MissingError("there are no CUDA sources")
    nvcc = shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME}/bin")
    if cpp_extension.CUDA_HOME is None or nvcc is None:
        raise MissingError("no nvcc was found when garevla was built: set CUDA_HOME")
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", printed)
    if release is None:
        raise RuntimeError(f"nvcc --version names no release: {printed!r}")
    if release[1] != torch.version.cuda.split(".")[0]:
        raise MissingError(
            f"nvcc is of CUDA {release[1]}.{release[2]}, torch of CUDA {torch.version.cuda}: "
            "their first numbers must agree"
        )
    return Cuda(nvcc, f"{release[1]}.{release[2]}")


def choose_architectures(nvcc: str) -> list[str]:
    """The CUDA architectures to build for, oldest first."""

    def number(architecture: str) -> int:
        return int(architecture.rstrip("af"))

    wanted = os.environ.get("GAREVLA_CUDA_ARCHITECTURES", "").replace(".", "")
    if wanted:
        chosen = re.split(r"[;, ]+", wanted.strip("; ,"))
        if wrong := [name for name in chosen if not re.fullmatch(r"\d{2,3}[af]?", name)]:
            raise ValueError(f"GAREVLA_CUDA_ARCHITECTURES must be like '80;90;100', got {wrong}")
        return sorted(set(chosen), key=number)

    import torch

    printed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = sorted(int(name) for name in re.findall(r"compute_(\d+)$", printed.stdout, re.M))
    if not torch.cuda.is_available():
        return [name for name in DEFAULT_ARCHITECTURES if int(name) in known]
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    # A GPU that is newer than nvcc runs the PTX of the newest architecture that nvcc knows.
    return [
        str(max(name for name in known if name <= present))
        for present in sorted({major * 10 + minor for major, minor in capabilities})
    ]


def nvidia_wheels() -> list[Path]:
    """Folders with include/ and lib/ of the CUDA libraries that PyPI's torch comes with."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return [folder for root in roots or [] for folder in sorted(Path(root).glob("*"))]


def configure(extension: Extension, cuda: Cuda | None) -> None:
    """Set sources and flags; ``None`` builds without CUDA."""
    import torch
    from torch.utils import cpp_extension

    debug = os.environ.get("GAREVLA_DEBUG", "0") not in ("", "0")
    sanitizer = os.environ.get("GAREVLA_SANITIZE", "")
    sanitize = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"] if sanitizer else []
    # Compilers do not report system headers as dependencies: the torch version in the command
    # makes ninja rebuild for another torch.
    macros = [f"-DGAREVLA_TORCH_VERSION={torch.__version__}"] + (["-DNDEBUG"] if not debug else [])
    include_dirs = cpp_extension.include_paths()
    if cuda:
        # ATen's CUDA headers include those of cuBLAS and others, which small toolkits lack.
        include_dirs += cuda.folders("INCLUDES", "-I")
        include_dirs += [str(folder / "include") for folder in nvidia_wheels()]
    # at::parallel_for is serial in code that is compiled without OpenMP.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    cxx = ["-std=c++20", "-Wall", "-Wextra", "-fvisibility=hidden", *openmp, *macros, *sanitize]
    cxx += ["-fno-math-errno", "-ffp-contract=fast", "-fno-wrapv"]
    cxx += ["-O0", "-g"] if debug else ["-O3", "-g" if sanitizer else "-g0"]
    for folder in include_dirs:
        cxx += ["-isystem", folder]

    extension.sources = cpu_sources()
    extension.depends = sources("csrc/**/*.h", "csrc/**/*.inc")
    extension.include_dirs = [str(Path("csrc").resolve())]
    extension.library_dirs = cpp_extension.library_paths()
    extension.libraries = ["c10", "torch", "torch_cpu"]
    extension.extra_link_args = [*openmp, *sanitize]
    extension.extra_compile_args = {"cxx": cxx}
    if cuda is None:
        return
    nvcc = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler", "-Wall,-Wextra", *macros]
    # torch's build adds the opposite; the kernels use these operators.
    nvcc += [f"-U__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS")]
    nvcc += [f"-U__CUDA_NO_{what}__" for what in ("HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")]
    for name in cuda.architectures:
        nvcc.append(f"-gencode=arch=compute_{name},code=sm_{name}")
    newest = cuda.architectures[-1]
    nvcc.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    extension.sources += cuda_sources()
    extension.libraries += ["c10_cuda", "torch_cuda"]
    extension.extra_compile_args["nvcc"] = nvcc
    # The runtime that torch itself loads, where it is a wheel; its file name has a version, which
    # -lcudart does not find.
    runtimes = [path for folder in nvidia_wheels() for path in folder.glob("lib/libcudart.so*")]
    extension.extra_link_args.append(str(runtimes[0]) if runtimes else "-lcudart")
    extension.library_dirs += cuda.folders("LIBRARIES", "-L")


@contextlib.contextmanager
def output_logged(path: Path) -> Iterator[None]:
    """Copy what this process and its compilers print to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["tee", path], stdin=subprocess.PIPE) as tee:
        saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in saved:
            os.dup2(tee.stdin.fileno(), descriptor)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)


def explain(error: Exception) -> str:
    """One line: the compiler's first complaint where there is one, else the exception."""
    if isinstance(error, MissingError | BuildFailedError):
        return str(error)
    printed = LOG.read_text(errors="replace") if LOG.exists() else ""
    for line in printed.splitlines():
        if re.search(r"\berror\b ?:|undefined reference|: not found", line):
            return line.strip()[:500]
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


class BuildNative(build_ext):
    """Builds what this machine can and records what came of it."""

    def run(self) -> None:
        record = Record()
        LOG.unlink(missing_ok=True)
        forced = switch("GAREVLA_NATIVE") == "force"
        failure: Exception | None = None
        try:
            check_machine()
            self._build(record)
            record.native = "built"
        except Exception as error:
            failure = error
            record.native = "skipped" if isinstance(error, MissingError) else "failed"
            record.reason = explain(error)
            forced |= record.native == "failed" and switch("GAREVLA_CUDA") == "force"
        self._write(record)
        if failure is not None and forced:
            raise CompileError(f"the native backend was not built: {record.reason}") from failure

    def _build(self, record: Record) -> None:
        import torch

        record.torch = str(torch.__version__)
        try:
            cuda = find_cuda()
            record.cuda_version = cuda.version
            cuda.architectures = choose_architectures(cuda.nvcc)
            self._compile(cuda)
            record.cuda, record.architectures = "built", cuda.architectures
        except Exception as error:
            missing = isinstance(error, MissingError)
            record.cuda = "skipped" if missing else "failed"
            record.cuda_reason = explain(error)
            if switch("GAREVLA_CUDA") == "force":
                raise BuildFailedError(f"no CUDA kernels: {record.cuda_reason}") from error
            self._compile(None)

    def _compile(self, cuda: Cuda | None) -> None:
        from torch.utils.cpp_extension import BuildExtension

        # A ninja from PyPI is beside this Python, which pip does not put on the path.
        os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        os.environ.setdefault("MAX_JOBS", os.environ.get("GAREVLA_BUILD_JOBS") or str(usable))
        with output_logged(LOG):
            configure(self.extensions[0], cuda)
            compile_ = BuildExtension.with_options(no_python_abi_suffix=True)(self.distribution)
            compile_.build_lib = self.build_lib
            compile_.build_temp = str(TEMPORARY)
            compile_.inplace = self.inplace
            compile_.ensure_finalized()
            compile_.run()
        if not os.environ.get("GAREVLA_SANITIZE"):  # which loads into a prepared process only
            self._check_that_it_loads()

    def _check_that_it_loads(self) -> None:
        code = "import sys, torch; torch.ops.load_library(sys.argv[1])"
        library = (self._folders()[0] / LIBRARY).resolve()
        command = [sys.executable, "-c", code, str(library)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            raise BuildFailedError(f"the library was built but does not load: {lines[-1]}")

    def _folders(self) -> list[Path]:
        built = Path(self.build_lib, "garevla")
        return [built, Path("garevla")] if self.inplace else [built]

    def _write(self, record: Record) -> None:
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
            if record.native != "built":
                (folder / LIBRARY).unlink(missing_ok=True)  # an earlier build's
        for part, what, why in (
            ("native backend", record.native, record.reason),
            ("its CUDA kernels", record.cuda, record.cuda_reason),
        ):
            self.announce(f"{part}: {what}" + (f" ({why})" if why else ""), level=logging.WARNING)

    def get_outputs(self) -> list[str]:
        built = Path(self.build_lib, "garevla")
        return [str(built / name) for name in (LIBRARY, RECORD) if (built / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {output: f"garevla/{Path(output).name}" for output in self.get_outputs()}


class Build(build):
    """Runs build_ext without an extension to build too: it writes the record."""

    sub_commands = [  # noqa: RUF012 - setuptools' attribute
        (name, None if name == "build_ext" else condition) for name, condition in build.sub_commands
    ]


def extensions() -> list[Any]:
    try:
        check_machine()
    except MissingError:
        return []  # and so, a wheel for every platform
    return [Extension("garevla._native", cpu_sources())]


setup(ext_modules=extensions(), cmdclass={"build": Build, "build_ext": BuildNative})
