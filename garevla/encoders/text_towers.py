"""What kinds of text towers open_clip has: where a text's feature is taken, which tokens are words,
and whether padding takes part.

Towers are told apart by the model's config alone, and hold no weights; what computes with them
takes the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from open_clip import CLIPTextCfg
from torch import Tensor, nn

from garevla.head.texts import Texts


@dataclass(frozen=True)
class TextTower(ABC):
    """A text tower.

    Args:
        pad_id: token id of padding.

    Attributes:
        no_words: why there are no features of words in the space of the text's, or None.
    """

    pad_id: int
    no_words: ClassVar[str | None] = None

    @property
    @abstractmethod
    def padding_counts(self) -> bool:
        """Whether the feature of a text depends on the number of its padded tokens.

        If so, every text has to have all the tokens that the model was made for.
        """

    def features(self, clip: Any, tokens: Tensor) -> Tensor:
        """Text features (A, D) of an open_clip model, not normalized, of tokens (A, L)."""
        return pooled(clip.text(tokens))

    def trim(self, tokens: Tensor) -> Tensor:
        """Leave out the columns of padding that all texts (A, L) share, where they do not count.

        Most captions, pseudo captions above all, are far shorter than the longest possible.
        """
        return tokens


@dataclass(frozen=True)
class TokenTower(TextTower):
    """open_clip's own text transformer, whose feature is that at one of the tokens.

    Args:
        pool: which one; open_clip's ``pool_type``. ``"argmax"``: the one with the largest id, which
            is CLIP's EOT; ``"eos"``: the first with id ``eos_id``; ``"first"``; ``"last"``, which
            is mostly padding.
        causal: whether a token sees only those before it.
        eos_id: see ``pool``.
    """

    pool: str
    causal: bool
    eos_id: int

    @property
    def padding_counts(self) -> bool:
        return not (self.causal and self._ends)

    @property
    def _ends(self) -> bool:
        """Whether the feature's token is the last one of the text."""
        return self.pool in ("argmax", "eos")

    def readout(self, tokens: Tensor) -> Tensor:
        """Positions (A,) of the token that the feature is taken at, in tokens (A, L)."""
        if self.pool == "argmax":
            return tokens.argmax(dim=1)
        if self.pool == "eos":
            return (tokens == self.eos_id).int().argmax(dim=1)
        return tokens.new_full((len(tokens),), 0 if self.pool == "first" else tokens.shape[1] - 1)

    def trim(self, tokens: Tensor) -> Tensor:
        if self.padding_counts:
            return tokens
        return tokens[:, : int(self.readout(tokens).max()) + 1]

    def word_mask(self, tokens: Tensor) -> Tensor:
        """(A, L) bool: the tokens up to the end, or all that are no padding; the one that the
        feature is taken at is always among them."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        readout = self.readout(tokens).unsqueeze(1)
        if self._ends:
            return positions <= readout
        return (tokens != self.pad_id) | (positions == readout)

    def features(self, clip: Any, tokens: Tensor) -> Tensor:
        tower = text_modules(clip)
        x = self._run(tower, tokens)
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), self.readout(tokens)])
        return project(x, tower.text_projection)

    def words(self, clip: Any, tokens: Tensor) -> Tensor:
        """Features (A, L, D) at every token, projected as the text's is."""
        tower = text_modules(clip)
        return project(tower.ln_final(self._run(tower, tokens)), tower.text_projection)

    def texts(self, tokens: Tensor, word_features: Tensor) -> Texts:
        """Texts with their words, of tokens (A, L) and what :meth:`words` made of them."""
        rows = torch.arange(len(tokens), device=tokens.device)
        return Texts(
            word_features[rows, self.readout(tokens)], word_features, self.word_mask(tokens)
        )

    def _run(self, tower: Any, tokens: Tensor) -> Tensor:
        """What the blocks make of tokens, (A, L, width)."""
        length = tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length] if self.causal else None
        return tower.transformer(x, attn_mask=mask)


@dataclass(frozen=True)
class ClassTokenTower(TextTower):
    """CoCa's text transformer, whose feature is that of a token of its own behind all others."""

    no_words = (
        "the feature of a text is taken at a token of its own, and those of words are made for a "
        "text decoder"
    )

    @property
    def padding_counts(self) -> bool:
        # The position of the last token is that behind all padding.
        return True


@dataclass(frozen=True)
class HuggingFaceTower(TextTower):
    """A tower of transformers, which masks its padding (``pad_id``, by its own config)."""

    no_words = (
        "a Hugging Face text tower pools its words before it projects them into the space of texts "
        "and images"
    )

    @property
    def padding_counts(self) -> bool:
        return False

    def trim(self, tokens: Tensor) -> Tensor:
        used = (tokens != self.pad_id).any(dim=0).nonzero()
        return tokens[:, : int(used.max()) + 1]


def tower_kind(text_config: dict[str, Any]) -> type[TextTower]:
    """The kind of text tower that open_clip's ``text_cfg`` is of."""
    if text_config.get("hf_model_name"):
        return HuggingFaceTower
    return ClassTokenTower if text_config.get("embed_cls") else TokenTower


def text_tower(text_config: dict[str, Any], clip: Any, pad_id: int) -> TextTower:
    """A model's text tower.

    Args:
        text_config: open_clip's ``text_cfg``.
        clip: the model.
        pad_id: the tokenizer's.
    """
    kind = tower_kind(text_config)
    if kind is HuggingFaceTower:
        return HuggingFaceTower(clip.text.config.pad_token_id)
    if kind is ClassTokenTower:
        return ClassTokenTower(pad_id)
    return TokenTower(
        pad_id,
        text_config.get("pool_type", CLIPTextCfg.pool_type),
        not text_config.get("no_causal_mask", CLIPTextCfg.no_causal_mask),
        text_config.get("eos_id", CLIPTextCfg.eos_id),
    )


def text_modules(clip: Any) -> Any:
    """What holds the modules of a model's text tower: ``clip.text``, or CLIP itself."""
    return getattr(clip, "text", clip)


def project(x: Tensor, projection: Tensor | nn.Linear | None) -> Tensor:
    """Apply one of the forms that open_clip gives a tower's projection."""
    if isinstance(projection, nn.Linear):
        return projection(x)
    return x if projection is None else x @ projection


def pooled(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The pooled feature of a tower that may return its tokens beside it."""
    return output[0] if isinstance(output, tuple) else output
