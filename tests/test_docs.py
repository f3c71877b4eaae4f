"""What the documents name exists, and the code in CONTRIBUTING.md and docs/adapters.md runs."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import re
import runpy
from pathlib import Path

import pytest
import torch

from garevla.data import layouts
from garevla.ops import backends
from tests.snippets import names_of, snippets

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"(?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|h|inc|cpp|cu|json|ya?ml|toml|txt|png|cff))?")
# A path in a document is seen from the root, the document's folder or its subject's.
SUBJECTS = {"kernels.md": ROOT / "kernels", "building.md": ROOT / "csrc"}
# Made by a user, by a run or by the build.
MADE = ("runs/", "build/", "garevla/_native_build.json")
# Made once; docs/performance.md says at which commit it is.
STUDIES = {"benchmarks.stages"}
SNIPPETS = [*snippets(ROOT / "CONTRIBUTING.md"), *snippets(ROOT / "docs/adapters.md")]

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def content(document: Path) -> str:
    """Its text without comments, which say how tables of results are made, also those to come."""
    return re.sub(r"<!--.*?-->", "", document.read_text(encoding="utf-8"), flags=re.S)


def paths(text: str) -> set[str]:
    """Links to files, and paths of files and folders in inline code."""
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    words = " ".join(re.findall(r"`([^`\n]+)`", text)).split()
    found = {*linked, *filter(PATH.fullmatch, words)}
    return {path for path in found if not path.startswith(MADE)}


@documents
def test_paths_exist(document: Path):
    folders = (ROOT, document.parent, SUBJECTS.get(document.name, ROOT))
    absent = {
        path
        for path in paths(content(document))
        if not any((folder / path).exists() for folder in folders)
    }
    assert not absent


def is_module(name: str) -> bool:
    """Whether there is such a module, which is not imported: it may need what is not installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    module = max(filter(is_module, prefixes), key=len)
    attribute = name[len(module) + 1 :]
    if not attribute:
        return True
    try:
        operator.attrgetter(attribute)(importlib.import_module(module))
    except AttributeError:
        return False
    return True


@documents
def test_names_exist(document: Path):
    dotted = r"(?<![\w./-])(?:garevla|benchmarks|tests)(?:\.[A-Za-z_]\w*)+"
    names = set(re.findall(dotted, content(document)))
    absent = {name for name in names - STUDIES if not exists(name)}
    assert not absent


class StandIn(torch.nn.Module):
    """For the CLIP that the README puts into a model."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.0))
        self.embedding = torch.nn.Embedding(10, 512)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens)

    def encode_frames(self, video: torch.Tensor) -> torch.Tensor:
        return self.embedding(video)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    )
    monkeypatch.chdir(tmp_path)
    Path("readme.py").write_text(code, encoding="utf-8")
    arguments = {
        "clip": StandIn(),
        "tokens": torch.arange(3),
        "video": torch.arange(6).view(3, 2),
        "frame_mask": torch.ones(3, 2),
    }
    names = runpy.run_path("readme.py", init_globals=arguments)
    model = names["model"]
    assert names["similarity"].shape == (3, 3)
    trained = {id(each) for group in names["optimizer"].param_groups for each in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()}
    saved = torch.load("model.pt")
    assert list(saved) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    monkeypatch.setattr(layouts, "_LAYOUTS", dict(layouts._LAYOUTS))
    names_of(code, tmp_path)
