"""Temporal transformer over a video's frame features (CLIP4Clip's sequential transformer)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from open_clip.transformer import LayerNorm, QuickGELU, Transformer
from torch import Tensor, nn

from garevla.utils.padding import Padding
from garevla.utils.weights import misfit


class TemporalTransformer(nn.Module):
    """Lets the frames of a video see each other: ``frames + transformer(frames + positions)``.

    The similarity calculator "seqTransf" of CLIP4Clip (Luo et al., 2022), which GARE trains on
    top of CLIP: pre-norm blocks with QuickGELU and full attention between the valid frames. As
    published, its LayerNorms' epsilon is 1e-12, which is not CLIP's.

    Args:
        dim: D, the feature dimension. Heads are D / 64, at least one.
        layers: number of transformer blocks; published: 4.
        max_frames: number of frame positions.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, dim: int = 512, layers: int = 4, max_frames: int = 12) -> None:
        super().__init__()
        for name, value in {"dim": dim, "layers": layers, "max_frames": max_frames}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.dim = dim
        self.max_frames = max_frames
        self.num_heads = max(n for n in range(1, max(1, dim // 64) + 1) if dim % n == 0)
        self.position_embedding = nn.Parameter(torch.empty(max_frames, dim))
        self.transformer = Transformer(
            dim,
            layers,
            self.num_heads,
            act_layer=QuickGELU,
            norm_layer=functools.partial(LayerNorm, eps=1e-12),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: weights N(0, 1/D), positions N(0, 0.5²), biases 0, LayerNorms the identity.

        Frame features have about 1 an element; positions much smaller than that would leave the
        order of the frames unseen for long.
        """
        nn.init.normal_(self.position_embedding, std=0.5)
        for block in self.transformer.resblocks:
            for name, parameter in block.named_parameters():
                if name.startswith("ln_"):
                    continue
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=self.dim**-0.5)
                else:
                    nn.init.zeros_(parameter)

    def fits(self, blocks: Sequence[nn.Module]) -> bool:
        """Whether :meth:`copy_from_text` can take weights of these blocks."""
        return misfit(self.transformer.resblocks[0], blocks[0].state_dict()) is None

    @torch.no_grad()
    def copy_from_text(self, blocks: Sequence[nn.Module], positional_embedding: Tensor) -> None:
        """Published start: copy CLIP's first text blocks and its first text positions.

        Blocks and positions beyond those that the text tower has keep their random start.

        Args:
            blocks: the text tower's residual blocks, of width D.
            positional_embedding: (L, D).

        Raises:
            ValueError: blocks of another kind or size.
        """
        shared = min(self.max_frames, len(positional_embedding))
        if positional_embedding.shape[1:] != (self.dim,):
            raise ValueError(
                f"text positions must have shape (L, {self.dim}), "
                f"got {tuple(positional_embedding.shape)}"
            )
        self.position_embedding[:shared].copy_(positional_embedding[:shared])
        for block, text_block in zip(self.transformer.resblocks, blocks, strict=False):
            try:
                block.load_state_dict(text_block.state_dict())
            except RuntimeError as error:
                raise ValueError(
                    f"the text tower's blocks do not fit the temporal transformer's: {error}"
                ) from error

    def forward(
        self, frame_features: Tensor, frame_mask: Tensor, padding: Padding = "ignored"
    ) -> Tensor:
        """Frame features in their temporal context.

        Args:
            frame_features: (B, F, D), F at most ``max_frames``.
            frame_mask: (B, F), 1 or True for a valid frame, at least one per video. Padded
                frames take no part, whatever they hold.
            padding: ``"published"``: padded frames, too, look at the valid ones.

        Returns:
            (B, F, D), exactly 0 at padded frames, if these are ignored.

        Raises:
            ValueError: more frames than positions.
        """
        batch, frames, _ = frame_features.shape
        if frames > self.max_frames:
            raise ValueError(
                f"frame_features has {frames} frames, the temporal transformer {self.max_frames} "
                "positions; raise max_frames"
            )
        padded = frame_mask == 0
        # Weight 0 is not enough where padding holds NaN.
        left_out = torch.zeros_like(padded) if padding == "published" else padded
        seen = frame_features.masked_fill(left_out.unsqueeze(-1), 0.0)
        x = seen + self.position_embedding[:frames].to(seen.dtype)
        bias = torch.zeros(batch, 1, frames, dtype=x.dtype, device=x.device)
        bias = bias.masked_fill(padded.unsqueeze(1), float("-inf")).expand(-1, frames, -1)
        x = self.transformer(x, attn_mask=bias.repeat_interleave(self.num_heads, dim=0))
        return (seen + x).masked_fill(left_out.unsqueeze(-1), 0.0)
