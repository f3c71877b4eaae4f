"""CLIP as a text and video encoder, around any open_clip ViT model."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

try:
    import open_clip
except ImportError as error:
    raise ImportError('garevla.encoders needs open_clip: pip install "garevla[video]"') from error

from garevla.encoders.pretrained import create_clip
from garevla.encoders.temporal import TemporalTransformer
from garevla.head.texts import Texts
from garevla.utils.padding import Padding, check_padding
from garevla.utils.validation import as_frame_mask

# Just under ln(100), so that exp never rounds above the clamp, where the gradient would be lost.
_MAX_LOG_SCALE = 4.60517


class ClipEncoder(nn.Module):
    """Text features at EOT and frame features from CLIP, the latter optionally put into their
    temporal context.

    Args:
        model_name: an open_clip name (``"ViT-B-32-quickgelu"``), the path of an open_clip JSON
            model config, or ``"tiny"`` (shipped: a small ViT for demonstrations and tests).
        pretrained: an open_clip tag (``"openai"``; downloaded once), the path of a local
            checkpoint (open_clip's, OpenAI's TorchScript file, or a garevla run's best.pt), or
            None for random weights.
        temporal_layers: blocks of the temporal transformer; 0 leaves it out. Where the weights are
            pretrained and the text tower's width is the embedding dimension (as in ViT-B) it
            starts from the text tower's first blocks, as published; elsewhere from random weights.
        max_frames: the most frames a video may have (positions of the temporal transformer).
        context_length: tokens per text, at least 3, at most the model's own; longer texts are cut.
        padding: ``"ignored"``: only valid frames are computed. ``"published"``: all are, as in the
            published code of GARE, for ``CrossAttentionPsi(padding="published")``.

    Attributes:
        clip: the ``open_clip.CLIP`` model.
        temporal: the :class:`TemporalTransformer`, or None.
        dim: D, the dimension of text and frame features.
        image_size: side of the square input images, in pixels.
        tokenizer: what :meth:`tokenize` calls; light enough to send to data-loading processes.
        image_mean, image_std: normalization of the R, G and B channels of images in [0, 1].

    Raises:
        ValueError: a model that is not a ViT CLIP, or arguments that do not fit it.
        FileNotFoundError: a config file that does not exist.
        PretrainedWeightsError: unknown tag, failed download, or weights of another model.
    """

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def __init__(
        self,
        model_name: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        *,
        temporal_layers: int = 4,
        max_frames: int = 12,
        context_length: int = 32,
        padding: Padding = "ignored",
    ) -> None:
        super().__init__()
        check_padding(padding)
        self.padding = padding
        if temporal_layers < 0 or max_frames < 1:
            raise ValueError(
                "temporal_layers must be at least 0 and max_frames at least 1, "
                f"got {temporal_layers} and {max_frames}"
            )
        self.clip, preprocess = create_clip(model_name, pretrained)
        # Start and end alone would be the same of all texts.
        if not 3 <= context_length <= self.clip.context_length:
            raise ValueError(
                f"context_length must be between 3 and {self.clip.context_length}, what "
                f"{model_name!r} was made for, got {context_length}"
            )
        height, width = self.clip.visual.image_size
        if height != width:
            raise ValueError(f"model {model_name!r} takes images of {height}x{width}, not square")
        self.image_size = height
        self.image_mean = tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
        self.image_std = tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
        self.dim = self.clip.visual.output_dim
        self.max_frames = max_frames
        self.tokenizer = functools.partial(open_clip.tokenize, context_length=context_length)
        self.temporal = None
        if temporal_layers:
            self.temporal = TemporalTransformer(self.dim, temporal_layers, max_frames)
            if pretrained is not None and self.clip.transformer.width == self.dim:
                self.temporal.copy_from_text(
                    self.clip.transformer.resblocks, self.clip.positional_embedding
                )
        self.clamp_logit_scale_()

    @property
    def logit_scale(self) -> Tensor:
        """0-d: the factor on similarities, exp of the learnt scale, at most 100."""
        return self.clip.logit_scale.exp().clamp(max=100.0).reshape(())

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Bring the learnt scale back under its bound, as CLIP does after every update.

        Beyond the bound the scale would get no gradient, and could never come back.
        """
        self.clip.logit_scale.clamp_(max=_MAX_LOG_SCALE)

    def checkpoint_activations(self) -> None:
        """Keep the input of each block alone for the backward pass, which runs the block again.

        Gradients stay the same, to the bit where the blocks' operations repeat to the bit.
        """
        self.clip.set_grad_checkpointing()
        if self.temporal is not None:
            self.temporal.transformer.grad_checkpointing = True

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (A, context_length) int64: start, byte-pair tokens, EOT, then zeros.

        A text that is too long is cut, and its last token is EOT.
        """
        return self.tokenizer(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features at EOT, not normalized.

        Args:
            tokens: (A, L) int64, L at most what the model was made for. Causal attention makes
                the result independent of how much padding follows EOT.

        Returns:
            (A, D).

        Raises:
            ValueError: tokens of another shape or dtype.
        """
        x = self._run_text(tokens)
        x = self.clip.ln_final(x[torch.arange(len(x), device=x.device), ends_of(tokens)])
        return project(x, self.clip.text_projection)

    def encode_words(self, tokens: Tensor) -> Tensor:
        """Features at every token, projected as the one at EOT is, not normalized.

        Args:
            tokens: as in :meth:`encode_text`.

        Returns:
            (A, L, D), for :func:`texts_of`.

        Raises:
            ValueError: tokens of another shape or dtype.
        """
        return project(self.clip.ln_final(self._run_text(tokens)), self.clip.text_projection)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features, not normalized; only valid frames are computed, unless ``padding`` is
        ``"published"``.

        Args:
            video: (B, F, 3, H, W) floating point, normalized, H = W = ``image_size``.
            frame_mask: (B, F), 1 or True for a valid frame. Padded frames take no part, whatever
                they hold; in the published code they hold zeros, and are encoded.

        Returns:
            (B, F, D), exactly 0 at padded frames, if these are ignored.

        Raises:
            ValueError: shapes or dtypes that do not fit; a video with no valid frame.
        """
        frame_mask = self._check_video(video, frame_mask)
        if self.padding == "published":
            features = self.clip.visual(video.flatten(0, 1)).unflatten(0, frame_mask.shape)
        else:
            valid = self.clip.visual(video[frame_mask])
            features = valid.new_zeros(*frame_mask.shape, self.dim)
            features[frame_mask] = valid
        if self.temporal is not None:
            features = self.temporal(features, frame_mask, self.padding)
        return features

    def _run_text(self, tokens: Tensor) -> Tensor:
        """What the text tower's blocks make of tokens, (A, L, width)."""
        self._check_tokens(tokens, "(A, L)")
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        return clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])

    def _check_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """The mask as bool."""
        size = self.image_size
        if video.dim() != 5 or video.shape[2:] != (3, size, size) or not video.is_floating_point():
            raise ValueError(
                f"video must be floating point of shape (B, F, 3, {size}, {size}), got "
                f"{video.dtype} of shape {tuple(video.shape)}"
            )
        if video.shape[1] > self.max_frames:
            raise ValueError(f"video has {video.shape[1]} frames, max_frames is {self.max_frames}")
        # The host waits for the mask in any case: it is an index.
        return as_frame_mask(frame_mask, video, wait=True)

    def _check_tokens(self, tokens: Tensor, shape: str) -> None:
        if tokens.dim() != shape.count(",") + 1 or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 of shape {shape}, got {tokens.dtype} of shape "
                f"{tuple(tokens.shape)}"
            )
        if tokens.shape[-1] > self.clip.context_length:
            raise ValueError(
                f"tokens has {tokens.shape[-1]} tokens per text, the model takes "
                f"{self.clip.context_length}"
            )


