"""The trained model: an encoder, and the loss and similarity on its features."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from garevla import (
    CrossAttentionPsi,
    DiscoVLALoss,
    DiscoVLALossOutput,
    GapMLPPsi,
    GareDiscoVLALoss,
    GareLoss,
    GareLossOutput,
    Texts,
)
from garevla.encoders import ClipEncoder, DiscoVLAEncoder
from garevla.training.checkpoint import CheckpointError, load_checkpoint
from garevla.training.chunks import in_chunks
from garevla.training.config import ConfigError, ModelConfig, TrainConfig, config_from_dict
from garevla.utils.weights import misfit

if TYPE_CHECKING:
    from garevla.head.sharding import Group


class RetrievalModel(nn.Module):
    """Encodes texts and videos, scores all pairs, and computes the training loss.

    The encoder may run under autocast; similarity and loss are in float32 all the same.

    Args:
        encoder: text and frame features of dimension D.
        loss: of those features; the similarity is the loss's.
        encoder_chunk: rows that the loss's forward pass encodes at once, whose activations are
            computed again in the backward pass; 0: all, kept.

    Raises:
        ValueError: ψ is made for another dimension, or for other padding than the encoder's; videos
            are to be corrected, and words have no features.
    """

    def __init__(
        self, encoder: ClipEncoder, loss: GareLoss | DiscoVLALoss, *, encoder_chunk: int = 0
    ) -> None:
        super().__init__()
        if isinstance(loss, GareLoss) and loss.psi.dim != encoder.dim:
            raise ValueError(f"psi is for dimension {loss.psi.dim}, the encoder's is {encoder.dim}")
        if isinstance(loss, GareLoss) and loss.psi.reads_padding != (encoder.padding != "ignored"):
            raise ValueError(
                f"the encoder's padding is {encoder.padding!r}, and psi reads "
                f"{'it' if loss.psi.reads_padding else 'none'}; published scores need both"
            )
        self.encoder = encoder
        self.criterion = loss
        self.encoder_chunk = encoder_chunk
        self.needs_words = isinstance(loss, GareLoss) and loss.corrects == "video"
        if self.needs_words and (reason := encoder.text_tower.no_words) is not None:
            raise ValueError(f"videos cannot be corrected from the words of texts: {reason}")

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (A, L) int64; see :meth:`ClipEncoder.tokenize`."""
        return self.encoder.tokenize(texts)

    def encode_text(self, tokens: Tensor) -> Tensor | Texts:
        """Text features (A, D) of tokens (A, L), not normalized; with those of their words, where
        videos are corrected."""
        return self._of_texts(tokens, self._encode_tokens(tokens))

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """Features of texts (A, D), or of all their tokens (A, L, D)."""
        if self.needs_words:
            return self.encoder.encode_words(tokens)
        return self.encoder.encode_text(tokens)

    def _of_texts(self, tokens: Tensor, features: Tensor) -> Tensor | Texts:
        return self.encoder.texts_of(tokens, features) if self.needs_words else features

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features (B, F, D) of videos (B, F, 3, H, W), not normalized."""
        return self.encoder.encode_video(video, frame_mask)

    def similarity(
        self,
        text_features: Tensor | Texts,
        frame_features: Tensor,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Similarity (A, B), as the loss trains it.

        Args:
            text_features: of :meth:`encode_text`.
            frame_features: (B, F, D), not normalized.
            frame_mask: (B, F), 1 or True for a valid frame.

        Raises:
            TypeError, ValueError, BackendUnavailableError: as :meth:`garevla.GareLoss.similarity`.
        """
        return self.criterion.similarity(cast(Tensor, text_features), frame_features, frame_mask)

    def forward(
        self,
        tokens: Tensor,
        video: Tensor,
        frame_mask: Tensor,
        pseudo_caption_tokens: Tensor | None = None,
    ) -> GareLossOutput | DiscoVLALossOutput:
        """Loss of a batch of pairs.

        Args:
            tokens: (B, L).
            video: (B, F, 3, H, W); with ``encoder_chunk`` it may lie on the CPU.
            frame_mask: (B, F).
            pseudo_caption_tokens: (B, F, L), for DiscoVLA's frame-level terms.

        Raises:
            TypeError: pseudo captions given to an encoder that has no use for them.
        """
        scale = self.encoder.logit_scale

        def encode(encoder: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            return in_chunks(encoder, self.encoder_chunk, *inputs, device=scale.device)

        text_features = self._of_texts(tokens, encode(self._encode_tokens, tokens))
        frame_features = encode(self.encode_video, video, frame_mask)
        if pseudo_caption_tokens is None:
            return self.criterion(text_features, frame_features, scale, frame_mask)
        if not isinstance(self.encoder, DiscoVLAEncoder):
            raise TypeError("pseudo captions are for DiscoVLA's encoder and losses")
        captions = encode(self.encoder.encode_pseudo_captions, pseudo_caption_tokens, frame_mask)
        return self.criterion(text_features, frame_features, scale, frame_mask, captions)


def build_model(
    config: TrainConfig, *, pretrained: bool = True, group: Group = None
) -> RetrievalModel:
    """Build the model of a run.

    Args:
        config: the settings.
        pretrained: load the pretrained weights that the settings name; False where a checkpoint
            is about to replace all weights, so that the former need not be there any more.
        group: processes that share each batch, as in :class:`garevla.GareLoss`.

    Raises:
        ValueError, PretrainedWeightsError: as :class:`garevla.encoders.ClipEncoder`.
    """
    settings = config.model
    assert settings.temporal_layers is not None  # ModelConfig put its default in
    adapted = settings.mode != "gare"
    adaptation: dict[str, Any] = {
        "lora_rank": settings.lora_rank,
        "adapter_width": settings.adapter_width,
        "vision_fusion_blocks": settings.vision_fusion_blocks,
        "text_fusion_blocks": settings.text_fusion_blocks,
    }
    encoder = (DiscoVLAEncoder if adapted else ClipEncoder)(
        settings.name,
        settings.pretrained,
        temporal_layers=settings.temporal_layers,
        max_frames=config.data.max_frames,
        context_length=settings.context_length,
        load_weights=pretrained,
        **(adaptation if adapted else {"frozen": settings.freeze_clip}),
    )
    loss = _build_loss(config, encoder.dim, group)
    return RetrievalModel(encoder, loss, encoder_chunk=config.run.encoder_chunk)


def _build_loss(config: TrainConfig, dim: int, group: Group) -> GareLoss | DiscoVLALoss:
    settings = config.loss
    frame_level: dict[str, Any] = {
        "frame_weight": settings.frame_weight,
        "distillation_weight": settings.distillation_weight,
        "distillation": settings.distillation,
    }
    if config.model.mode == "discovla":
        return DiscoVLALoss(**frame_level, group=group)
    psi = _build_psi(config.model, dim)
    gare: dict[str, Any] = {
        "pool_temperature": settings.pool_temperature,
        "alpha": settings.alpha,
        "beta": settings.beta,
        "lambda_direction": settings.lambda_direction,
        "direction_samples": settings.direction_samples,
        "lambda_trust": settings.lambda_trust,
        "trust_floor": settings.trust_floor,
        "backend": settings.backend,
        "bottleneck_reduction": settings.bottleneck_reduction,
        "corrects": config.model.corrects,
        "label_smoothing": settings.label_smoothing,
        "group": group,
    }
    if config.model.mode == "gare":
        return GareLoss(psi, **gare)
    return GareDiscoVLALoss(psi, **frame_level, **gare)


def _build_psi(settings: ModelConfig, dim: int) -> CrossAttentionPsi | GapMLPPsi:
    shared: dict[str, Any] = {"dropout": settings.psi_dropout, "init": settings.psi_init}
    if settings.psi == "gap_mlp":
        return GapMLPPsi(dim, settings.psi_hidden_dim, settings.psi_activation, **shared)
    return CrossAttentionPsi(
        dim, settings.psi_heads, dropout_mode=settings.psi_dropout_mode, **shared
    )


def load_model(
    checkpoint: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[RetrievalModel, TrainConfig]:
    """Load a trained model, in evaluation mode, and the settings it was trained with.

    Args:
        checkpoint: ``best.pt`` or ``last.pt`` of a run.
        device: where to put the model.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`garevla.training.checkpoint.load_checkpoint`;
            a checkpoint whose weights do not fit its settings.
    """
    state = load_checkpoint(checkpoint, ("config", "model"))
    try:
        config = config_from_dict(TrainConfig, state["config"])
        model = build_model(config, pretrained=False)
        load_weights(model, state["model"])
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    return model.to(device).eval(), config


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        CheckpointError: weights of another model.
    """
    reason = misfit(model, weights)
    if reason is not None:
        raise CheckpointError(f"the checkpoint holds another model: {reason}")
    model.load_state_dict(weights)
