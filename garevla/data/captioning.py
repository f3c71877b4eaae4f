"""Making pseudo captions for videos with an image-captioning model of ``transformers``."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from garevla.data import layouts
from garevla.data._optional import require
from garevla.data.caption_journal import CaptioningError, CaptionJournal
from garevla.data.captioner import DEFAULT_MODEL, Captioner
from garevla.data.check import BadVideo
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling, SamplingSettings
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.splits import RetrievalSplit
from garevla.data.video import read_frames
from garevla.data.video_errors import VideoError
from garevla.data.video_files import find_all_videos
from garevla.utils.devices import pick_device
from garevla.utils.files import atomic_file
from garevla.utils.locks import lock_file
from garevla.utils.processes import ALONE, Processes

_log = logging.getLogger(__name__)


@dataclass
class CaptionConfig(SamplingSettings):
    """Pseudo captions for videos of one's own: which videos, which model, where to."""

    video_dir: Path
    """Folder with <video_id>.mp4, also in sub-folders."""
    output: Path
    """JSON file to write; it must not exist. Until all is done there is a journal beside it,
    <output>.partial.jsonl, with which the same command goes on where it was stopped."""
    annotation_dir: Path | None = None
    """Folder of the annotation files, to caption the videos of one split; null: all videos in
    video_dir."""
    layout: str = layouts.DEFAULT_LAYOUT
    """Layout of the annotation files; 'garevla datasets' lists them. auto: what the folder looks
    like."""
    split: str | None = None
    """Videos to caption, where annotation_dir is given; by default the layout's training split.
    Only training needs pseudo captions."""
    model: str = DEFAULT_MODEL
    """An image-captioning model (BLIP, BLIP-2, GIT, ViT-GPT2, ...) of the Hugging Face hub, or the
    folder of one."""
    num_beams: int = 3
    """Width of the beam search; 1 is greedy."""
    max_new_tokens: int = 30
    """The most tokens of a caption."""
    batch_size: int = 16
    """The most frames of a video captioned at once."""
    bad_videos: Literal["error", "skip"] = "error"
    """What to do about videos that are missing or cannot be captioned: stop, or leave them out."""
    device: str = "auto"
    """auto: CUDA where there is one, else CPU; or a torch device such as cuda:1."""
    num_workers: int = 4
    """Processes that decode videos; 0 decodes in the main process."""


@dataclass(frozen=True)
class CaptioningReport:
    """What was captioned.

    Attributes:
        output: the file written.
        num_videos: videos in it.
        num_frames: captions in it.
        num_filled: frames for which the model had no words, see :func:`caption_videos`.
        bad: the videos left out, and why.
    """

    output: Path
    num_videos: int
    num_frames: int
    num_filled: int
    bad: tuple[BadVideo, ...]


def run_captioning(
    config: CaptionConfig, processes: Processes = ALONE, *, progress: bool = True
) -> CaptioningReport:
    """Caption the videos of a folder, or of a split; see :func:`caption_videos`.

    Raises:
        FileNotFoundError, AnnotationError, ValueError: as :meth:`garevla.data.Layout.load`, or
            a folder without videos.
    """
    videos: RetrievalSplit | dict[str, Path]
    if config.annotation_dir is None:
        videos = find_all_videos(config.video_dir)
    else:
        layout = layouts.layout_of(config.layout, config.annotation_dir)
        videos = layout.load(
            config.annotation_dir,
            config.video_dir,
            config.split or layout.train_split,
            missing=config.bad_videos,
        )
    return caption_videos(
        videos,
        config.output,
        model=config.model,
        sampling=config.frame_sampling,
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        bad_videos=config.bad_videos,
        device=config.device,
        num_workers=config.num_workers,
        progress=progress,
        processes=processes,
    )