def trim_padding(tokens: Tensor) -> Tensor:
    """Leave out the columns of padding that all texts (A, L) share.

    Features at EOT depend on nothing behind it, and most captions, pseudo captions above all, are
    far shorter than the longest possible.
    """
    return tokens[:, : int(ends_of(tokens).max()) + 1]


def ends_of(tokens: Tensor) -> Tensor:
    """Positions (A,) of EOT, which has the largest id of the vocabulary, in tokens (A, L)."""
    return tokens.argmax(dim=1)


def texts_of(tokens: Tensor, word_features: Tensor) -> Texts:
    """Texts whose words are the tokens up to EOT, and whose feature is the one at EOT.

    Args:
        tokens: (A, L).
        word_features: (A, L, D), of :meth:`ClipEncoder.encode_words`.
    """
    end = ends_of(tokens)
    rows = torch.arange(len(tokens), device=tokens.device)
    mask = torch.arange(tokens.shape[1], device=tokens.device) <= end.unsqueeze(1)
    return Texts(word_features[rows, end], word_features, mask)


def project(x: Tensor, projection: Tensor | nn.Linear | None) -> Tensor:
    """Apply one of the forms that open_clip gives a tower's projection."""
    if isinstance(projection, nn.Linear):
        return projection(x)
    return x if projection is None else x @ projection
