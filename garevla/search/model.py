"""The model of an index: a trained checkpoint or a plain open_clip model, and how it is told."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.discovla.losses import DiscoVLALoss
from garevla.encoders import ClipEncoder
from garevla.encoders.model_config import context_length, load_config
from garevla.search.format import LibraryError
from garevla.training.model import RetrievalModel, load_model

# Weights that nothing was trained for are the same in every process.
_SEED = 0


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        model: the path of a checkpoint of ``garevla train``, or an open_clip name, the path of an
            open_clip JSON model config, or ``tiny``.
        pretrained: of an open_clip model, as in :class:`garevla.encoders.ClipEncoder`.
        digest: of the weights; empty where it is not known yet.
    """

    model: str
    pretrained: str | None = None
    digest: str = ""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the model is one that ``garevla train`` made."""
        return Path(self.model).suffix == ".pt"

    @classmethod
    def of(cls, model: str, pretrained: str | None) -> ModelSource:
        """With paths that hold from any working directory."""
        if Path(model).suffix in (".pt", ".json"):
            model = os.path.abspath(model)
        if pretrained is not None and Path(pretrained).is_file():
            pretrained = os.path.abspath(pretrained)
        return cls(model, pretrained)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the index."""
        return asdict(self)

    def __str__(self) -> str:
        return self.model + (f" with weights {self.pretrained}" if self.pretrained else "")


@dataclass(frozen=True)
class SearchModel:
    """A model that encodes and scores.

    Attributes:
        source: with the digest of the weights.
        model: in evaluation mode.
        sampling: how it was trained to see videos.
        bf16: encode under bfloat16 autocast.
    """

    source: ModelSource
    model: RetrievalModel
    sampling: Sampling
    bf16: bool = False

    @property
    def dim(self) -> int:
        """D of the features."""
        return self.model.encoder.dim

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.encoder.logit_scale.device

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Text features (A, D) float32, not normalized."""
        tokens = self.model.tokenize(texts).to(self.device)
        with self._autocast():
            features = self.model.encode_text(tokens)
        assert isinstance(features, Tensor)  # a model that needs words was refused
        return features.float()

    @torch.no_grad()
    def encode_frames(self, crops: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features (B, F, D) float32 on the CPU, of crops (B, F, 3, H, W) uint8."""
        transform = self.model.encoder.video_transform()
        mask = frame_mask.to(self.device)
        video = torch.zeros(crops.shape, device=self.device)
        video[mask] = transform.normalize(crops.to(self.device)[mask])
        with self._autocast():
            return self.model.encode_video(video, mask).float().cpu()

    @torch.no_grad()
    def scores(self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor) -> Tensor:
        """Exact scores (A, B) float32 on the CPU, as training and evaluation compute them."""
        arguments = (text_features, frame_features, frame_mask)
        return self.model.similarity(*(each.to(self.device) for each in arguments)).float().cpu()

    def video_vector(self, frames: np.ndarray) -> np.ndarray:
        """The vector (D,) of a video's sampled frames (n, height, width, 3) uint8."""
        crops = self.model.encoder.video_transform().crop(frames)[None]
        mask = torch.ones(crops.shape[:2], dtype=torch.bool)
        return segment_vectors(self.encode_frames(crops, mask), mask)[0].numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def segment_vectors(frame_features: Tensor, frame_mask: Tensor) -> Tensor:
    """Vectors (B, D) of length 1 whose inner products with texts find candidates.

    The mean of the frames over their lengths: its cosine is the exact score of a model without a
    GARE head.
    """
    frames = F.normalize(frame_features, dim=-1) * frame_mask.unsqueeze(-1)
    return F.normalize(frames.sum(dim=1), dim=-1)


def load_search_model(
    source: ModelSource,
    device: torch.device,
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    bf16: bool = False,
) -> SearchModel:
    """Load a model, and compare its weights with those that an index was made with.

    Args:
        source: with the digest of the weights expected, or none.
        device: where it computes.
        sampling: how a plain open_clip model sees videos; a checkpoint knows.
        bf16: encode under bfloat16 autocast.

    Raises:
        LibraryError: other weights than those expected; a model that needs texts' words.
        FileNotFoundError, CheckpointError, ValueError, PretrainedWeightsError: as
            :func:`garevla.training.model.load_model` and :class:`garevla.encoders.ClipEncoder`.
    """
    if source.is_checkpoint:
        model, config = load_model(source.model, device)
        if model.needs_words:
            raise LibraryError(
                f"{source.model} corrects videos by the words of a text (model.corrects), and an "
                "index searches with text features alone"
            )
        sampling = config.data.frame_sampling
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            encoder = ClipEncoder(
                source.model,
                source.pretrained,
                temporal_layers=0,
                max_frames=sampling.max_frames,
                context_length=context_length(load_config(source.model)[0]),
            )
        model = RetrievalModel(encoder, DiscoVLALoss()).to(device).eval()
    digest = weights_digest(model)
    if source.digest and digest != source.digest:
        raise LibraryError(
            f"the weights of {source} are not those that the index was made with (digest "
            f"{digest[:12]}, then {source.digest[:12]}): bring those back, or make another index"
        )
    known = ModelSource(source.model, source.pretrained, digest)
    return SearchModel(known, model, sampling, bf16)


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, by their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
