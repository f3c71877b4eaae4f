"""A video's frames in a file of their own: safetensors, with what they are of and a checksum."""

from __future__ import annotations

import contextlib
import functools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from garevla.data._optional import require
from garevla.data.frame_sampling import Sampling
from garevla.data.good_files import Signature, signature
from garevla.data.messages import first_line
from garevla.data.resizing import Resizing
from garevla.data.video import read_checked
from garevla.utils.files import atomic_file

if TYPE_CHECKING:
    from garevla.data.dataset import FrameCrop

# Files whose frames were cropped in another way, or that are laid out otherwise.
_VERSION = 1
_TENSOR = "frames"


class FrameCacheError(RuntimeError):
    """Cached frames that are missing, damaged, or of something else than asked for."""


class DamagedFramesError(FrameCacheError):
    """A file of cached frames that is not as it was written."""


@dataclass(frozen=True)
class Description:
    """What frames are of.

    Attributes:
        video_id: the video.
        file: the video file's name, without its folder.
        signature: that file's size and time of change; None where there was no such file.
        settings: which frames were taken and what was made of them, see :func:`frame_settings`.
    """

    video_id: str
    file: str
    signature: Signature | None
    settings: dict[str, Any]


def frame_settings(sampling: Sampling, resizing: Resizing) -> dict[str, Any]:
    """What decides the frames of a video file, as plain values."""
    settings = {**sampling.as_settings(), **resizing.as_settings(), "version": _VERSION}
    return json.loads(json.dumps(settings))


def describe(video_id: str, file: Path, sampling: Sampling, resizing: Resizing) -> Description:
    """The description of frames that would be read of a file as it is now."""
    return Description(video_id, file.name, signature(file), frame_settings(sampling, resizing))


def write(path: Path, description: Description, frames: Tensor) -> None:
    """Write frames; the file is whole or not there.

    Args:
        path: the file; its folder is made where there is none.
        description: what they are of.
        frames: uint8 (n, 3, H, W).

    Raises:
        OSError: it cannot be written.
    """
    save = require("safetensors.torch").save
    text = json.dumps(vars(description), sort_keys=True)
    metadata = {
        "description": text,
        "description_crc32": _checksum(text.encode()),
        "frames_crc32": _checksum_of(frames),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(save({_TENSOR: frames}, metadata))


def read_description(path: Path) -> Description:
    """Read what a file says that it holds, without its frames.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFramesError: it is damaged, or no file of cached frames.
    """
    with _opened(path) as (_, description, _):
        return description


def read(path: Path) -> tuple[Description, Tensor]:
    """Read and check a file.

    Returns:
        what the frames are of; uint8 (n, 3, H, W), mapped into memory and not to be written to.

    Raises:
        FileNotFoundError, DamagedFramesError: as :func:`read_description`.
    """
    with _opened(path) as (file, description, checksum):
        frames = file.get_tensor(_TENSOR)
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1] != 3 or not len(frames):
        raise damaged(path, f"frames of {frames.dtype} {tuple(frames.shape)}")
    if checksum != _checksum_of(frames):
        raise damaged(path, "the frames' checksum is another one")
    return description, frames


def damaged(path: Path, reason: str) -> DamagedFramesError:
    """The error for a file that is not as it was written."""
    return DamagedFramesError(
        f"{path}: damaged, {reason}; 'garevla cache --verify true' finds and replaces such files"
    )


def cache(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Check a file strictly and, where it is good, write its frames; asked of processes
    (:mod:`garevla.data.decoding_processes`).

    Args:
        job: ``path`` (to be written), ``video_id``, ``file`` and ``sampling``.
        settings: of the :class:`~garevla.data.resizing.Resizing`.

    Returns:
        The fields of a :class:`garevla.data.video.Verdict`.
    """
    file, sampling = Path(job["file"]), Sampling.from_settings(job["sampling"])
    resizing = Resizing(**settings)
    # Before it is decoded: a file that changes meanwhile will not fit.
    description = describe(job["video_id"], file, sampling, resizing)
    verdict, frames = read_checked(file, sampling)
    if frames is not None:
        write(Path(job["path"]), description, _crop(resizing)(frames))
    return verdict._asdict()


@functools.cache
def _crop(resizing: Resizing) -> FrameCrop:
    from garevla.data.dataset import FrameCrop

    # The other processes have the other cores.
    torch.set_num_threads(1)
    return FrameCrop(resizing)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Description, str]]:
    """An open file, what it says that it holds, and the frames' checksum."""
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            text = metadata["description"]
            if metadata["description_crc32"] != _checksum(text.encode()):
                raise ValueError("the description's checksum is another one")
            yield file, Description(**json.loads(text)), metadata["frames_crc32"]
    except FileNotFoundError:
        raise
    # What safetensors and JSON make of damaged bytes.
    except (
        *(safetensors.SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError),
    ) as error:
        raise damaged(path, f"or no cached frames ({first_line(error)})") from error


def _checksum_of(frames: Tensor) -> str:
    """Of the frames and their shape."""
    return _checksum(frames.contiguous().numpy(), zlib.crc32(repr(tuple(frames.shape)).encode()))


def _checksum(content: Any, before: int = 0) -> str:
    return f"{zlib.crc32(content, before):08x}"
