"""Making pseudo captions for videos with an image-captioning model of ``transformers``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from garevla.data._optional import require
from garevla.data.caption_journal import CaptioningError, CaptionJournal
from garevla.data.check import BadVideo
from garevla.data.msrvtt import AnnotationError, RetrievalSplit, find_videos, load_msrvtt, shortened
from garevla.data.video import VIDEO_SUFFIXES, Sampling, VideoError, frame_indices, read_frames
from garevla.utils.devices import pick_device
from garevla.utils.files import atomic_file

DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"

_log = logging.getLogger(__name__)


@dataclass
class CaptionConfig:
    """Pseudo captions for videos of one's own: which videos, which model, where to."""

    video_dir: Path
    """Folder with <video_id>.mp4, also in sub-folders."""
    output: Path
    """JSON file to write; it must not exist. Until all is done there is a journal beside it,
    <output>.partial.jsonl, with which the same command goes on where it was stopped."""
    annotation_dir: Path | None = None
    """Folder with the CSV files of the splits and MSRVTT_data.json, to caption the videos of one
    split; null: all videos in video_dir."""
    split: Literal["train-9k", "train-7k", "test"] = "train-9k"
    """Videos to caption, where annotation_dir is given. Only training needs pseudo captions."""
    model: str = DEFAULT_MODEL
    """An image-captioning model (BLIP, BLIP-2, GIT, ViT-GPT2, ...) of the Hugging Face hub, or the
    folder of one."""
    max_frames: int = 12
    """The most frames taken of a video. This, sampling and frames_per_second must be those of
    training."""
    sampling: Literal["grid", "resample"] = "grid"
    """How frames are drawn, as in training."""
    frames_per_second: float = 1.0
    """Frames per second of video on the grid."""
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


def run_captioning(config: CaptionConfig, *, progress: bool = True) -> CaptioningReport:
    """Caption the videos of a folder, or of a split; see :func:`caption_videos`.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`garevla.data.load_msrvtt`, or a folder
            without videos.
    """
    if config.annotation_dir is None:
        videos = _videos_in(config.video_dir)
    else:
        videos = load_msrvtt(
            config.annotation_dir, config.video_dir, config.split, missing=config.bad_videos
        ).videos
    return caption_videos(
        videos,
        config.output,
        model=config.model,
        max_frames=config.max_frames,
        sampling=config.sampling,
        frames_per_second=config.frames_per_second,
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        bad_videos=config.bad_videos,
        device=config.device,
        num_workers=config.num_workers,
        progress=progress,
    )


