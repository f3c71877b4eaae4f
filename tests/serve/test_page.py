"""The page in a Chromium: ``pip install playwright``, and a package of the system, ``chromium``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("garevla.serve.app", reason='needs "garevla[serve]"', exc_type=ImportError)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]

PAGE = 12
QUERY = "a red cross moves left"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as play:
        # A container's root has no user namespaces, which Chromium's sandbox is made of.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Page:
    """A page of the browser, and what it has asked for and complained about."""

    def __init__(self, browser, address: str, **options) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(60_000)
        playwright.expect.set_options(timeout=60_000)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def search(self, text: str = QUERY) -> None:
        self.page.get_by_role("searchbox", name="What to look for").fill(text)
        self.page.keyboard.press("Enter")
        self.said("result")

    def said(self, text: str) -> None:
        playwright.expect(self.page.get_by_role("status")).to_contain_text(text)

    @property
    def cards(self):
        return self.page.locator("#items button")

    def time(self) -> float:
        return self.page.evaluate("document.querySelector('video').currentTime")

    def wait_for_video(self, condition: str) -> None:
        self.page.wait_for_function(
            f"() => {{ const video = document.querySelector('video'); return {condition}; }}"
        )


@pytest.fixture
def opened(browser, listening) -> Iterator[Page]:
    address = listening()
    opened = Page(browser, address, viewport={"width": 1100, "height": 800})
    yield opened
    opened.context.close()
    host = urlsplit(address).netloc
    assert {urlsplit(url).netloc for url in opened.asked} == {host}
    assert opened.complaints == []


def test_type_see_click_play_and_page(opened, library):
    expected = library.search(QUERY, 100)
    opened.said("14 videos")
    opened.search()
    opened.said(f"{len(expected)} results for “{QUERY}”, page 1 of")
    names = opened.page.locator("#items .path").all_inner_texts()
    assert names == [result.path for result in expected[:PAGE]]
    for picture in opened.page.locator("#items img").all():
        picture.scroll_into_view_if_needed()
        opened.page.wait_for_function(
            "image => image.naturalWidth > 0", arg=picture.element_handle()
        )

    # One that does not begin where the video does.
    place = next(n for n, result in enumerate(expected) if result.start > 0)
    result = expected[place]
    opened.cards.nth(place).click()
    opened.wait_for_video(f"!video.paused && video.currentTime > {result.start + 0.2}")
    assert result.start < opened.time() <= result.end + 0.5
    # It stops at the end of the part.
    opened.wait_for_video("video.paused")
    assert result.end <= opened.time() + 0.1 <= result.end + 1

    opened.page.keyboard.press("Escape")
    playwright.expect(opened.page.get_by_role("dialog")).to_have_count(0)
    playwright.expect(opened.cards.nth(place)).to_be_focused()

    opened.page.get_by_role("button", name="Next", exact=True).click()
    opened.said("page 2 of")
    names = opened.page.locator("#items .path").all_inner_texts()
    assert names == [result.path for result in expected[PAGE : 2 * PAGE]]
    opened.page.go_back()
    opened.said("page 1 of")
    opened.page.reload()
    opened.said(f"results for “{QUERY}”, page 1 of")


def test_keyboard(opened):
    page = opened.page
    opened.said("14 videos")
    page.keyboard.press("Tab")
    playwright.expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.keyboard.press("/")
    playwright.expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    opened.said("results for")
    for name in ("Search", "By a clip…"):
        page.keyboard.press("Tab")
        playwright.expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    playwright.expect(opened.cards.first).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    playwright.expect(dialog).to_be_visible()
    later = dialog.get_by_role("button", name="Next result")
    later.focus()
    page.keyboard.press("Space")
    playwright.expect(page.locator("#playing")).to_have_text(
        page.locator("#items .path").nth(1).inner_text()
    )
    page.keyboard.press("Escape")
    playwright.expect(opened.cards.nth(1)).to_be_focused()


def test_what_a_screen_reader_is_told(opened):
    opened.search()
    opened.cards.first.click()
    nameless = opened.page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), dialog, nav, section')]"
        ".filter(each => !each.innerText && !each.ariaLabel && !each.labels?.length"
        " && !each.getAttribute('aria-labelledby')).map(each => each.outerHTML)"
    )
    assert nameless == []
    opened.page.keyboard.press("Escape")
    name = re.compile(r"0:0\d – 0:0\d\s+clip \d+\.mp4\s+\d+ % confidence")
    assert opened.page.get_by_role("button", name=name).count() == PAGE
    assert opened.page.locator("#said").get_attribute("role") == "status"


def test_a_clip(opened, served: object, library, tmp_path):
    clip = served.videos / "clip 3.mp4"
    expected = library.like(clip, 100)
    opened.page.set_input_files("#clip", clip)
    opened.said("results like clip 3.mp4")
    names = opened.page.locator("#items .path").all_inner_texts()
    assert names == [result.path for result in expected[:PAGE]]
    opened.page.get_by_role("button", name="Next", exact=True).click()
    opened.said("page 2 of")

    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    opened.page.set_input_files("#clip", bad)
    alert = opened.page.locator("#problem")
    playwright.expect(alert).to_contain_text("the clip cannot be used")
    opened.complaints.clear()  # of the answer 422


def test_status(opened):
    opened.page.get_by_role("button", name="About the index").click()
    dialog = opened.page.get_by_role("dialog", name="About the index")
    playwright.expect(dialog).to_contain_text("42 (2 s, 0.5 s shared with the next)")
    # A file's name is a text, whatever it holds.
    playwright.expect(dialog.get_by_role("cell", name="<b>.mkv")).to_be_visible()
    playwright.expect(dialog.get_by_role("cell", name="it ends too early")).to_be_visible()
    opened.page.keyboard.press("Escape")
    playwright.expect(dialog).to_be_hidden()


def test_errors_are_told(opened):
    opened.search()
    opened.page.route("**/api/search", lambda route: route.abort())
    opened.page.get_by_role("searchbox").fill("another")
    opened.page.keyboard.press("Enter")
    playwright.expect(opened.page.locator("#problem")).to_contain_text("does not answer")
    playwright.expect(opened.cards).to_have_count(0)
    opened.complaints.clear()


def test_a_video_that_cannot_be_played_is_offered(opened):
    opened.search()
    opened.page.route("**/api/videos/*", lambda route: route.fulfill(body=b"no video"))
    opened.cards.first.click()
    save = opened.page.get_by_role("link", name="Save it")
    playwright.expect(save).to_be_visible()
    assert re.fullmatch(r"/api/videos/\d+", save.get_attribute("href"))


def background(page) -> list[int]:
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in re.findall(r"\d+", color)]


def test_dark_still_and_small(browser, listening, tmp_path: Path):
    options = {"color_scheme": "dark", "reduced_motion": "reduce"}
    small = Page(browser, listening(), viewport={"width": 360, "height": 640}, **options)
    small.search()
    assert max(background(small.page)) < 60
    moves = "getComputedStyle(document.querySelector('#items button')).transitionProperty"
    assert small.page.evaluate(moves) == "none"
    assert small.page.evaluate("document.documentElement.scrollWidth") <= 360
    small.cards.first.click()
    box = small.page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert small.complaints == []
    small.context.close()


def test_with_a_token(browser, listening):
    token = "a-token-for-the-tests"
    address = listening(token)
    opened = Page(browser, address)
    playwright.expect(opened.page.get_by_role("heading")).to_contain_text("needs its token")
    opened.page.goto(f"{address}/?token={token}")
    opened.said("14 videos")
    assert token not in opened.page.url
    opened.search()
    opened.cards.first.click()
    opened.wait_for_video("video.currentTime > 0.2")
    opened.context.close()
