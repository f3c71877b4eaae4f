"""Builds the compiled backend, garevla/_native.so and garevla/_native_cuda.so; docs/building.md.

Neither torch nor its headers are needed: the sources declare what they call of it. The libraries
serve every torch from the version in csrc/torch_abi.h on, and every Python.

Environment variables:
    GAREVLA_NATIVE: ``auto`` (default: build it; where that fails, install without it), ``force``
        (fail instead) or ``skip``.
    GAREVLA_CUDA: the same for the CUDA kernels.
    GAREVLA_CUDA_ARCHITECTURES: such as ``80;90;100``; default: those of the GPUs present, else
        DEFAULT_ARCHITECTURES, in place the first of them. PTX of the newest is always added.
    GAREVLA_BUILD_JOBS: compilers at a time; default: the usable cores.
    GAREVLA_DEBUG: ``1`` builds without optimisation and with debug symbols.
    GAREVLA_SANITIZE: ``address`` builds with the address sanitizer.

What came of it is written to garevla/_native_build.json, with the reasons for what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LIBRARY = "_native.so"
CUDA_LIBRARY = "_native_cuda.so"
RECORD = "_native_build.json"
TEMPORARY = Path("build/native")  # the same for every kind of installation, so that it is reused
LOG = TEMPORARY / "output.log"
DEFAULT_ARCHITECTURES = ["80", "86", "90", "100", "120"]


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
    oldest_torch: str | None = None
    cuda_version: str | None = None
    architectures: list[str] = field(default_factory=list)


def switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "force", "skip"):
        raise CompileError(f"{name} must be auto, force or skip, got {value!r}")
    return value


def switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in Path().glob(pattern))


def cpu_sources() -> list[Path]:
    return sources("csrc/*.cpp", "csrc/cpu/*.cpp")


def cuda_sources() -> list[Path]:
    return sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp")


def oldest_torch() -> str:
    header = Path("csrc/torch_abi.h").read_text()
    version = re.search(r"torch_target_version = \((\d+)ull << 56\) \| \((\d+)ull << 48\)", header)
    if version is None:
        raise RuntimeError("csrc/torch_abi.h names no torch_target_version")
    return f"{version[1]}.{version[2]}"


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def check_machine() -> None:
    """Raise MissingError unless a build can be tried."""
    if switch("GAREVLA_NATIVE") == "skip":
        raise MissingError("garevla was built with GAREVLA_NATIVE=skip")
    if not cpu_sources():
        raise MissingError("the C++ sources (csrc) were not there when garevla was built")
    if sys.platform != "linux":
        raise MissingError("the native backend is built on Linux alone")
    if shutil.which(compiler()) is None:
        raise MissingError(f"no C++ compiler ({compiler()}) was found when garevla was built")


@dataclass
class Cuda:
    """What to compile CUDA sources with, and for which architectures, such as ``90``."""

    nvcc: str
    version: str
    architectures: list[str] = field(default_factory=list)

    @property
    def runtime(self) -> str:
        return f"libcudart.so.{self.version.split('.')[0]}"

    def include_flags(self) -> list[str]:
        """For the C++ compiler: nvcc may be a script or in another folder than its toolkit."""
        command = [self.nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        line = re.search(r"^#\$ INCLUDES=(.*)$", printed, re.M)
        flags = shlex.split(line[1]) if line else []
        folders = [flag.removeprefix("-I") for flag in flags if flag.startswith("-I")]
        return [word for folder in folders for word in ("-isystem", folder)]


def find_cuda() -> Cuda:
    """The CUDA compiler, or MissingError."""
    if switch("GAREVLA_CUDA") == "skip":
        raise MissingError("garevla was built with GAREVLA_CUDA=skip")
    if not sources("csrc/cuda/*.cu"):
        raise MissingError("there are no CUDA sources")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    nvcc = nvcc or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise MissingError("no nvcc was found when garevla was built: set CUDA_HOME")
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+\.\d+)", printed)
    if release is None:
        raise RuntimeError(f"nvcc --version names no release: {printed!r}")
    return Cuda(nvcc, release[1])


def choose_architectures(nvcc: str, *, in_place: bool) -> list[str]:
    """The CUDA architectures to build for, oldest first."""

    def number(architecture: str) -> int:
        return int(architecture.rstrip("af"))

    wanted = os.environ.get("GAREVLA_CUDA_ARCHITECTURES", "").replace(".", "")
    if wanted:
        chosen = re.split(r"[;, ]+", wanted.strip("; ,"))
        if wrong := [name for name in chosen if not re.fullmatch(r"\d{2,3}[af]?", name)]:
            raise ValueError(f"GAREVLA_CUDA_ARCHITECTURES must be like '80;90;100', got {wrong}")
        return sorted(set(chosen), key=number)
    printed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = sorted(int(name) for name in re.findall(r"compute_(\d+)$", printed.stdout, re.M))
    present = present_architectures()
    if not present:
        # In place is for this machine: code that newer GPUs' drivers can compile is enough there.
        names = DEFAULT_ARCHITECTURES[:1] if in_place else DEFAULT_ARCHITECTURES
        return [name for name in names if int(name) in known]
    # A GPU that is newer than nvcc runs the PTX of the newest architecture that nvcc knows.
    return [str(max(name for name in known if name <= of_gpu)) for of_gpu in present]


def present_architectures() -> list[int]:
    """Those of this machine's GPUs."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted({int(name.replace(".", "")) for name in re.findall(r"^\d+\.\d$", printed, re.M)})


