"""Noise in the demo's training captions: wrong ones, and such as several videos share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from garevla.data.splits import Caption
from garevla.data.synthetic.descriptions import COLORS, SIZE_WORDS, ClipDescription

_DETAILS = "|".join([*COLORS, *(word for words in SIZE_WORDS.values() for word in words)])
_NOUN = re.compile(rf"\ban? (?:(?:{_DETAILS}) )+")


@dataclass(frozen=True)
class NoisyCaptions:
    """Training captions, and what each may truly be said of.

    Attributes:
        captions: N of them; a wrong one stands with another video than its own.
        outlines: (N,) int64: what a caption says without colors and sizes.
        is_vague: (N,) bool: it says no more than that.
    """

    captions: tuple[Caption, ...]
    outlines: Tensor
    is_vague: Tensor

    def right_videos(self, chosen: Sequence[int]) -> Tensor:
        """(A, A) float32: 1 where caption i of a batch is right for the video of caption j.

        Of right captions only: a wrong one counts as right for the video that it stands with.
        """
        outlines, vague = self.outlines[chosen], self.is_vague[chosen]
        fits = (outlines.unsqueeze(1) == outlines) & vague.unsqueeze(1)
        return (fits | torch.eye(len(chosen), dtype=torch.bool)).float()


def vague(text: str) -> str:
    """A caption without colors and sizes: ``a small red circle moves up`` → ``a circle moves up``.

    It stays true, and becomes so of other videos.
    """
    return _NOUN.sub("a ", text)


def shuffle_captions(captions: Sequence[Caption], share: float, seed: int) -> tuple[Caption, ...]:
    """Give a share of the captions to other videos: each video keeps as many as it had.

    Raises:
        ValueError: most of the captions drawn are of one video.
    """
    drawn = _draw(len(captions), share, seed)
    by_video: dict[str, list[int]] = {}
    for index in drawn:
        by_video.setdefault(captions[index].video_id, []).append(index)
    # Videos in random order, the captions of each together: moved on by as many places as the
    # largest group has, none comes to its own.
    places = [index for group in by_video.values() for index in group]
    step = max(map(len, by_video.values()), default=0)
    if places and 2 * step > len(places):
        raise ValueError(f"{step} of {len(places)} captions to be shuffled are of one video")
    found = list(captions)
    for index, place in zip(places, places[step:] + places[:step], strict=True):
        found[place] = Caption(captions[place].video_id, captions[index].text)
    return tuple(found)


def add_noise(
    captions: Sequence[Caption],
    descriptions: dict[str, ClipDescription],
    *,
    wrong: float = 0.0,
    shared: float = 0.0,
    seed: int = 0,
) -> NoisyCaptions:
    """Captions with noise, the same for the same arguments.

    Args:
        captions: of the training split.
        descriptions: of each video.
        wrong: share of captions that are given to other videos.
        shared: share of captions that lose colors and sizes, so that several videos share them.
        seed: of which captions.
    """
    keys: dict[tuple[object, ...], int] = {}
    outlines = []
    for caption in captions:
        description = descriptions[caption.video_id]
        key = (tuple(thing.shape for thing in description.things), description.motions)
        outlines.append(keys.setdefault(key, len(keys)))
    is_vague = torch.zeros(len(captions), dtype=torch.bool)
    is_vague[_draw(len(captions), shared, seed)] = True
    noisy = [
        Caption(caption.video_id, vague(caption.text)) if is_vague[index] else caption
        for index, caption in enumerate(captions)
    ]
    return NoisyCaptions(shuffle_captions(noisy, wrong, seed), torch.tensor(outlines), is_vague)


def _draw(count: int, share: float, seed: int) -> list[int]:
    """A share of ``range(count)``, in random order; a larger share holds a smaller one's."""
    generator = np.random.default_rng([seed, count])
    return generator.permutation(count)[: round(share * count)].tolist()