def caption_videos(
    videos: RetrievalSplit | Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    sampling: Sampling = DEFAULT_SAMPLING,
    num_beams: int = 3,
    max_new_tokens: int = 30,
    batch_size: int = 16,
    bad_videos: Literal["error", "skip"] = "error",
    device: str = "auto",
    num_workers: int = 4,
    progress: bool = True,
    processes: Processes = ALONE,
) -> CaptioningReport:
    """Write what each sampled frame shows: a JSON object, video id -> list of strings.

    :meth:`garevla.data.PseudoCaptions.load` reads it. Captions come from beam search without
    sampling, and no batch spans two videos: a run that was stopped and gone on with gives the
    captions of one that was not.

    Every finished video is noted in a journal, ``<output>.partial.jsonl``, which the next call
    takes up and the end removes; of several processes each has its own. A frame for which the model
    has no words gets the caption of the video's nearest frame with one, the earlier of two: to a
    text encoder an empty text is not "nothing" but a caption like any other. A video without words
    for any frame is a bad one.

    Args:
        videos: a split, or video id -> file.
        output: the file; its folder is made where there is none.
        model: name on the Hugging Face hub or local folder of a model that ``transformers`` loads
            as ``AutoModelForImageTextToText`` and that captions an image without a prompt.
        sampling: which frames; must be those of training.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: the most tokens of a caption.
        batch_size: the most frames of a video captioned at once.
        bad_videos: what to do about videos that cannot be read, or have no words: ``"error"``, or
            ``"skip"`` them and log how many and which.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        num_workers: processes that decode; 0 decodes in this one.
        progress: show a tqdm bar.
        processes: that share the videos; each returns the report of all.

    Raises:
        FileExistsError: ``output`` exists.
        InUseError: another process is writing it.
        CaptioningError: the model cannot be loaded or needs a prompt; the journal is of other
            settings or damaged; no video is left.
        VideoError: a video cannot be read, or has no words (``bad_videos="error"``).
        ValueError: no videos, or an argument out of its range.
        ImportError: transformers, PyAV or (for the bar) tqdm is not installed.
    """
    time_ranges = videos.time_ranges if isinstance(videos, RetrievalSplit) else {}
    videos = videos.videos if isinstance(videos, RetrievalSplit) else videos
    files = {video_id: Path(path) for video_id, path in videos.items()}
    _check_at_least("the number of videos", len(files), 1)
    _check_at_least("num_beams", num_beams, 1)
    _check_at_least("max_new_tokens", max_new_tokens, 1)
    _check_at_least("batch_size", batch_size, 1)
    _check_at_least("num_workers", num_workers, 0)
    check_error_or_skip("bad_videos", bad_videos)
    torch_device = pick_device(device)
    output = Path(output)
    text_settings = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    # All that decides a caption. The other arguments may differ when a run is gone on with.
    settings = {"model": os.fspath(model), **sampling.as_settings(), **text_settings}
    with contextlib.ExitStack() as lock:
        processes.by_first(lambda: _reserve(output, lock))
        names = processes.of_first(lambda: _not_captioned(files, _journals(output, settings)))
        num_done = len(files) - len(names)
        if num_done:
            _log.info(
                "%s has %d of %d videos: going on", _journal_path(output), num_done, len(files)
            )
        pending = {name: files[name] for name in processes.share(names)}
        bad: list[BadVideo] = []
        if pending:
            require("av")
            tqdm = require("tqdm").tqdm
            captioner = Captioner(os.fspath(model), torch_device, text_settings)
            frames = _SampledFrames(
                [(path, sampling.within(time_ranges.get(i))) for i, path in pending.items()],
                captioner.image_processor,
                batch_size,
            )
            loader = DataLoader(
                frames,
                batch_size=None,
                num_workers=min(num_workers, len(pending)),
                pin_memory=torch_device.type == "cuda",
            )
            bar = tqdm(
                total=num_done + len(pending),
                initial=num_done,
                desc="captioning",
                unit="video",
                disable=not progress,
            )
            with CaptionJournal(_journal_path(output, processes.rank), settings) as journal, bar:
                bad = _caption_pending(pending, loader, captioner, journal, bad_videos, bar.update)
        reasons = dict(video for part in processes.gather(bad) for video in part)
        bad = [BadVideo(path, reasons[path]) for path in files.values() if path in reasons]
        return processes.of_first(
            lambda: _write_captions(output, _journals(output, settings), files, bad)
        )