@dataclass
class Flags:
    """Of the compilers and the linker."""

    cxx: list[str]
    nvcc: list[str] = field(default_factory=list)
    link: list[str] = field(default_factory=list)


def flags_of(cuda: Cuda | None) -> Flags:
    debug = switched_on("GAREVLA_DEBUG")
    sanitizer = os.environ.get("GAREVLA_SANITIZE", "")
    sanitize = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"] if sanitizer else []
    macros = ["-I", "csrc"] + ([] if debug else ["-DNDEBUG"])
    cxx = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden", *macros, *sanitize]
    cxx += ["-fno-math-errno", "-ffp-contract=fast"]
    cxx += ["-O0", "-g"] if debug else ["-O3", "-g" if sanitizer else "-g0"]
    cxx += shlex.split(os.environ.get("CXXFLAGS", ""))
    # Where the compiler links its C++ library statically, that stays to itself.
    link = ["-Wl,--exclude-libs,ALL", *sanitize, *([] if debug or sanitizer else ["-s"])]
    flags = Flags(cxx, link=link)
    if cuda is None:
        return flags
    flags.cxx += cuda.include_flags()
    flags.nvcc = ["-std=c++20", "-O3", "-lineinfo", *macros]
    flags.nvcc += ["-Xcompiler", "-fPIC,-Wall,-Wextra,-fvisibility=hidden"]
    if "CXX" in os.environ:
        flags.nvcc += ["-ccbin", compiler()]
    for name in cuda.architectures:
        flags.nvcc.append(f"-gencode=arch=compute_{name},code=sm_{name}")
    newest = cuda.architectures[-1]
    flags.nvcc.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


