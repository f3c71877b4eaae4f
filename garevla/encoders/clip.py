"""CLIP as a text and video encoder, around any open_clip model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

try:
    import open_clip  # noqa: F401
except ImportError as error:
    raise ImportError('garevla.encoders needs open_clip: pip install "garevla[video]"') from error

from garevla.data.resizing import Resizing
from garevla.encoders.model_config import context_length as most_tokens
from garevla.encoders.model_config import image_size
from garevla.encoders.pretrained import create_clip
from garevla.encoders.temporal import TemporalTransformer
from garevla.encoders.text_towers import TokenTower, pooled, text_modules, text_tower
from garevla.encoders.tokenizers import Tokenizer, load_tokenizer, pad_id_of
from garevla.head.texts import Texts
from garevla.utils.padding import Padding, check_padding
from garevla.utils.validation import as_frame_mask

if TYPE_CHECKING:
    from garevla.data.dataset import VideoTransform

_Self = TypeVar("_Self", bound="ClipEncoder")

# Just under ln(100), so that exp never rounds above the clamp, where the gradient would be lost.
_MAX_LOG_SCALE = 4.60517


class ClipEncoder(nn.Module):
    """Text features and frame features from CLIP, the latter optionally put into their temporal
    context.

    Any open_clip model that gives a feature of an image and one of a text is taken, with whatever
    towers, tokenizer and image preprocessing open_clip gives it (docs/backbones.md).

    BatchNorm layers, as ResNets and MobileCLIP have them, always use their running statistics, so
    that no video's features depend on what else is in a batch; their weights train. The bias that
    SigLIP adds to logits has no use here: the losses are the same whatever is added to all logits.
    It stays as it is.

    Args:
        model_name: an open_clip name (``"ViT-B-32-quickgelu"``; ``garevla models`` lists them), the
            path of an open_clip JSON model config, or ``"tiny"`` (shipped: a small ViT for
            demonstrations and tests).
        pretrained: an open_clip tag (``"openai"``; downloaded once), the path of a local
            checkpoint (open_clip's, OpenAI's TorchScript file, or a garevla run's best.pt), or
            None for random weights.
        temporal_layers: blocks of the temporal transformer; 0 leaves it out. Where the weights are
            pretrained and the text tower's blocks are CLIP's and of the embedding dimension (as in
            ViT-B) it starts from the first of them, as published; elsewhere from random weights.
        max_frames: the most frames a video may have (positions of the temporal transformer).
        context_length: tokens per text, at least 3, at most the model's own; longer texts are cut.
        padding: ``"ignored"``: only valid frames are computed. ``"published"``: all are, as in the
            published code of GARE, for ``CrossAttentionPsi(padding="published")``.
        frozen: keep CLIP as it is, logit scale included, in evaluation mode and without gradients.
        load_weights: False where all weights are about to be replaced: ``pretrained`` need not be
            there, and tells the images' preprocessing alone.

    Attributes:
        clip: the model, an ``open_clip.CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        temporal: the :class:`TemporalTransformer`, or None.
        dim: D, the dimension of text and frame features.
        resizing: how frames become the square images that CLIP takes.
        image_size: side of these, in pixels.
        text_tower: what kind of text tower it is.
        max_context_length: the most tokens of a text that CLIP was made for.
        tokenizer: what :meth:`tokenize` calls; light enough to send to data-loading processes.
        image_mean, image_std: normalization of the R, G and B channels of images in [0, 1].

    Raises:
        ValueError: a model without a feature of an image or of a text, or arguments that do not
            fit it.
        FileNotFoundError: a config file that does not exist.
        PretrainedWeightsError: unknown tag, failed download, or weights of another model.
        TokenizerError: failed download of a tokenizer.
    """

    clip: Any
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    # Whether DiscoVLA's adapters go into the towers.
    _adapts = False

    def __init__(
        self,
        model_name: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        *,
        temporal_layers: int = 4,
        max_frames: int = 12,
        context_length: int = 32,
        padding: Padding = "ignored",
        frozen: bool = False,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_padding(padding)
        self.padding = padding
        self.frozen = frozen
        if temporal_layers < 0 or max_frames < 1:
            raise ValueError(
                "temporal_layers must be at least 0 and max_frames at least 1, "
                f"got {temporal_layers} and {max_frames}"
            )
        self.clip, config, preprocess, tokenizer = create_clip(
            model_name, pretrained, load_weights=load_weights, adapted=self._adapts
        )
        self.max_context_length = most_tokens(config)
        # Start and end alone would be the same of all texts.
        if not 3 <= context_length <= self.max_context_length:
            raise ValueError(
                f"context_length must be between 3 and {self.max_context_length}, what "
                f"{model_name!r} was made for, got {context_length}"
            )
        # open_clip takes "random" interpolation for bicubic wherever nothing is drawn.
        bilinear = preprocess["interpolation"] == "bilinear"
        self.resizing = Resizing(
            image_size(config), preprocess["resize_mode"], "bilinear" if bilinear else "bicubic"
        )
        self.image_mean = tuple(preprocess["mean"])
        self.image_std = tuple(preprocess["std"])
        self.dim = config["embed_dim"]
        pad_id = pad_id_of(load_tokenizer(tokenizer))
        self.text_tower = text_tower(config["text_cfg"], self.clip, pad_id)
        self.tokenizer = Tokenizer(
            tokenizer, context_length, self.max_context_length, self.text_tower
        )
        self.max_frames = max_frames
        self.temporal = None
        if temporal_layers:
            self.temporal = TemporalTransformer(self.dim, temporal_layers, max_frames)
            if load_weights and pretrained is not None:
                text = text_modules(self.clip)
                blocks = getattr(text.transformer, "resblocks", None)
                if blocks is not None and self.temporal.fits(blocks):
                    self.temporal.copy_from_text(blocks, text.positional_embedding)
        if frozen:
            self.clip.requires_grad_(False)
        self._keep_in_evaluation_mode()
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

    def train(self: _Self, mode: bool = True) -> _Self:
        """Training or evaluation mode; a frozen CLIP stays in evaluation mode, and so do
        BatchNorm layers."""
        super().train(mode)
        self._keep_in_evaluation_mode()
        return self

    def _keep_in_evaluation_mode(self) -> None:
        for module in [self.clip] if self.frozen else self.clip.modules():
            if self.frozen or isinstance(module, _BatchNorm):
                module.eval()

    @property
    def image_size(self) -> int:
        """Side of the square input images, in pixels."""
        return self.resizing.image_size

    def video_transform(self) -> VideoTransform:
        """What makes the images that CLIP takes of a video's frames."""
        from garevla.data.dataset import VideoTransform

        return VideoTransform(self.resizing, self.image_mean, self.image_std)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (A, L) int64, padded, as open_clip's tokenizer of the model makes them.

        L is ``context_length``; what the model was made for (``max_context_length``) where
        the number of padded tokens counts. A text that is too long is cut.
        """
        return self.tokenizer(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features, not normalized.

        Args:
            tokens: (A, L) int64, L at most what the model was made for. How much padding follows
                the texts does not matter where attention is causal or masks it; elsewhere L is
                ``max_context_length``.

        Returns:
            (A, D).

        Raises:
            ValueError: tokens of another shape or dtype.
        """
        self._check_tokens(tokens, "(A, L)")
        return self.text_tower.features(self.clip, tokens)

    def encode_words(self, tokens: Tensor) -> Tensor:
        """Features at every token, projected as the one that the text's is taken at, not
        normalized.

        Args:
            tokens: as in :meth:`encode_text`.

        Returns:
            (A, L, D), for :meth:`texts_of`.

        Raises:
            ValueError: tokens of another shape or dtype; a text tower whose words have no features
                in the space of texts.
        """
        self._check_tokens(tokens, "(A, L)")
        return self._token_tower().words(self.clip, tokens)

    def texts_of(self, tokens: Tensor, word_features: Tensor) -> Texts:
        """Texts whose words are their tokens without padding, up to the end of the text where
        CLIP marks it.

        Args:
            tokens: (A, L).
            word_features: (A, L, D), of :meth:`encode_words`.
        """
        return self._token_tower().texts(tokens, word_features)

    def _token_tower(self) -> TokenTower:
        if not isinstance(self.text_tower, TokenTower):
            raise ValueError(f"there are no features of words: {self.text_tower.no_words}")
        return self.text_tower

    def encode_images(self, images: Tensor) -> Tensor:
        """Image features (N, D), not normalized, of normalized images (N, 3, H, W)."""
        return pooled(self.clip.visual(images))

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
            features = self.encode_images(video.flatten(0, 1)).unflatten(0, frame_mask.shape)
        else:
            valid = self.encode_images(video[frame_mask])
            features = valid.new_zeros(*frame_mask.shape, self.dim)
            features[frame_mask] = valid
        if self.temporal is not None:
            features = self.temporal(features, frame_mask, self.padding)
        return features

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
        most, exactly = self.max_context_length, self.text_tower.padding_counts
        if tokens.shape[-1] > most or (exactly and tokens.shape[-1] < most):
            raise ValueError(
                f"tokens has {tokens.shape[-1]} tokens per text, the model takes {most}"
                f"{', padding included, which counts' if exactly else ''}"
            )
