"""``garevla index`` and ``garevla search``, with processes that decode."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from garevla import cli


def test_index_and_search(tmp_path: Path, write_clip, capsys: pytest.CaptureFixture[str]):
    videos, library = tmp_path / "my videos", str(tmp_path / "library.garevla")
    videos.mkdir()
    write_clip(videos / "long.mp4", 64)
    write_clip(videos / "short.mp4", 8)
    (videos / "bad.mp4").write_bytes(b"no video")
    settings = ["--model", "tiny", "--segment_seconds", "4", "--device", "cpu"]
    assert cli.main(["index", str(videos), "--output", library, *settings]) == 0
    shown = capsys.readouterr().out
    assert f"{videos / 'bad.mp4'}: " in shown
    assert "Files: 3 added; 1 cannot be indexed" in shown
    assert "4 segments of 2 videos" in shown
    assert cli.main(["index", str(videos), "--output", library, "--verify", "--device", "cpu"]) == 0
    assert "Files: 1 added, 2 unchanged" in capsys.readouterr().out

    picture = tmp_path / "found.png"
    flags = ["--device", "cpu", "--contact_sheet", str(picture)]
    assert cli.main(["search", library, "a circle", "--exact", *flags]) == 0
    shown = capsys.readouterr().out
    assert "  1.  0:00.0–" in shown
    assert "confidence" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["search", library, "a circle", "--json", "--top", "1", *flags[:2]]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["path"] in ("long.mp4", "short.mp4")
    clip = ["--like", str(videos / "short.mp4"), "--json"]
    assert cli.main(["search", library, *clip, *flags[:2]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[0]["path"], found[0]["confidence"]) == ("short.mp4", None)
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere.garevla", "text"], "no index in nowhere.garevla"),
        (["search", "nowhere.garevla"], "give text or like"),
        (["search", "nowhere.garevla", "text", "--like", "a.mp4"], "give text or like"),
        (["search", "nowhere.garevla", "text", "--top", "0"], "top must be at least 1"),
        (["index", "nowhere", "--output", "library"], "video folder .*nowhere does not exist"),
        (["index", "nowhere", "--output", "library", "--num_workers", "0"], "num_workers"),
        (["index", "nowhere", "--output", "library", "--pretrained", "openai"], "give both"),
        (["index", "a", "--output", "b", "--overlap_seconds", "99"], "overlap_seconds must be"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("garevla: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())