def _reserve(output: Path, lock: contextlib.ExitStack) -> None:
    """Keep others from writing a file, which must not be there yet."""
    lock.enter_context(lock_file(output))
    if output.exists():
        raise FileExistsError(f"{output} exists already: remove it, or write to another file")


def _journal_path(output: Path, rank: int = 0) -> Path:
    return output.with_name(f"{output.name}.partial{f'.{rank}' if rank else ''}.jsonl")


def _journals(output: Path, settings: dict[str, Any]) -> list[CaptionJournal]:
    """Those of all processes, of however many a run had before."""
    paths = sorted(output.parent.glob(f"{glob.escape(output.name)}.partial*.jsonl"))
    return [CaptionJournal(path, settings) for path in paths]


def _not_captioned(files: Mapping[str, Path], journals: list[CaptionJournal]) -> list[str]:
    return [i for i, path in files.items() if not any(each.has(i, path) for each in journals)]


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _caption_pending(
    pending: Mapping[str, Path],
    loader: Iterable[list[dict[str, Tensor]] | VideoError],
    captioner: Captioner,
    journal: CaptionJournal,
    bad_videos: str,
    advance: Callable[[], Any],
) -> list[BadVideo]:
    """Caption videos into the journal; return those that are to be skipped."""
    bad = []
    for (video_id, path), batches in zip(pending.items(), loader, strict=True):
        try:
            journal.add(video_id, path, _texts(path, batches, captioner))
        except VideoError as error:
            if bad_videos == "error":
                raise
            bad.append(BadVideo(path, error.reason))
        advance()
    return bad


def _write_captions(
    output: Path, journals: list[CaptionJournal], files: Mapping[str, Path], bad: list[BadVideo]
) -> CaptioningReport:
    """Write the captions of the journals that are of these files, and remove the journals."""
    texts = {
        i: journal.captions[i]
        for i, path in files.items()
        for journal in journals
        if journal.has(i, path)
    }
    if bad:
        lines = shortened([f"{path}: {reason}" for path, reason in bad], "\n  ")
        if not texts:
            raise CaptioningError(f"none of {len(files)} videos can be captioned:\n  {lines}")
        _log.warning("skipped %d of %d videos:\n  %s", len(bad), len(files), lines)
    num_filled = sum(frames.count("") for frames in texts.values())
    if num_filled:
        _log.warning("%d frames without words have their neighbor's caption", num_filled)
    _write_json(output, {video_id: _filled(frames) for video_id, frames in texts.items()})
    for journal in journals:
        journal.path.unlink()
    num_frames = sum(len(frames) for frames in texts.values())
    return CaptioningReport(output, len(texts), num_frames, num_filled, tuple(bad))


class _SampledFrames(Dataset[list[dict[str, Tensor]] | VideoError]):
    """The frames of each video, prepared for the model, in batches; or why there are none."""

    def __init__(
        self,
        sources: list[tuple[Path, Sampling]],
        image_processor: Callable[..., Mapping[str, Tensor]],
        batch_size: int,
    ) -> None:
        self.sources = sources
        self.image_processor = image_processor
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]] | VideoError:
        # Raised in a data-loading process, the error would lose its file.
        try:
            frames = read_frames(*self.sources[index])
        except VideoError as error:
            return error
        return [
            dict(
                self.image_processor(
                    images=list(frames[start : start + self.batch_size]),
                    input_data_format="channels_last",
                    return_tensors="pt",
                )
            )
            for start in range(0, len(frames), self.batch_size)
        ]


def _texts(
    path: Path, batches: list[dict[str, Tensor]] | VideoError, captioner: Captioner
) -> list[str]:
    if isinstance(batches, VideoError):
        raise batches
    texts = [text for batch in batches for text in captioner(batch)]
    if not any(texts):
        raise VideoError.of(path, f"{captioner.name} has no words for any of its frames")
    return texts


def _filled(texts: list[str]) -> list[str]:
    """Put the nearest caption in the place of each empty one."""
    spoken = [index for index, text in enumerate(texts) if text]
    return [texts[min(spoken, key=lambda i: abs(i - index))] for index in range(len(texts))]


def _write_json(path: Path, content: object) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())
