from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

httpx = pytest.importorskip("httpx")
create_app = pytest.importorskip("garevla.serve.app", exc_type=ImportError).create_app
searches = pytest.importorskip("garevla.serve.searches")
TestClient = pytest.importorskip("fastapi.testclient").TestClient

OWN = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def client(library, config) -> Iterator[TestClient]:
    app = create_app(library, replace(config, upload_megabytes=0.5))
    with TestClient(app, base_url=OWN) as client:
        yield client


def search(client, text="a red cross", **more):
    answer = client.post("/api/search", json={"text": text, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def test_pages_are_what_the_library_finds(client, library):
    expected = library.search("a red cross", 100)
    first, second = search(client, top=5), search(client, top=5, skip=5)
    assert first["total"] == second["total"] == len(expected) > 10
    items = first["results"] + second["results"]
    for item, result in zip(items, expected[:10], strict=True):
        assert item["path"] == result.path
        assert [item["start"], item["end"]] == [result.start, result.end]
        assert item["confidence"] == result.confidence
        assert client.get(item["thumbnail"]).content == result.thumbnail
    assert first["nothing_like_it"] == (expected[0].confidence < 0.5)
    assert search(client, skip=10_000)["results"] == []


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": "x" * 1001}, "text"),
        ({"text": 7}, "text"),
        ({}, "text"),
        ({"text": "x", "top": 0}, "top"),
        ({"text": "x", "top": 101}, "top"),
        ({"text": "x", "top": "many"}, "top"),
        ({"text": "x", "skip": -1}, "skip"),
        ({"text": "x", "skip": 1 << 40}, "skip"),
        ([], "JSON object"),
    ],
)
def test_wrong_queries_are_named(client, body, names):
    assert names in error_of(client.post("/api/search", json=body), 422)


@pytest.mark.parametrize("body", [b'{"text":', b"", b"\xff\xfe", b'{"text": "x"} {', b"[" * 9000])
def test_malformed_json_is_refused(client, body):
    answer = client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert error_of(answer, answer.status_code)


def test_large_queries_are_refused_before_they_are_read(client):
    assert "65,536" in error_of(client.post("/api/search", json={"text": "x" * 70_000}), 413)
    parts = (b"x" * 10_000 for _ in range(10))  # of no length told
    assert "65,536" in error_of(client.post("/api/search", content=parts), 413)


