"""What DiscoVLA adds to a frozen transformer block: LoRA, and image–video feature fusion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn


class LoRA(nn.Module):
    """Low-rank update of a block's fused query, key and value projection, at scale 1.

    ``a`` (rank, width) starts as published, Kaiming-uniform, and ``b`` (3·width, rank) at zero.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, width))
        self.b = nn.Parameter(torch.zeros(3 * width, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the projection of x (..., width): (..., 3·width)."""
        return F.linear(F.linear(x, self.a), self.b)

    def weight(self) -> Tensor:
        """The update as a full matrix (3·width, width)."""
        return self.b @ self.a


class FusionAdapter(nn.Sequential):
    """Bottleneck from the image-level to the video-level feature; starts at exactly 0."""

    def __init__(self, width: int, adapter_width: int) -> None:
        down, up = nn.Linear(width, adapter_width), nn.Linear(adapter_width, width)
        nn.init.xavier_uniform_(down.weight)
        nn.init.normal_(down.bias, std=1e-6)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        super().__init__()
        self.down, self.activation, self.up = down, QuickGELU(), up


class PackedFrames:
    """Translates between the N valid frames of B videos, packed, and B × F with padding.

    Args:
        frame_mask: (B, F) bool, True for a valid frame.
        num_valid: N.
    """

    def __init__(self, frame_mask: Tensor, num_valid: int) -> None:
        self.shape = frame_mask.shape
        # By position, not by mask: how many there are is then known to a compiler.
        self.positions = None
        if num_valid < frame_mask.numel():
            self.positions = frame_mask.flatten().nonzero().squeeze(1)

    @property
    def has_padding(self) -> bool:
        """Whether there is a padded frame."""
        return self.positions is not None

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) → (B, F, ...), zeros (False) at padded frames."""
        if self.positions is not None:
            padded = x.new_zeros(self.shape.numel(), *x.shape[1:])
            x = padded.index_copy(0, self.positions, x)
        return x.unflatten(0, self.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(B, F, ...) → (N, ...)."""
        x = x.flatten(0, 1)
        return x if self.positions is None else x[self.positions]


class BlockAdapter(nn.Module):
    """Runs one frozen open_clip block with its LoRA and, where it has one, its fusion.

    Every sequence has a *readout* token: CLS of a frame, EOT of a caption. Without fusion the
    block is CLIP's own. With fusion the readout's attention output becomes

        attention of the readout over all tokens of all frames of its video + adapter(CLIP's own)

    with the same queries, keys, values and output projection (DiscoVLA, image–video features
    fusion). There are only F such queries, hence F × F·T scores a video and head.

    Args:
        width: of the block.
        lora_rank: rank of the update of the attention's projections.
        adapter_width: width of the fusion's adapter; None for a block without fusion.
    """

    def __init__(self, width: int, lora_rank: int, adapter_width: int | None) -> None:
        super().__init__()
        self.lora: LoRA | None = LoRA(width, lora_rank)
        self.fusion = None if adapter_width is None else FusionAdapter(width, adapter_width)

    def forward(
        self,
        block: ResidualAttentionBlock,
        x: Tensor,
        readout: Tensor,
        *,
        causal: bool,
        only_readout: bool,
        frames: PackedFrames | None = None,
    ) -> Tensor:
        """Apply ``block`` to N sequences of T tokens.

        Args:
            block: the frozen ``open_clip`` residual block.
            x: (N, T, width).
            readout: (N,) int64, position of each sequence's readout token. In causal sequences
                what follows it is padding.
            causal: whether tokens see only those before them.
            only_readout: compute this one token of each sequence and no other.
            frames: which video the sequences belong to; None leaves fusion out.

        Returns:
            (N, T, width), or (N, 1, width) with ``only_readout``.
        """
        num_heads, project_out = block.attn.num_heads, block.attn.out_proj
        rows = torch.arange(len(x), device=x.device)
        query, key, value = self._project(block, block.ln_1(x))
        readout_query = query[rows, readout].unsqueeze(1)
        visible = None
        if causal:
            visible = torch.arange(x.shape[1], device=x.device) <= readout.unsqueeze(1)
        if only_readout:
            x = x[rows, readout].unsqueeze(1)
            mask = None if visible is None else visible[:, None, None]
            attended = _attention(readout_query, key, value, num_heads, mask)
        else:
            attended = _attention(query, key, value, num_heads, causal=causal)
        attended = project_out(attended)
        if self.fusion is not None and frames is not None:
            position = torch.zeros_like(readout) if only_readout else readout
            video = _video_attention(readout_query, key, value, num_heads, visible, frames)
            fused = project_out(video) + self.fusion(attended[rows, position])
            attended = attended.index_put((rows, position), fused)
        x = x + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def _project(self, block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (N, T, width) each."""
        projected = F.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
        if self.lora is not None:
            projected = projected + self.lora(x)
        return projected.chunk(3, dim=-1)


def _video_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    visible: Tensor | None,
    frames: PackedFrames,
) -> Tensor:
    """Attention of each frame's one query over all tokens of its video.

    query (N, 1, width), key and value (N, T, width), visible (N, T) bool → (N, width).
    """
    mask = None
    if visible is not None or frames.has_padding:
        if visible is None:
            visible = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device)
        mask = frames.pad(visible).flatten(1)[:, None, None]
    attended = _attention(
        frames.pad(query).flatten(1, 2),
        frames.pad(key).flatten(1, 2),
        frames.pad(value).flatten(1, 2),
        num_heads,
        mask,
    )
    return frames.pack(attended)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Multi-head attention of query (N, Q, width) to key and value (N, K, width): (N, Q, width).

    mask is (N, 1, Q or 1, K) bool, True where a key takes part.
    """
    query, key, value = (
        x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)
