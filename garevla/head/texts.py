"""Texts with the features of their words, for increments of the videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """A texts and the W words of each, which the increments of the videos are made of.

    They take the place of ``text_features`` where ``corrects="video"``, in
    :func:`garevla.gare_similarity`, :class:`garevla.GareLoss` and ``garevla.evaluation``.
    ``len(texts)`` is their number, ``texts[index]`` those at a slice or an index tensor.

    Args:
        text_features: (A, D), not normalized.
        word_features: (A, W, D), not normalized; whatever the text tower gives at its tokens.
        word_mask: (A, W), 1 or True for a word; ``None`` means all are. Padding takes no part,
            whatever it holds.

    Raises:
        ValueError: shapes that do not belong together.
    """

    text_features: Tensor
    word_features: Tensor
    word_mask: Tensor | None = None

    def __post_init__(self) -> None:
        text, words = self.text_features, self.word_features
        if text.dim() != 2:
            raise ValueError(f"text_features must have shape (A, D), got {tuple(text.shape)}")
        num_texts, dim = text.shape
        if words.dim() != 3 or (len(words), words.shape[2]) != (num_texts, dim):
            raise ValueError(
                f"word_features must have shape (A, W, D) = ({num_texts}, W, {dim}), got "
                f"{tuple(words.shape)}"
            )
        if self.word_mask is not None and self.word_mask.shape != words.shape[:2]:
            raise ValueError(
                f"word_mask must have shape (A, W) = {tuple(words.shape[:2])}, got "
                f"{tuple(self.word_mask.shape)}"
            )

    def __len__(self) -> int:
        return len(self.text_features)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Texts:
        mask = self.word_mask
        return Texts(
            self.text_features[index],
            self.word_features[index],
            None if mask is None else mask[index],
        )

    @property
    def device(self) -> torch.device:
        """Of the text features."""
        return self.text_features.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the text features."""
        return self.text_features.dtype

    def to(self, where: torch.device | str | torch.dtype) -> Texts:
        """Move all tensors, or give the features another dtype."""
        mask = self.word_mask
        if mask is not None and not isinstance(where, torch.dtype):
            mask = mask.to(where)
        return Texts(self.text_features.to(where), self.word_features.to(where), mask)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, words and mask."""
        return self.text_features, self.word_features, self._mask()

    def padded(self, num_words: int) -> Texts:
        """The same texts with room for more words, up to ``num_words``."""
        more = num_words - self.word_features.shape[1]
        if more <= 0:
            return self
        words = F.pad(self.word_features, (0, 0, 0, more))
        return Texts(self.text_features, words, F.pad(self._mask(), (0, more)))

    @staticmethod
    def cat(texts: Iterable[Texts]) -> Texts:
        """Join texts in this order, of however many words.

        Raises:
            ValueError: none at all.
        """
        together = list(texts)
        if not together:
            raise ValueError("texts is empty")
        most = max(part.word_features.shape[1] for part in together)
        padded = [part.padded(most) for part in together]
        return Texts(*map(torch.cat, zip(*(part.tensors() for part in padded), strict=True)))

    def _mask(self) -> Tensor:
        if self.word_mask is not None:
            return self.word_mask
        return torch.ones(self.word_features.shape[:2], dtype=torch.bool, device=self.device)
