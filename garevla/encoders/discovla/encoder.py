"""DiscoVLA's encoder around an open_clip ViT CLIP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn

from garevla.encoders.clip import ClipEncoder
from garevla.encoders.discovla import weights
from garevla.encoders.discovla.adapters import BlockAdapter, PackedFrames
from garevla.encoders.text_towers import project, text_modules
from garevla.utils.validation import as_frame_mask

_Self = TypeVar("_Self", bound="DiscoVLAEncoder")


class DiscoVLAEncoder(ClipEncoder):
    """A frozen CLIP with LoRA in every block and image–video feature fusion in the last ones.

    DiscoVLA (CVPR 2025). All frames of a video are encoded together: in the last vision blocks
    the CLS of each frame attends to all tokens of all valid frames. The pseudo captions of a
    video, one per frame, are fused likewise in the last text blocks; real captions pass the same
    blocks one by one. The logit scale is CLIP's and stays as it is, as published.

    Only the adapters train: 561,200 parameters for ViT-B/32 and ViT-B/16. CLIP itself stays in
    evaluation mode.

    Fusion knows no order of frames. ``temporal_layers`` puts GARE's temporal transformer behind
    it, which does; it trains too, and is saved and loaded with the adapters.

    Args:
        model_name, pretrained, temporal_layers, max_frames, context_length, load_weights: as in
            :class:`~garevla.encoders.ClipEncoder`; published without temporal layers.
        lora_rank: rank of the update of each attention's query, key and value projection.
        adapter_width: width of the fusion's adapters.
        vision_fusion_blocks, text_fusion_blocks: how many of the last blocks fuse; 0 for none.

    Attributes:
        base_model: name of the CLIP model that the adapters belong to.
        vision_adapters, text_adapters: one :class:`BlockAdapter` per block.
        is_merged: whether :meth:`merge_lora` was called.

    Raises:
        ValueError: a model that cannot be adapted, or arguments that do not fit it.
        FileNotFoundError, PretrainedWeightsError: as in :class:`~garevla.encoders.ClipEncoder`.
    """

    _adapts = True

    def __init__(
        self,
        model_name: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        *,
        lora_rank: int = 8,
        adapter_width: int = 8,
        vision_fusion_blocks: int = 4,
        text_fusion_blocks: int = 2,
        temporal_layers: int = 0,
        max_frames: int = 12,
        context_length: int = 32,
        load_weights: bool = True,
    ) -> None:
        super().__init__(
            model_name,
            pretrained,
            temporal_layers=temporal_layers,
            max_frames=max_frames,
            context_length=context_length,
            frozen=True,
            load_weights=load_weights,
        )
        if self.temporal is not None:
            # Copies of CLIP's text blocks, with their faint positions, are slow to see any order
            # in features that hardly change.
            self.temporal.reset_parameters()
        if lora_rank < 1 or adapter_width < 1:
            raise ValueError(
                "lora_rank and adapter_width must be at least 1, "
                f"got {lora_rank} and {adapter_width}"
            )
        # A file's folder says nothing about the model, and differs between machines.
        is_file = model_name.endswith(".json")
        self.base_model = Path(model_name).stem if is_file else model_name
        self.vision_adapters = _block_adapters(
            "vision_fusion_blocks",
            self.clip.visual.transformer,
            vision_fusion_blocks,
            lora_rank,
            adapter_width,
        )
        self.text_adapters = _block_adapters(
            "text_fusion_blocks",
            text_modules(self.clip).transformer,
            text_fusion_blocks,
            lora_rank,
            adapter_width,
        )

    @property
    def is_merged(self) -> bool:
        """Whether LoRA is part of CLIP's weights."""
        return any(adapter.lora is None for adapter in self.vision_adapters)

    def train(self: _Self, mode: bool = True) -> _Self:
        """Training or evaluation mode; CLIP itself stays in evaluation mode.

        Raises:
            RuntimeError: training mode after :meth:`merge_lora`.
        """
        if mode and self.is_merged:
            raise RuntimeError(
                "LoRA is merged into CLIP's weights, which do not train; build the encoder anew "
                "and load the adapters to train it"
            )
        return super().train(mode)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features at EOT, not normalized; without fusion, each text for itself.

        Args:
            tokens: (A, L) int64, L at most what the model was made for.

        Returns:
            (A, D).

        Raises:
            ValueError: tokens of another shape or dtype.
        """
        self._check_tokens(tokens, "(A, L)")
        return self._encode_tokens(tokens, None)

    def encode_words(self, tokens: Tensor) -> Tensor:
        """As :meth:`ClipEncoder.encode_words`, each text for itself."""
        self._check_tokens(tokens, "(A, L)")
        return self._encode_tokens(tokens, None, only_readout=False)

    def encode_pseudo_captions(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """Features of the captions of each frame of a video, fused over the video.

        Args:
            tokens: (B, F, L) int64, one caption per frame, L at most what the model was made for.
            frame_mask: (B, F), 1 or True for a valid frame. Captions of padded frames take no
                part, whatever they hold.

        Returns:
            (B, F, D), not normalized, exactly 0 at padded frames.

        Raises:
            ValueError: shapes or dtypes that do not fit; a video with no valid frame.
        """
        self._check_tokens(tokens, "(B, F, L)")
        frame_mask = as_frame_mask(frame_mask, tokens, wait=True)
        valid = tokens[frame_mask]
        frames = PackedFrames(frame_mask, len(valid))
        return frames.pad(self._encode_tokens(valid, frames))

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features, not normalized, fused over each video; only valid frames are computed.

        Args:
            video: (B, F, 3, H, W) floating point, normalized, H = W = ``image_size``.
            frame_mask: (B, F), 1 or True for a valid frame. Padded frames take no part,
                whatever they hold.

        Returns:
            (B, F, D), exactly 0 at padded frames.

        Raises:
            ValueError: shapes or dtypes that do not fit; a video with no valid frame.
        """
        frame_mask = self._check_video(video, frame_mask)
        visual = self.clip.visual
        images = video[frame_mask]
        frames = PackedFrames(frame_mask, len(images))
        patches = visual.conv1(images).flatten(2).mT
        cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([cls, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        readout = torch.zeros(len(images), dtype=torch.int64, device=x.device)
        x = _run_blocks(
            visual.transformer, self.vision_adapters, visual.ln_pre(x), readout, False, frames
        )
        features = frames.pad(project(visual.ln_post(x), visual.proj))
        return features if self.temporal is None else self.temporal(features, frame_mask)

    def _encode_tokens(
        self, tokens: Tensor, frames: PackedFrames | None, *, only_readout: bool = True
    ) -> Tensor:
        """Features (N, D) at EOT of texts (N, L), or (N, L, D) at every token."""
        text, ends = text_modules(self.clip), self._token_tower().readout(tokens)
        x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
        x = _run_blocks(text.transformer, self.text_adapters, x, ends, True, frames, only_readout)
        return project(text.ln_final(x), text.text_projection)

    @torch.no_grad()
    def merge_lora(self: _Self) -> _Self:
        """Add LoRA to CLIP's weights, for faster inference with equal results up to rounding.

        Cannot be undone: the encoder is then in evaluation mode, and neither trains nor saves
        adapters any more.
        """
        for transformer, adapters in (
            (self.clip.visual.transformer, self.vision_adapters),
            (text_modules(self.clip).transformer, self.text_adapters),
        ):
            for block, module in zip(transformer.resblocks, adapters, strict=True):
                adapter = cast(BlockAdapter, module)
                if adapter.lora is not None:
                    block.attn.in_proj_weight += adapter.lora.weight()
                    adapter.lora = None
        return self.requires_grad_(False).eval()

    def load_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights under the published names (``clip.*``, adapters ``*.TVPt_*``).

        Names may begin with ``module.``. CLIP's own weights may be left out; the adapters' may
        not. There are none of a temporal transformer, which keeps its weights.

        Raises:
            KeyError: weights are missing.
            ValueError: names that are not the published ones, or weights of another shape.
            RuntimeError: LoRA is merged.
        """
        weights.load_official(self, state_dict)

    def save_adapters(self, path: str | os.PathLike[str]) -> None:
        """Write the adapters alone to a safetensors file, whole or not at all.

        Raises:
            RuntimeError: LoRA is merged.
        """
        weights.save_adapters(self, path)

    def load_adapters(self, path: str | os.PathLike[str]) -> None:
        """Load adapters that :meth:`save_adapters` wrote.

        Raises:
            FileNotFoundError: no such file.
            AdaptersError: a damaged or foreign file, or adapters of another model, of other
                pretrained weights or of another size.
            RuntimeError: LoRA is merged.
        """
        weights.load_adapters(self, path)


def _block_adapters(
    name: str, transformer: Transformer, fusion_blocks: int, lora_rank: int, adapter_width: int
) -> nn.ModuleList:
    num_blocks = len(transformer.resblocks)
    if not 0 <= fusion_blocks <= num_blocks:
        raise ValueError(f"{name} must be between 0 and {num_blocks}, got {fusion_blocks}")
    first = num_blocks - fusion_blocks
    return nn.ModuleList(
        BlockAdapter(transformer.width, lora_rank, adapter_width if index >= first else None)
        for index in range(num_blocks)
    )


def _run_blocks(
    transformer: Transformer,
    adapters: nn.ModuleList,
    x: Tensor,
    readout: Tensor,
    causal: bool,
    frames: PackedFrames | None,
    only_readout: bool = True,
) -> Tensor:
    """All blocks on x (N, T, width); returns the readout tokens (N, width), or all of x."""
    last = len(adapters) - 1
    for index, (block, adapter) in enumerate(zip(transformer.resblocks, adapters, strict=True)):
        reads = only_readout and index == last
        x = adapter(block, x, readout, causal=causal, only_readout=reads, frames=frames)
    return x.squeeze(1) if only_readout else x
