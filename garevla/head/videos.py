"""Videos whose factors are kept, so that a query costs no more than its pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from garevla.increments.base import (
    EncodedVideos,
    GarePairs,
    IncrementNetwork,
    PairStatistics,
    VideoParts,
)
from garevla.increments.hidden.videos import HiddenVideos
from garevla.increments.low_rank.videos import CompactVideos, LowRankVideos
from garevla.ops.precision import full_precision
from garevla.utils.files import atomic_file
from garevla.utils.numerics import widest_dtype, with_dtype
from garevla.utils.slices import slices_of
from garevla.utils.validation import as_frame_mask, check_frame_features, check_psi

_KINDS: dict[str, type[EncodedVideos]] = {
    "low_rank": LowRankVideos,
    "compact": CompactVideos,
    "hidden": HiddenVideos,
}
_FORMAT = "garevla videos 1"
_STORAGE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_ENCODED_AT_ONCE = 1024
# Elements taken out of 16 bits at once: near a cache.
_WIDENED_AT_ONCE = 2**22


class Videos(EncodedVideos):
    """Videos under a ψ, encoded once; made by :func:`encode_videos`.

    They take the place of ``frame_features`` in :func:`garevla.gare_similarity` and its kin, in
    :class:`garevla.GareLoss` and in ``garevla.evaluation``. They hold what ψ's weights gave at the
    time: after a training step make others.

    ``len(videos)`` is their number, ``videos[index]`` those at a slice (as views), a list of
    positions or an index or bool tensor.
    """

    def __init__(self, kind: str, parts: VideoParts) -> None:
        self._kind, self._parts = kind, parts

    def __len__(self) -> int:
        return len(self.frame_mask)

    def __repr__(self) -> str:
        return (
            f"Videos({len(self)} of {self.frame_mask.shape[1]} frames, dim={self.dim}, "
            f"{self._kind}, {self.dtype}, {self.device}, {self.nbytes / 2**20:.1f} MiB)"
        )

    @property
    def frame_mask(self) -> Tensor:
        """(B, F) bool."""
        return self._parts.of_videos["frame_mask"]

    @property
    def dim(self) -> int:
        """D."""
        return self._parts.of_videos["mean_frame"].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the bulk of the numbers; the rest is in float32 at least."""
        return self._parts.of_videos[self._parts.narrow[0]].dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.frame_mask.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, weights of ψ included."""
        tensors = [*self._parts.of_videos.values(), *self._parts.shared.values()]
        return sum(tensor.nbytes for tensor in tensors)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Videos:
        if isinstance(index, (list, tuple)):
            index = torch.tensor(index, dtype=torch.int64)
        if isinstance(index, Tensor):
            if index.dim() != 1:
                raise IndexError(f"an index of videos must be 1-d, got {tuple(index.shape)}")
            index = index.to(self.device)
        elif not isinstance(index, slice):
            raise TypeError(f"videos[...] takes a slice, a list or a tensor, got {index!r}")
        return self._with_videos(lambda name, tensor: tensor[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Videos:
        """Move the videos, or store the bulk of their numbers in another dtype.

        Raises:
            ValueError: another dtype than float16, bfloat16, float32 and float64; float16 with
                numbers beyond its range.
        """
        if dtype is not None:
            return self._stored_in(dtype).to(device)
        if device is None:
            return self
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> Videos:
        """The same numbers, without a gradient."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(videos: Iterable[Videos]) -> Videos:
        """Join videos in this order.

        Raises:
            ValueError: none at all, or videos that do not go together: of another ψ, form, number
                of frames, dtype or device.
        """
        together = list(videos)
        if not together:
            raise ValueError("videos is empty")
        first = together[0]
        for position, other in enumerate(together):
            if (difference := first._difference(other)) is not None:
                raise ValueError(f"videos[{position}] do not go with videos[0]: {difference}")
        return first._with_videos(
            lambda name, _: torch.cat([part._parts.of_videos[name] for part in together])
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of about ``nbytes``; a crash leaves what was there.

        Raises:
            OSError: it cannot be written.
        """
        # A view would be written with all of the tensor it looks at.
        parts = self._map(lambda x: x.detach().cpu().clone(memory_format=torch.contiguous_format))
        content = {"format": _FORMAT, "kind": self._kind, **parts._parts._asdict()}
        with atomic_file(path) as file:
            torch.save(content, file)

    @staticmethod
    def load(path: str | os.PathLike[str], *, mmap: bool = True) -> Videos:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Args:
            mmap: leave the numbers in the file, which are read when they are used.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file, or a damaged one.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file of videos: {path}")
        try:
            content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
            if (found := content.pop("format")) != _FORMAT:
                raise ValueError(f"its format is {found!r}")
            videos = Videos(content.pop("kind"), VideoParts(**content))
            videos._encoded(videos._wide_dtype())
        except Exception as error:
            raise ValueError(f"{path} holds no videos that can be read: {error}") from error
        return videos

    def computing_dtype(self, text_features: Tensor) -> torch.dtype:
        """Of scores with these texts: the widest involved, at least float32."""
        return widest_dtype(text_features, self._wide_dtype())

    def similarity(self, text_features: Tensor, pool_temperature: float, backend: str) -> Tensor:
        # 16-bit numbers are widened a part at a time.
        step = len(self)
        if self.dtype != text_features.dtype:
            bulk = sum(self._parts.of_videos[name][:1].numel() for name in self._parts.narrow)
            step = max(1, _WIDENED_AT_ONCE // bulk)
        scores = [
            self[rows]
            ._encoded(text_features.dtype)
            .similarity(text_features, pool_temperature, backend)
            for rows in slices_of(len(self), step)
        ]
        return scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)

    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        return self._encoded(text_features.dtype).pairs(text_features, pool_temperature, backend)

    def statistics(self, text_features: Tensor, *arguments: Any, **options: Any) -> PairStatistics:
        videos = self._encoded(text_features.dtype)
        return videos.statistics(text_features, *arguments, **options)

    def _encoded(self, dtype: torch.dtype) -> EncodedVideos:
        """As ψ made them, all numbers in one dtype."""
        wide = self._map(lambda x: x.to(dtype) if x.is_floating_point() else x)
        return _KINDS[self._kind].from_parts(wide._parts)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Videos:
        of_videos, shared = (
            {name: function(tensor) for name, tensor in tensors.items()}
            for tensors in (self._parts.of_videos, self._parts.shared)
        )
        return Videos(self._kind, self._parts._replace(of_videos=of_videos, shared=shared))

    def _with_videos(self, function: Callable[[str, Tensor], Tensor]) -> Videos:
        of_videos = {name: function(name, x) for name, x in self._parts.of_videos.items()}
        return Videos(self._kind, self._parts._replace(of_videos=of_videos))

    def _wide_dtype(self) -> torch.dtype:
        return self._parts.of_videos["mean_frame"].dtype

    def _stored_in(self, dtype: torch.dtype) -> Videos:
        _check_storage(dtype)

        def stored(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            if name not in self._parts.narrow:
                return tensor.to(widest_dtype(dtype))
            return _narrowed(tensor, dtype)

        shared = {
            name: tensor.to(widest_dtype(dtype)) for name, tensor in self._parts.shared.items()
        }
        moved = self._with_videos(stored)
        return Videos(moved._kind, moved._parts._replace(shared=shared))

    def _difference(self, other: Videos) -> str | None:
        """What keeps two from being joined."""
        for what in ("_kind", "dim", "dtype", "device"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine != its:
                return f"{what.strip('_')} {its} and {mine}"
        if self.frame_mask.shape[1] != other.frame_mask.shape[1]:
            return f"{other.frame_mask.shape[1]} frames and {self.frame_mask.shape[1]}"
        mine, its = self._parts, other._parts
        alike = mine.constants == its.constants and all(
            mine.shared[name] is its.shared[name]
            or torch.equal(mine.shared[name], its.shared[name])
            for name in mine.shared
        )
        return None if alike else "the weights of psi"


def encode_videos(
    frame_features: Tensor,
    psi: IncrementNetwork,
    frame_mask: Tensor | None = None,
    *,
    compact: bool = False,
    dtype: torch.dtype | None = None,
) -> Videos:
    """Encode videos once, for many calls of :func:`garevla.gare_similarity` and its kin.

    With gradients where they are enabled; for search and evaluation use ``torch.no_grad()``.

    Args:
        frame_features: (B, F, D) floating point, not normalized.
        psi: the increment network for D-dimensional features.
        frame_mask: (B, F), 1 or True for a valid frame; ``None`` means all are.
        compact: keep little more than the frames. Up to 64 texts are scored from them as fast, by
            eager operations whatever the backend; for more the rest is made again. Scores are the
            same but for rounding.
        dtype: of the bulk of the numbers, float16 or bfloat16 for half the memory. The frames are
            rounded to it before anything is computed from them. By default the widest of the
            features' and ψ's dtypes, at least float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid frame; a ψ whose videos cannot be kept, or have no compact form; float16
            with numbers beyond its range.
    """
    check_psi(psi)
    check_frame_features(frame_features, psi.dim)
    if dtype is not None:
        _check_storage(dtype)
    wide = widest_dtype(frame_features, psi.dtype, dtype or torch.float32)
    encode = psi.encode_compact if compact else psi.encode_videos
    encoded = []
    with full_precision(frame_features):
        frames, mask = prepare_frames(frame_features, frame_mask, frame_features.dtype, psi)
        if dtype is not None:
            frames = _narrowed(frames, dtype)
        for rows in slices_of(len(frames), _ENCODED_AT_ONCE):
            found = encode(frames[rows].to(wide), mask[rows])
            if found.dropout_seed is not None:
                raise ValueError("with dropout for each pair nothing can be kept: call psi.eval()")
            videos = Videos(_kind_of(found), found.parts())
            encoded.append(videos if dtype is None else videos.to(dtype=dtype))
        return encoded[0] if len(encoded) == 1 else Videos.cat(encoded)


def prepare_frames(
    frame_features: Tensor, frame_mask: Tensor | None, dtype: torch.dtype, psi: IncrementNetwork
) -> tuple[Tensor, Tensor]:
    """Frames in a dtype, 0 where they are padding that ψ does not read, and their mask as bool.

    Raises:
        TypeError, ValueError: a mask that does not fit.
    """
    if psi.reads_padding:
        return with_dtype(frame_features, dtype), as_frame_mask(frame_mask, frame_features)
    return prepare_features(frame_features, frame_mask, dtype)


def prepare_features(
    features: Tensor, given_mask: Tensor | None, dtype: torch.dtype, kind: str = "frame"
) -> tuple[Tensor, Tensor]:
    """Features of frames or words in a dtype, 0 where they are padding, and their mask as bool.

    Raises:
        TypeError, ValueError: a mask that does not fit.
    """
    mask = as_frame_mask(given_mask, features, kind=kind)
    features = with_dtype(features, dtype)
    if given_mask is not None:
        # Not a product: padding may hold NaN.
        features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
    return features, mask


def _check_storage(dtype: torch.dtype) -> None:
    if dtype not in _STORAGE:
        raise ValueError(f"dtype must be one of {_STORAGE}, got {dtype}")


def _kind_of(encoded: EncodedVideos) -> str:
    kinds = {cls: kind for kind, cls in _KINDS.items()}
    if type(encoded) not in kinds:
        raise ValueError(f"{type(encoded).__name__} cannot be kept")
    return kinds[type(encoded)]


def _narrowed(features: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = features.to(dtype)
    if dtype == torch.float16 and not torch.compiler.is_compiling():
        beyond = features.abs().amax()
        if beyond > torch.finfo(dtype).max:
            raise ValueError(f"float16 cannot hold {beyond.item():.3g}: use bfloat16")
    return narrow
