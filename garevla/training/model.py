"""The trained model: an encoder, and the GARE head on its features."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from garevla import CrossAttentionPsi, GareLoss, GareLossOutput, gare_similarity
from garevla.encoders import ClipEncoder
from garevla.training.checkpoint import CheckpointError, load_checkpoint
from garevla.training.config import ConfigError, LossConfig, TrainConfig, config_from_dict


class RetrievalModel(nn.Module):
    """Encodes texts and videos, scores all pairs, and computes the training loss.

    The encoder may run under autocast; similarity and loss are in float32 all the same.

    Args:
        encoder: text and frame features of dimension D.
        psi: the increment network for D.
        loss: settings of the loss; its ``pool_temperature`` and ``backend`` also hold for the
            similarity.

    Raises:
        ValueError: ``psi`` is made for another dimension.
    """

    def __init__(
        self, encoder: ClipEncoder, psi: CrossAttentionPsi, loss: LossConfig | None = None
    ) -> None:
        super().__init__()
        if psi.dim != encoder.dim:
            raise ValueError(f"psi is for dimension {psi.dim}, the encoder's is {encoder.dim}")
        loss = loss or LossConfig()
        self.encoder = encoder
        self.gare_loss = GareLoss(
            psi,
            pool_temperature=loss.pool_temperature,
            alpha=loss.alpha,
            beta=loss.beta,
            lambda_direction=loss.lambda_direction,
            lambda_trust=loss.lambda_trust,
            trust_floor=loss.trust_floor,
            backend=loss.backend,
            bottleneck_reduction=loss.bottleneck_reduction,
        )

    @property
    def psi(self) -> CrossAttentionPsi:
        """The increment network."""
        return self.gare_loss.psi

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (A, L) int64; see :meth:`ClipEncoder.tokenize`."""
        return self.encoder.tokenize(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features (A, D) of tokens (A, L), not normalised."""
        return self.encoder.encode_text(tokens)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features (B, F, D) of videos (B, F, 3, H, W), not normalised."""
        return self.encoder.encode_video(video, frame_mask)

    def similarity(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """GARE similarity (A, B); see :func:`garevla.gare_similarity`."""
        return gare_similarity(
            text_features,
            frame_features,
            self.psi,
            frame_mask,
            pool_temperature=self.gare_loss.pool_temperature,
            backend=self.gare_loss.backend,
        )

    def loss(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
    ) -> GareLossOutput:
        """Loss of a batch whose text i belongs to video i; see :class:`garevla.GareLoss`."""
        return self.gare_loss(text_features, frame_features, self.encoder.logit_scale, frame_mask)

    def forward(self, tokens: Tensor, video: Tensor, frame_mask: Tensor) -> GareLossOutput:
        """Loss of a batch of pairs: tokens (B, L), video (B, F, 3, H, W), frame_mask (B, F)."""
        return self.loss(self.encode_text(tokens), self.encode_video(video, frame_mask), frame_mask)


def build_model(config: TrainConfig, *, pretrained: bool = True) -> RetrievalModel:
    """Build the model of a run.

    Args:
        config: the settings.
        pretrained: load the pretrained weights that the settings name; False where a checkpoint
            is about to replace all weights, so that the former need not be there any more.

    Raises:
        ValueError, PretrainedWeightsError: as :class:`garevla.encoders.ClipEncoder`.
    """
    settings = config.model
    encoder = ClipEncoder(
        settings.name,
        settings.pretrained if pretrained else None,
        temporal_layers=settings.temporal_layers,
        max_frames=config.data.max_frames,
        context_length=settings.context_length,
    )
    psi = CrossAttentionPsi(
        encoder.dim,
        settings.psi_heads,
        settings.psi_dropout,
        dropout_mode=settings.psi_dropout_mode,
    )
    return RetrievalModel(encoder, psi, config.loss)


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
    state = load_checkpoint(checkpoint)
    try:
        config = config_from_dict(TrainConfig, state["config"])
        model = build_model(config, pretrained=False)
        load_weights(model, state["model"])
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    return model.to(device).eval(), config


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        CheckpointError: weights of another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint holds another model: {error}") from error
