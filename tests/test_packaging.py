"""What is installed is what is in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import garevla

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib")  # Python 3.11
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Folder in the tree -> the package that it is installed as.
PACKAGES = {"garevla": "garevla", "kernels": "garevla.kernels"}


def sources() -> dict[str, list[Path]]:
    """Every package in the tree and its Python files."""
    found: dict[str, list[Path]] = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.parent.relative_to(ROOT / folder).parts
            found.setdefault(".".join([package, *inner]), []).append(path)
    return found


def test_the_list_of_packages_is_the_tree():
    assert SETTINGS["tool"]["setuptools"]["packages"] == sorted(sources())


def test_no_folder_is_a_link():
    assert not [path for path in ROOT.glob("*/*") if path.is_symlink() and ".venv" not in str(path)]


def test_every_package_imports_as_installed():
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    # Kernels need Triton, which not every machine has.
    names = [name for name in sources() if name not in ("garevla.kernels.pairs",)]
    subprocess.run([sys.executable, "-c", code, *names], check=True, cwd=ROOT.parent)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, as a checkout without symbolic links has them."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    copy = tmp_path_factory.mktemp("checkout") / "tree"
    clone = ["git", "-c", "core.symlinks=false", "clone", "--quiet", str(ROOT), str(copy)]
    subprocess.run(clone, check=True)
    return copy


def built(tree: Path, command: str) -> set[str]:
    """Names of the files in what setuptools builds, without the archive's top folder."""
    code = (
        "import os, sys; from setuptools import build_meta; "
        "os.makedirs('dist', exist_ok=True); print(getattr(build_meta, sys.argv[1])('dist'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=tree,
        env={"GAREVLA_NATIVE": "skip", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    archive = tree / "dist" / result.stdout.split()[-1]
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def test_wheel(tree: Path):
    names = built(tree, "build_wheel")
    for package, paths in sources().items():
        folder = package.replace(".", "/")
        assert {f"{folder}/{path.name}" for path in paths} <= names, package
    for pattern in SETTINGS["tool"]["setuptools"]["package-data"]["garevla"]:
        for path in (ROOT / "garevla").glob(pattern):
            assert path.relative_to(ROOT).as_posix() in names
    version = f"garevla-{garevla.__version__}.dist-info/METADATA"
    assert version in names


def test_sdist_has_what_it_takes_to_build_test_and_document(tree: Path):
    names = built(tree, "build_sdist")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=tree, check=True, capture_output=True, text=True
    ).stdout.split()
    wanted = ("garevla/", "kernels/", "csrc/", "tests/", "docs/", "benchmarks/", "setup.py")
    wanted += ("CMakeLists.txt", "Makefile", "README.md", "LICENSE", "pyproject.toml")
    assert {name for name in tracked if name.startswith(wanted)} <= names
