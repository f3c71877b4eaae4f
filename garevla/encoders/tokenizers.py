"""Texts to tokens: open_clip's tokenizer of a model, light enough to send to other processes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch.nn.functional as F
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from garevla.encoders.text_towers import TextTower

# What transformers keeps a tokenizer's settings in.
_TOKENIZER_FILE = "tokenizer_config.json"


class TokenizerError(RuntimeError):
    """A tokenizer could not be had."""


class TokenizerSource(NamedTuple):
    """Which tokenizer a model has.

    Attributes:
        name: open_clip's name of the model; empty for that of a config file.
        text_config: JSON of such a file's ``text_cfg``.
        folder: where that file is, perhaps beside the files of a Hugging Face tokenizer.
    """

    name: str = ""
    text_config: str = "{}"
    folder: str = ""


@dataclass(frozen=True)
class Tokenizer:
    """Token ids (A, L) int64 of texts.

    Args:
        source: which tokenizer.
        context_length: the most tokens of a text; longer texts are cut.
        full_length: L where padding counts, else L is ``context_length``.
        tower: the text tower that the tokens are for.
    """

    source: TokenizerSource
    context_length: int
    full_length: int
    tower: TextTower

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokens (A, L), padded."""
        tokens = load_tokenizer(self.source)(list(texts), context_length=self.context_length)
        if self.tower.padding_counts:
            more = self.full_length - tokens.shape[1]
            tokens = F.pad(tokens, (0, more), value=self.tower.pad_id)
        return tokens

    def trimmed(self, texts: Sequence[str]) -> Tensor:
        """Tokens without the padding that all texts share, where it does not count."""
        return self.tower.trim(self(texts))


@functools.cache
def load_tokenizer(source: TokenizerSource) -> Callable[..., Tensor]:
    """open_clip's tokenizer, once per process.

    Raises:
        TokenizerError: it cannot be had, mostly for want of an internet connection.
    """
    text: dict[str, Any] = json.loads(source.text_config)
    name = text.get("hf_tokenizer_name")
    try:
        if source.name:
            return open_clip.get_tokenizer(source.name)
        options = text.get("tokenizer_kwargs") or {}
        if name:
            beside = Path(source.folder, _TOKENIZER_FILE).is_file()
            return HFTokenizer(source.folder if beside else name, **options)
        return SimpleTokenizer(**options) if options else open_clip.tokenize
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().partition("\n")[0]
        raise TokenizerError(
            f"the tokenizer of {source.name or name!r} could not be had: {reason}. On a machine "
            "without internet: a JSON model config beside the tokenizer's files "
            f"({_TOKENIZER_FILE} and others)"
        ) from error


def pad_id_of(tokenizer: Callable[..., Tensor]) -> int:
    """Token id of padding: a Hugging Face tokenizer's own, or CLIP's."""
    return getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0
