"""The page: whole, by itself, with a picture and a sentence for everything."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from garevla.analysis import analyse
from garevla.analysis.measures import MEASURES
from garevla.analysis.plots import plots_of, plots_over_epochs
from garevla.analysis.report import report
from garevla.discovla.losses import DiscoVLALoss
from tests.analysis.test_analysis import make_case

DOCUMENT = Path(__file__).parents[2] / "docs" / "analysis.md"


class Elements(HTMLParser):
    """Checks that elements close in order, and keeps ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def analysis() -> dict[str, Any]:
    groups = torch.tensor([0, 1, 0, 1, 4])
    return make_case("cross attention", "text").analyse(groups=groups).as_dict()


@pytest.fixture(scope="module")
def page(analysis: dict[str, Any]) -> str:
    epochs = [{**analysis, "epoch": epoch} for epoch in range(3)]
    return report(
        "Of <run> & more", ["A note."], {"best.pt": analysis, "last.pt": analysis}, epochs
    )


def test_all_plots_and_sentences_are_there(page: str, analysis: dict[str, Any]):
    epochs = [{**analysis, "epoch": epoch} for epoch in range(3)]
    expected = plots_over_epochs(epochs)
    for number in range(2):
        expected += plots_of(f"analysis{number}", analysis)
    assert len(expected) == 10 + 2 * 8
    for plot in expected:
        figure = page[page.index(f'<figure id="{plot.name}">') :].partition("</figure>")[0]
        # Drawing repeats.
        assert plot.svg in figure
        assert f"<figcaption>{escape(plot.look_for)}</figcaption>" in figure
    assert page.count("<svg") == 10 + 2 * 8
    assert "Of &lt;run&gt; &amp; more" in page


def test_the_page_is_well_formed_and_needs_no_other_file(page: str):
    parser = Elements()
    parser.feed(page)
    assert not parser.open
    assert len(set(parser.ids)) == len(parser.ids)
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)
        for reference in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg):
            assert any(f'id="{name}"' in svg for name in reference if name)
    outside = re.findall(r"""(?:src|href)=["'](?!#)[^"']*|@import|url\((?!#)[^)]*""", page)
    assert not outside


def test_without_increments_or_a_log():
    torch.manual_seed(0)
    found = analyse(DiscoVLALoss(), torch.randn(4, 8), torch.randn(4, 2, 8), 9.0).as_dict()
    page = report("Plain", [], {"last.pt": found})
    assert "There is no network of increments" in page
    assert "evaluation.analyse" in page
    # Ideal increments, similarities, conflict.
    assert page.count("<svg") == 3
    assert ">without increments<" in page
    names = {plot.name for plot in plots_over_epochs([{**found, "epoch": 0}])}
    assert "epochs-loss" in names
    assert not names & {"epochs-norms", "epochs-directions", "epochs-gap"}
    assert ">with increments<" not in page


def test_every_scalar_has_words_and_is_documented(analysis: dict[str, Any]):
    assert set(analysis["scalars"]) == set(MEASURES)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [name for name in MEASURES if f"`{name}`" not in text]