def caption_videos(
    videos: RetrievalSplit | Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    max_frames: int = 12,
    sampling: Sampling = "grid",
    frames_per_second: float = 1.0,
    num_beams: int = 3,
    max_new_tokens: int = 30,
    batch_size: int = 16,
    bad_videos: Literal["error", "skip"] = "error",
    device: str = "auto",
    num_workers: int = 4,
    progress: bool = True,
) -> CaptioningReport:
    """Write what each sampled frame shows: a JSON object, video id -> list of strings.

    :meth:`garevla.data.PseudoCaptions.load` reads it. Captions come from beam search without
    sampling, and no batch spans two videos: a run that was stopped and gone on with gives the
    captions of one that was not.

    Every finished video is noted in a journal, ``<output>.partial.jsonl``, which the next call
    takes up and the end removes. A frame for which the model has no words gets the caption of the
    video's nearest frame with one, the earlier of two: to a text encoder an empty text is not
    "nothing" but a caption like any other. A video without words for any frame is a bad one.

    Args:
        videos: a split, or video id -> file.
        output: the file; its folder is made where there is none.
        model: name on the Hugging Face hub or local folder of a model that ``transformers`` loads
            as ``AutoModelForImageTextToText`` and that captions an image without a prompt.
        max_frames, sampling, frames_per_second: as for :func:`garevla.data.read_frames`; must be
            those of training.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: the most tokens of a caption.
        batch_size: the most frames of a video captioned at once.
        bad_videos: what to do about videos that cannot be read, or have no words: ``"error"``, or
            ``"skip"`` them and log how many and which.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        num_workers: processes that decode; 0 decodes in this one.
        progress: show a tqdm bar.

    Raises:
        FileExistsError: ``output`` exists.
        CaptioningError: the model cannot be loaded or needs a prompt; the journal is of other
            settings or damaged; no video is left.
        VideoError: a video cannot be read, or has no words (``bad_videos="error"``).
        ValueError: no videos, or an argument out of its range.
        ImportError: transformers, decord or (for the bar) tqdm is not installed.
    """
    videos = videos.videos if isinstance(videos, RetrievalSplit) else videos
    videos = {video_id: Path(path) for video_id, path in videos.items()}
    for name, value, least in (
        ("the number of videos", len(videos), 1),
        ("num_beams", num_beams, 1),
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if bad_videos not in ("error", "skip"):
        raise ValueError(f"bad_videos must be 'error' or 'skip', got {bad_videos!r}")
    frame_settings = {
        "max_frames": max_frames,
        "sampling": sampling,
        "frames_per_second": frames_per_second,
    }
    # Wrong ones are better found here than in the first video.
    frame_indices(1, 1.0, **frame_settings)
    torch_device = pick_device(device)
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists already: remove it, or write to another file")

    text_settings = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    journal = CaptionJournal(
        output.with_name(f"{output.name}.partial.jsonl"),
        # All that decides a caption. The other arguments may differ when a run is gone on with.
        {"model": os.fspath(model), **frame_settings, **text_settings},
    )
    pending = {i: path for i, path in videos.items() if not journal.has(i, path)}
    num_done = len(videos) - len(pending)
    if num_done:
        _log.info("%s has %d of %d videos: going on", journal.path, num_done, len(videos))
    bad: list[BadVideo] = []
    if pending:
        require("decord")
        tqdm = require("tqdm").tqdm
        captioner = _Captioner(os.fspath(model), torch_device, text_settings)
        loader = DataLoader(
            _SampledFrames(
                list(pending.values()), captioner.image_processor, batch_size, frame_settings
            ),
            batch_size=None,
            num_workers=min(num_workers, len(pending)),
            pin_memory=torch_device.type == "cuda",
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            journal,
            tqdm(
                total=len(videos),
                initial=num_done,
                desc="captioning",
                unit="video",
                disable=not progress,
            ) as bar,
        ):
            for (video_id, path), batches in zip(pending.items(), loader, strict=True):
                try:
                    journal.add(video_id, path, _texts(path, batches, captioner))
                except VideoError as error:
                    if bad_videos == "error":
                        raise
                    bad.append(BadVideo(path, error.reason))
                bar.update()

    spoken = {i: journal.captions[i] for i, path in videos.items() if journal.has(i, path)}
    if bad:
        lines = shortened([f"{path}: {reason}" for path, reason in bad], "\n  ")
        if not spoken:
            raise CaptioningError(f"none of {len(videos)} videos can be captioned:\n  {lines}")
        _log.warning("skipped %d of %d videos:\n  %s", len(bad), len(videos), lines)
    num_filled = sum(texts.count("") for texts in spoken.values())
    if num_filled:
        _log.warning("%d frames without words have their neighbour's caption", num_filled)
    _write_json(output, {video_id: _filled(texts) for video_id, texts in spoken.items()})
    journal.path.unlink()
    num_frames = sum(len(texts) for texts in spoken.values())
    return CaptioningReport(output, len(spoken), num_frames, num_filled, tuple(bad))


class _Captioner:
    """A captioning model: prepared frames -> texts."""

    def __init__(self, name: str, device: torch.device, text_settings: dict[str, int]) -> None:
        transformers = _import_transformers()
        self.name = name
        self.device = device
        self.text_settings = text_settings
        # Left open, the user would be asked on the terminal whether to run the model's own code.
        options = {"trust_remote_code": False}
        try:
            # Not AutoProcessor, which for an encoder-decoder pair is its tokenizer alone.
            self.image_processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            model = transformers.AutoModelForImageTextToText.from_pretrained(name, **options)
        # transformers, the hub's client and the file formats each have errors of their own.
        except Exception as error:
            raise CaptioningError(
                f"image-captioning model {name!r} cannot be loaded; where it cannot be downloaded, "
                f"give the path of a local copy. Reason: {_brief(error)}"
            ) from error
        # Without its prompt such a model may well talk, but not about the image.
        if self.tokenizer.chat_template is not None:
            raise CaptioningError(
                f"model {name!r} is a chat model, which needs a prompt; take one that captions "
                f"images by itself, such as {DEFAULT_MODEL}"
            )
        self.model = model.to(device).eval()

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Caption frames; a caption may be empty.

        Args:
            inputs: what the model's image processor makes of the frames.
        """
        moved = {
            key: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        try:
            tokens = self.model.generate(**moved, do_sample=False, **self.text_settings)
        except (TypeError, ValueError) as error:
            raise CaptioningError(
                f"model {self.name!r} does not caption images without a prompt: {_brief(error)}"
            ) from error
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


class _SampledFrames(Dataset[list[dict[str, Tensor]] | VideoError]):
    """The frames of each video, prepared for the model, in batches; or why there are none."""

    def __init__(
        self,
        paths: list[Path],
        image_processor: Callable[..., Mapping[str, Tensor]],
        batch_size: int,
        frame_settings: dict[str, Any],
    ) -> None:
        self.paths = paths
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.frame_settings = frame_settings

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]] | VideoError:
        # Raised in a data-loading process, the error would lose its file.
        try:
            frames = read_frames(self.paths[index], **self.frame_settings)
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
    path: Path, batches: list[dict[str, Tensor]] | VideoError, captioner: _Captioner
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


def _videos_in(folder: Path) -> dict[str, Path]:
    videos = find_videos(folder)
    if not videos:
        raise AnnotationError(f"no video ({', '.join(VIDEO_SUFFIXES)}) in {folder}")
    return videos


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f'transformers cannot be imported: pip install "garevla[caption]". Reason: {error}'
        ) from error
    return transformers


def _write_json(path: Path, content: object) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