class Builder:
    """Compiles what has changed, several files at a time; everything is printed and logged."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        usable = len(os.sched_getaffinity(0))
        self._jobs = int(os.environ.get("GAREVLA_BUILD_JOBS") or usable)

    def library(
        self, path: Path, files: list[Path], flags: Flags, nvcc: str, needed: Iterable[str]
    ) -> None:
        """Build a shared library.

        Args:
            path: of the library.
            files: its sources.
            flags: to compile them with.
            nvcc: the compiler of those that end in .cu.
            needed: file names of libraries that are loaded with it. Torch and CUDA bring them:
                an empty library of the name takes their place here.
        """
        commands = {}
        for file in files:
            object_ = (TEMPORARY / file).with_suffix(".o")
            command = [nvcc, *flags.nvcc] if file.suffix == ".cu" else [compiler(), *flags.cxx]
            dependencies = ["-MMD", "-MF", str(object_.with_suffix(".d"))]
            commands[object_] = [*command, *dependencies, "-c", str(file), "-o", str(object_)]
        stale = {to: command for to, command in commands.items() if not up_to_date(to, command)}
        with ThreadPoolExecutor(self._jobs) as pool:
            jobs = [pool.submit(self._compile, *item) for item in stale.items()]
            for number, job in enumerate(jobs, 1):
                self._report(f"[{number}/{len(jobs)}] {job.result()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        stubs = [self._stub(name) for name in needed]
        link = [compiler(), "-shared", *map(str, commands), "-Wl,--no-as-needed", *stubs]
        self._run([*link, *flags.link, "-o", str(path)])

    def _compile(self, object_: Path, command: list[str]) -> str:
        start = time.monotonic()
        object_.parent.mkdir(parents=True, exist_ok=True)
        self._run(command)
        object_.with_suffix(".command").write_text(shlex.join(command))
        return f"{object_} ({time.monotonic() - start:.0f} s)"

    def _stub(self, name: str) -> str:
        path = TEMPORARY / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-shared", "-nostdlib", f"-Wl,-soname,{name}", "-x", "c++", os.devnull]
        self._run([compiler(), *flags, "-o", str(path)])
        return str(path)

    def _run(self, command: list[str]) -> None:
        merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        result = subprocess.run(command, check=False, errors="replace", **merged)
        with open(LOG, "a", encoding="utf-8") as log:
            log.write(f"{shlex.join(command)}\n{result.stdout}")
        if result.stdout:
            self._report(result.stdout.rstrip())
        if result.returncode != 0:
            raise BuildFailedError(first_complaint(result.stdout) or f"{command[0]} failed")


def up_to_date(object_: Path, command: list[str]) -> bool:
    """Whether an object file came of this command and of nothing that is newer."""
    made_by, rule = object_.with_suffix(".command"), object_.with_suffix(".d")
    if not (object_.exists() and made_by.exists() and rule.exists()):
        return False
    dependencies = rule.read_text().partition(":")[2].replace("\\\n", " ").split()
    made = object_.stat().st_mtime
    return made_by.read_text() == shlex.join(command) and all(
        Path(file).exists() and Path(file).stat().st_mtime <= made for file in dependencies
    )


def first_complaint(printed: str) -> str | None:
    for line in printed.splitlines():
        if re.search(r"\berror\b ?:|undefined reference|: not found", line):
            return line.strip()[:500]
    return None


def explain(error: Exception) -> str:
    """One line."""
    if isinstance(error, MissingError | BuildFailedError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


class BuildNative(build_ext):
    """Builds what this machine can and records what came of it."""

    def run(self) -> None:
        record = Record()
        LOG.unlink(missing_ok=True)
        forced = switch("GAREVLA_NATIVE") == "force"
        failure: Exception | None = None
        for folder in self._folders():
            for name in (LIBRARY, CUDA_LIBRARY):  # an earlier build's
                (folder / name).unlink(missing_ok=True)
        try:
            check_machine()
            TEMPORARY.mkdir(parents=True, exist_ok=True)
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
        builder = Builder(lambda line: self.announce(line, level=logging.WARNING))
        record.oldest_torch = oldest_torch()
        self._library(builder, LIBRARY, cpu_sources(), None)
        try:
            cuda = find_cuda()
            record.cuda_version = cuda.version
            cuda.architectures = choose_architectures(cuda.nvcc, in_place=bool(self.inplace))
            self._library(builder, CUDA_LIBRARY, cuda_sources(), cuda)
            record.cuda, record.architectures = "built", cuda.architectures
        except Exception as error:
            record.cuda = "skipped" if isinstance(error, MissingError) else "failed"
            record.cuda_reason = explain(error)
            if switch("GAREVLA_CUDA") == "force":
                raise BuildFailedError(f"no CUDA kernels: {record.cuda_reason}") from error

    def _library(self, builder: Builder, name: str, files: list[Path], cuda: Cuda | None) -> None:
        needed = ["libtorch_cpu.so"]
        if cuda is not None:
            needed += ["libtorch_cuda.so", cuda.runtime]
        built = TEMPORARY / name
        builder.library(built, files, flags_of(cuda), cuda.nvcc if cuda else "", needed)
        if not os.environ.get("GAREVLA_SANITIZE"):  # which loads into a prepared process only
            check_that_it_loads(built, cuda)
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, folder)

    def _folders(self) -> list[Path]:
        built = Path(self.build_lib, "garevla")
        return [built, Path("garevla")] if self.inplace else [built]

    def _write(self, record: Record) -> None:
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
            if record.native != "built":
                (folder / LIBRARY).unlink(missing_ok=True)
        for part, what, why in (
            ("native backend", record.native, record.reason),
            ("its CUDA kernels", record.cuda, record.cuda_reason),
        ):
            self.announce(f"{part}: {what}" + (f" ({why})" if why else ""), level=logging.WARNING)

    def get_outputs(self) -> list[str]:
        built = Path(self.build_lib, "garevla")
        names = (LIBRARY, CUDA_LIBRARY, RECORD)
        return [str(built / name) for name in names if (built / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {output: f"garevla/{Path(output).name}" for output in self.get_outputs()}


CHECK = """
import sys
try:
    import torch
except ImportError:
    sys.exit()  # an isolated build
if sys.argv[2] == "None" or (torch.version.cuda or "").split(".")[0] == sys.argv[2]:
    torch.ops.load_library(sys.argv[1])
"""


def check_that_it_loads(library: Path, cuda: Cuda | None) -> None:
    """Raise BuildFailedError where there is a torch that it should load into, and it does not."""
    major = cuda.version.split(".")[0] if cuda else "None"
    command = [sys.executable, "-c", CHECK, str(library.resolve()), major]
    if cuda is not None:
        # Its operators are defined by the other.
        command[2] = CHECK.replace(
            "    torch.ops",
            f"    torch.ops.load_library({str(TEMPORARY / LIBRARY)!r})\n    torch.ops",
        )
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise BuildFailedError(f"{library.name} was built but does not load: {lines[-1]}")


class Build(build):
    """Runs build_ext without an extension to build too: it writes the record."""

    sub_commands = [  # noqa: RUF012 - setuptools' attribute
        (name, None if name == "build_ext" else condition) for name, condition in build.sub_commands
    ]


class Wheel(bdist_wheel):
    """The libraries depend on the platform, and not on Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        built = Path(self.get_finalized_command("build").build_lib, "garevla", LIBRARY).exists()
        return ("py3", "none", platform if built else "any")


def extensions() -> list[Extension]:
    try:
        check_machine()
    except MissingError:
        return []  # and so, a wheel for every platform
    return [Extension("garevla._native", [])]


setup(
    ext_modules=extensions(),
    cmdclass={"build": Build, "build_ext": BuildNative, "bdist_wheel": Wheel},
)