def test_unusual_texts_are_searched_for(client):
    for text in ("\u0000", "😀" * 500, "' OR 1=1 --", "<script>"):
        assert search(client, text)["total"] > 0
    # A half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    content = b'{"text": "\\ud800"}'
    answer = client.post(
        "/api/search", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (200, 422)


def test_status_and_bad_files(client, library):
    status = client.get("/api/status").json()
    known = library.status()
    assert status["videos"] == known["videos"] == 14
    assert status["segments"] == 42
    assert status["bad_files"] == 2
    assert status["bytes"] == known["bytes"]
    assert status["model"] == "tiny"
    bad = client.get("/api/bad-files").json()
    assert bad["files"] == [
        {"path": "notes.mp4", "reason": "it is a text"},
        {"path": "<b>.mkv", "reason": "it ends too early"},
    ]
    assert client.get("/api/bad-files?top=1&skip=1").json()["files"] == bad["files"][1:]


def test_thumbnails(client):
    item = search(client)["results"][0]
    answer = client.get(item["thumbnail"])
    assert answer.headers["content-type"] == "image/jpeg"
    again = client.get(item["thumbnail"], headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    for segment in (0, 999 << 20, (1 << 20) + 3, 1 << 62, 1 << 200, -1):
        error_of(client.get(f"/api/thumbnails/{segment}"), 404)
    error_of(client.get("/api/thumbnails/x"), 422)


class TestVideo:
    @pytest.fixture(autouse=True)
    def _one(self, client, served):
        item = search(client)["results"][0]
        self.client, self.url = client, item["video"]
        self.content = (served.videos / item["path"]).read_bytes()

    def get(self, **headers):
        return self.client.get(
            self.url, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def test_whole(self):
        answer = self.get()
        assert answer.status_code == 200
        assert answer.content == self.content
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["accept-ranges"] == "bytes"

    @pytest.mark.parametrize(
        ("asked", "part"),
        [
            ("bytes=0-0", slice(0, 1)),
            ("bytes=100-199", slice(100, 200)),
            ("bytes=100-", slice(100, None)),
            ("bytes=-50", slice(-50, None)),
            ("bytes=100-99999999", slice(100, None)),
        ],
    )
    def test_range(self, asked, part):
        answer = self.get(range=asked)
        assert answer.status_code == 206
        assert answer.content == self.content[part]
        first = range(len(self.content))[part][0]
        assert answer.headers["content-range"].startswith(f"bytes {first}-")
        assert answer.headers["content-range"].endswith(f"/{len(self.content)}")

    def test_unsatisfiable_range(self):
        answer = self.get(range=f"bytes={len(self.content)}-")
        assert answer.status_code == 416
        assert answer.headers["content-range"].endswith(f"/{len(self.content)}")

    def test_range_of_an_older_file(self):
        tag = self.get().headers["etag"]
        assert self.get(range="bytes=0-9", if_range=tag).status_code == 206
        assert self.get(range="bytes=0-9", if_range='"another"').content == self.content

    def test_many_ranges_cost_little(self):
        ranges = ",".join(f"{2 * n}-{2 * n}" for n in range(1000))
        started = time.process_time()
        self.get(range=f"bytes={ranges}")
        assert time.process_time() - started < 2

    def test_no_such_video(self):
        for video in (0, 999, 1 << 200, -1):
            error_of(self.client.get(f"/api/videos/{video}"), 404)


ELSEWHERE = "a secret of another folder"
ATTEMPTS = [
    "/../secret.mp4",
    "/api/videos/../../secret.mp4",
    "/api/videos/..%2f..%2fsecret.mp4",
    "/api/videos/%2e%2e/%2e%2e/secret.mp4",
    "/api/videos/..%5c..%5csecret.mp4",
    "/api/videos/%252e%252e%252fsecret.mp4",
    "/api/videos/1%00.mp4",
    "/api/videos/1/../../../secret.mp4",
    "/api/videos//etc/passwd",
    "/api/thumbnails/..%2f..%2fsecret.mp4",
    "/api/clips/..%2f..%2fsecret.mp4",
    "/style.css/../../../secret.mp4",
    "/..%2fapp.py",
    "//etc/passwd",
    "/%ff",
]


def test_nothing_outside_is_served(served, listening):
    """Paths as they are, which a client would tidy up."""
    secret = served.videos.parent / "secret.mp4"
    secret.write_text(ELSEWHERE)
    address = urlsplit(listening())
    for attempt in ATTEMPTS:
        with socket.create_connection((address.hostname, address.port)) as connection:
            request = (
                f"GET {attempt} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert answer.split()[1] in (b"404", b"422"), (attempt, answer)
        assert ELSEWHERE.encode() not in answer
        assert b"root:" not in answer


def test_links_that_lead_out_are_not_followed(changing):
    outside = changing.videos.parent / "outside"
    outside.mkdir()
    shutil.copy(changing.videos / "clip 0.mp4", outside / "there.mp4")
    (outside / "passwd").write_text(ELSEWHERE)
    (changing.videos / "link.mp4").symlink_to(outside / "there.mp4")
    (changing.videos / "folder").symlink_to(outside)
    (changing.videos / "inside.mp4").symlink_to("clip 0.mp4")
    (changing.videos / "loop.mp4").symlink_to("loop.mp4")
    (changing.videos / "notes.txt").write_text(ELSEWHERE)
    (changing.videos / "notes.mp4").symlink_to("notes.txt")
    refused = [b"link.mp4", b"folder/there.mp4", b"../outside/there.mp4", b"loop.mp4"]
    refused += [os.fsencode(outside / "there.mp4"), b"gone.mp4", b"notes.mp4", b"."]
    for seed, name in enumerate([*refused, b"inside.mp4"], start=1):
        changing.add(name, seed)
    library = changing.open()
    names = {record.path: video_id for video_id, record in library._store.videos.items()}
    with TestClient(create_app(library, changing.config()), base_url=OWN) as client:
        for name in refused:
            error = error_of(client.get(f"/api/videos/{names[name]}"), 404)
            assert str(outside) not in error or name == os.fsencode(outside / "there.mp4")
        assert client.get(f"/api/videos/{names[b'inside.mp4']}").status_code == 200


def test_names_that_are_no_text(changing):
    name = b"\xff\n\"'.mp4"
    shutil.copy(changing.videos / "clip 0.mp4", os.path.join(os.fsencode(changing.videos), name))
    changing.add(name, 1)
    with TestClient(create_app(changing.open(), changing.config()), base_url=OWN) as client:
        found = {item["path"]: item["video"] for item in search(client)["results"]}
        answer = client.get(found["�\n\"'.mp4"])
        assert answer.status_code == 200
        assert "\n" not in answer.headers["content-disposition"]


def send(client, content, **parameters):
    return client.post("/api/clips", content=content, params=parameters)


@pytest.fixture
def left() -> Iterator[None]:
    """Nothing is left of what was received."""
    yield
    folders = Path(tempfile.gettempdir()).glob("garevla-serve-*")
    assert not [file for folder in folders for file in folder.iterdir()]


def test_a_clip_finds_what_is_like_it(client, served, library, left):
    clip = served.videos / "clip 3.mp4"
    found = send(client, clip.read_bytes(), top=3)
    assert found.status_code == 200, found.text
    expected = library.like(clip, 100)
    first = found.json()
    assert first["total"] == len(expected)
    assert [item["segment_id"] for item in first["results"]] == [
        result.best_segment for result in expected[:3]
    ]
    assert first["results"][0]["confidence"] is None
    assert not first["nothing_like_it"]
    second = client.get(f"/api/clips/{first['clip']}?top=3&skip=3").json()
    assert [item["segment_id"] for item in second["results"]] == [
        result.best_segment for result in expected[3:6]
    ]
    assert "send it again" in error_of(client.get("/api/clips/another"), 404)


def test_bad_clips_are_refused(client, served, left):
    assert "500,000 bytes" in error_of(send(client, b"x" * 500_001), 413)
    parts = (b"x" * 100_000 for _ in range(6))
    assert "500,000 bytes" in error_of(send(client, parts), 413)
    assert "empty" in error_of(send(client, b""), 422)
    assert "cannot be used" in error_of(send(client, b"no video" * 100), 422)
    clip = (served.videos / "clip 0.mp4").read_bytes()
    assert "cannot be used" in error_of(send(client, clip[: len(clip) // 2]), 422)
    error_of(send(client, clip, top=0), 422)


def test_slow_clips_are_refused(listening, left):
    address = urlsplit(listening(upload_seconds=0.3))
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /api/clips HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b"x")
        assert connection.recv(1 << 16).split()[1] == b"408"


class TestToken:
    TOKEN = "a token for the tests"
    RIGHT = TOKEN.replace(" ", "-")

    @pytest.fixture
    def client(self, library, config):
        app = create_app(library, replace(config, host="0.0.0.0", token=self.RIGHT), self.RIGHT)
        with TestClient(app, base_url="http://videos.example", follow_redirects=False) as client:
            yield client

    @pytest.mark.parametrize("path", ["/api/status", "/api/openapi.json", "/app.js", "/nothing"])
    def test_nothing_without_it(self, client, path):
        wrong = [{}, *({"authorization": value} for value in self.wrong())]
        for headers in wrong:
            assert "token" in error_of(client.get(path, headers=headers), 401)
        for value in ("x", self.RIGHT):
            answer = client.get(path, headers={"cookie": f"{self.cookie_name(client)}={value}"})
            error_of(answer, 401)

    def wrong(self):
        yield from ("Bearer", "Bearer x", f"Bearer {self.RIGHT}x", f"Basic {self.RIGHT}")
        yield from (f"Bearer {self.RIGHT[:-1]}", "Bearer \xff".encode("latin-1"))

    def cookie_name(self, client):
        answer = client.get("/", params={"token": self.RIGHT})
        client.cookies.clear()
        return answer.headers["set-cookie"].partition("=")[0]

    def test_header(self, client):
        headers = {"authorization": f"Bearer {self.RIGHT}"}
        assert client.get("/api/status", headers=headers).status_code == 200

    def test_the_page_sets_a_cookie(self, client):
        page = client.get("/")
        assert page.status_code == 401
        assert "garevla serve" in page.text
        assert client.get("/", params={"token": "wrong"}).status_code == 401
        assert client.get("/api/status", params={"token": self.RIGHT}).status_code == 401
        answer = client.get("/", params={"token": self.RIGHT})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert self.RIGHT not in cookie
        assert client.get("/").status_code == 200
        assert client.get("/api/status").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765"])
def test_own_names(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8765", "localhost.", "", "[::1", "127.0.0.1@x"]
)
def test_other_names_are_refused(client, host):
    assert "name" in error_of(client.get("/", headers={"host": host}), 421)


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": OWN}, True),
        ({"origin": "http://127.0.0.1:1234"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_other_sites_are_refused(client, headers, is_answered):
    answer = client.post("/api/search", json={"text": "x"}, headers=headers)
    if is_answered:
        assert answer.status_code == 200
    else:
        assert "other sites" in error_of(answer, 403)
    assert "access-control-allow-origin" not in answer.headers


def test_headers_of_every_answer(client):
    for path in ("/", "/app.js", "/api/status", "/api/videos/1", "/nothing", "/api/videos/x"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'"), path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    refused = client.get("/", headers={"host": "evil.example"})
    assert "content-security-policy" in refused.headers


def test_the_page_asks_for_nothing_external(client):
    page = client.get("/").text
    for name in ("/style.css", "/app.js", "/icon.svg"):
        assert name in page
        content = client.get(name).text
        assert "http" not in content.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in page
    tag = client.get("/").headers["etag"]
    assert client.get("/", headers={"if-none-match": tag}).status_code == 304


def test_the_description_is_typed(client):
    described = client.get("/api/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert {"TextQuery", "Found", "Item", "Status", "BadFiles", "Problem"} <= set(schemas)
    assert schemas["Item"]["properties"]["start"]["type"] == "number"
    assert "video/*" in described["paths"]["/api/clips"]["post"]["requestBody"]["content"]


def test_a_changed_index_is_searched(changing, monkeypatch):
    monkeypatch.setattr(searches, "_LOOK_EVERY", 0.0)
    with TestClient(create_app(changing.open(), changing.config()), base_url=OWN) as client:
        before = search(client)
        shutil.copy(changing.videos / "clip 0.mp4", changing.videos / "new.mp4")
        changing.add(b"new.mp4", 5)
        after = search(client)
        assert "new.mp4" not in {item["path"] for item in before["results"]}
        assert "new.mp4" in {item["path"] for item in after["results"]}
        assert client.get("/api/status").json()["videos"] == 2
        shutil.rmtree(changing.folder)
        assert "no index" in error_of(client.post("/api/search", json={"text": "a red cross"}), 500)


def test_too_many_searches_are_told_to_come_back(library, config, monkeypatch):
    begun, end = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        begun.set()
        assert end.wait(30)
        return []

    monkeypatch.setattr(library, "search", slow)
    app = create_app(library, replace(config, waiting=1))
    with TestClient(app, base_url=OWN) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(search, client, "one")
        assert begun.wait(30)
        answer = client.post("/api/search", json={"text": "two"})
        end.set()
        assert first.result()["total"] == 0
        assert "too many" in error_of(answer, 503)
        assert answer.headers["retry-after"] == "5"


def test_a_failure_is_no_secret_and_no_end(library, config, monkeypatch):
    app = create_app(library, config)
    with TestClient(app, base_url=OWN, raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(library, "search", lambda *_, **__: 1 / 0)
            error = error_of(client.post("/api/search", json={"text": "fails"}), 500)
        assert "zero" not in error
        assert search(client, "fails")["total"] > 0


def test_32_at_once(listening):
    address = listening()

    def ask(number: int) -> list[int]:
        with httpx.Client(base_url=address, timeout=60) as client:
            found = client.post("/api/search", json={"text": f"query {number}"})
            item = found.json()["results"][0]
            parts = [client.get(item["thumbnail"])]
            parts.append(client.get(item["video"], headers={"range": "bytes=0-99"}))
            return [found.status_code, *(part.status_code for part in parts)]

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == [[200, 200, 206]] * 32
