from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from garevla.utils import locks
from garevla.utils.files import atomic_file, remove_unfinished, write_text
from garevla.utils.locks import InUseError, lock_folder

HOLDS_THE_LOCK = """
import sys, time
from pathlib import Path
from garevla.utils.locks import lock_folder

with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_has_one_writer(
    tmp_path: Path, other_process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_SECONDS", 0.2)
    message = f"another process is writing into {tmp_path}"
    with pytest.raises(InUseError, match=message), lock_folder(tmp_path):
        pass
    # The lock ends with the process, even with this end.
    other_process.kill()
    other_process.wait()
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path / "made" / "too"):
        pass


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as one, atomic_file(path) as other:
        one.write(b"one")
        other.write(b"the other")
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "last.pt", "whole")
    write_text(tmp_path / "best.pt", "whole")
    writing = atomic_file(tmp_path / "last.pt")
    writing.__enter__()
    assert len(list(tmp_path.iterdir())) == 3
    remove_unfinished(tmp_path / "best.pt")
    assert len(list(tmp_path.iterdir())) == 3
    remove_unfinished(tmp_path / "last.pt")
    assert {file.name for file in tmp_path.iterdir()} == {"best.pt", "last.pt"}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder cannot be written: Is a directory; what was there"):
        write_text(tmp_path / "folder", "text")
    with pytest.raises(OSError, match=r"nowhere/file cannot be written: No such file"):
        write_text(tmp_path / "nowhere" / "file", "text")
    with pytest.raises(ValueError, match="ours"), atomic_file(tmp_path / "file"):
        raise ValueError("ours")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
