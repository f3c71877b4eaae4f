"""A killed run leaves an index that opens and answers; ``GAREVLA_KILLS=20`` kills more often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from garevla.search import Library
from garevla.search.format import DATABASE
from garevla.search.store import Store
from tests.search.test_store import contents

KILLS = int(os.environ.get("GAREVLA_KILLS", "2"))

# Every video is committed by itself, and decoding takes place here: more moments to be killed at.
RUN = """
import importlib, json, sys
from pathlib import Path
sys.path[:] = {path!r}
from garevla.search import indexing
from garevla.search.settings import IndexConfig

def ask(function, settings, questions, num_workers, timeout):
    module, name = function.split(":")
    answer = getattr(importlib.import_module(module), name)
    for question in questions:
        yield question, json.loads(json.dumps(answer(question, settings)))

indexing.ask_processes = ask
indexing._SECONDS_BETWEEN_COMMITS = 0
videos, output, begun = map(Path, sys.argv[1:])
update = indexing._Run.update
def marked(self, progress):
    begun.touch()
    return update(self, progress)
indexing._Run.update = marked
options = {{}}
if not (output / "library.sqlite").exists():
    options = {{"model": "tiny", "segment_seconds": 2.0}}
indexing.index_videos(
    IndexConfig(video_dir=videos, output=output, device="cpu", **options), progress=False
)
"""


def run(videos: Path, output: Path, begun: Path) -> subprocess.Popen[bytes]:
    begun.unlink(missing_ok=True)
    code = RUN.format(path=sys.path)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, (videos, output, begun))])


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, write_clip):
    generator = np.random.default_rng(0)
    videos, output, begun = (tmp_path / name for name in ("videos", "library", "begun"))
    videos.mkdir()
    (tmp_path / "kept").mkdir()
    for number in range(10):
        write_clip(videos / f"{number}.mp4", 8 + 4 * number)
    killed = 0
    for kill in range(KILLS):
        process = run(videos, output, begun)
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1.5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (output / DATABASE).exists():
            # Each video is whole.
            found = contents(Store(output))
            assert set(found) <= {path.name for path in videos.iterdir()} | {"removed.mp4"}
            library = Library.open(output, device="cpu")
            assert bool(library.search("a circle")) == bool(found)
        # The next run is an update.
        (videos / "removed.mp4").unlink(missing_ok=True)
        write_clip(videos / "removed.mp4", 9 + kill)
        for number in generator.choice(10, 4, replace=False):
            write_clip(videos / f"{number}.mp4", int(generator.integers(4, 60)))
    assert killed
    assert run(videos, output, begun).wait() == 0
    assert run(videos, tmp_path / "again", begun).wait() == 0
    assert contents(Store(output)) == contents(Store(tmp_path / "again"))
    assert not (output / "work").exists()
