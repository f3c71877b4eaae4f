from __future__ import annotations

import errno
import io
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from garevla.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)


def test_round_trip_with_an_optimizer(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    path = tmp_path / "last.pt"
    save_checkpoint(
        path,
        {"optimizer": optimizer.state_dict(), "random": random_state(), "progress": {"step": 3}},
    )
    state = load_checkpoint(path)
    assert state["progress"] == {"step": 3}
    other = torch.optim.AdamW([torch.nn.Parameter(torch.randn(3))])
    other.load_state_dict(state["optimizer"])
    saved, loaded = optimizer.state_dict()["state"][0], other.state_dict()["state"][0]
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("crash_at", ["torch.save", "os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def crash(*arguments: object, **_: object) -> None:
        if crash_at == "torch.save":
            arguments[1].write(b"half a file")
        raise OSError("no space left on device")

    module, name = crash_at.split(".")
    monkeypatch.setattr({"torch": torch, "os": os}[module], name, crash)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_the_new_file_is_on_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append("sync folder" if target.is_dir() else "sync file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert calls == ["sync file", "replace", "sync folder"]


class _RunsCode:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": "garevla-checkpoint-1", "model": _RunsCode()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"weight": torch.randn(1000)}})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"last\.pt is not a readable checkpoint"):
        load_checkpoint(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    model = {"weight": torch.randn(40), "steps": torch.arange(3)}
    save_checkpoint(path, {"model": model, "config": {"data": {"layout": "msrvtt"}}})
    content = path.read_bytes()
    generator = random.Random(0)
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= generator.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt is not a readable checkpoint"):
            load_checkpoint(path)


def test_a_checkpoint_from_before_there_were_digests(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": "garevla-checkpoint-1", "step": 1}, path)
    assert load_checkpoint(path)["step"] == 1


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"config": {}})
    with pytest.raises(CheckpointError, match=r"last\.pt lacks 'model', 'progress'$"):
        load_checkpoint(tmp_path / "last.pt", ("config", "model", "progress"))


def test_torchs_advice_to_load_anything_is_not_passed_on(tmp_path: Path) -> None:
    torch.save({"format": "garevla-checkpoint-1", "model": _RunsCode()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="might run code and is not loaded") as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)


class _FullDisk(io.FileIO):
    """A file on a disk with room for 500 bytes."""

    def write(self, content: bytes) -> int:
        if self.tell() + len(content) > 500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    monkeypatch.setattr(Path, "open", lambda self, mode: _FullDisk(self, mode.replace("b", "")))
    with pytest.raises(OSError, match=r"^\S*last\.pt cannot be written: No space left") as caught:
        save_checkpoint(path, {"model": torch.randn(1000)})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*last\.pt"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a garevla checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_random_state_comes_back(tmp_path: Path) -> None:
    torch.rand(3)
    save_checkpoint(tmp_path / "last.pt", {"random": random_state()})
    expected = torch.rand(5)
    torch.manual_seed(99)
    set_random_state(load_checkpoint(tmp_path / "last.pt")["random"])
    assert torch.equal(torch.rand(5), expected)
