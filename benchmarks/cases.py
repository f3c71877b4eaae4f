"""What is measured: one case is a workload, its passes, and the shapes; and its random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from garevla import CrossAttentionPsi, GapMLPPsi

LOGIT_SCALE = 50.0
# Videos per text in direction "sampled".
DIRECTION_SAMPLES = 32
# Inputs take turns so that none is still in a cache, up to this much memory.
MOST_ROTATED_BYTES = 2**27
MOST_COPIES = 32

Workload = Literal["similarity", "loss", "info_nce"]
Passes = Literal["forward", "forward+backward"]
Direction = Literal["off", "exact", "sampled"]
Network = CrossAttentionPsi | GapMLPPsi

# Of the published recipe.
DROPOUT = 0.3
CROSS_ATTENTION = "cross_attention"
_NETWORKS: dict[str, Callable[[int], Network]] = {
    CROSS_ATTENTION: CrossAttentionPsi,
    "gap_mlp": lambda dim: GapMLPPsi(dim, hidden_dim=dim),
    "cross_attention_pair_dropout": lambda dim: CrossAttentionPsi(
        dim, dropout=DROPOUT, dropout_mode="pair"
    ),
}
PSIS = tuple(_NETWORKS)


@dataclass(frozen=True)
class Case:
    """One measurement: A = B texts and videos, F frames, D features.

    ``info_nce`` is that alone: of one vector a video (F = 1), and no ψ.
    """

    workload: Workload
    passes: Passes
    direction: Direction
    batch: int
    frames: int = 12
    dim: int = 512
    dtype: str = "float32"
    psi: str = CROSS_ATTENTION
    """The increment network, one of ``PSIS``."""
    padding: float = 0.0
    """Mean share of padded frames: of twice that at most, evenly spread over the videos."""

    @property
    def series(self) -> tuple[object, ...]:
        """Everything but the batch size: growth is measured along it."""
        shape = (self.frames, self.dim, self.dtype)
        return (self.workload, self.passes, self.direction, *shape, self.psi, self.padding)

    @property
    def mean_frames(self) -> int:
        """Valid frames of a video, on average."""
        return round(self.frames * (1 - self.padding))

    @property
    def hidden(self) -> bool:
        """Whether every pair has a hidden vector of its own, of D numbers here."""
        return self.psi != CROSS_ATTENTION

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which products are accumulated: half precision is widened."""
        return torch.promote_types(self.torch_dtype, torch.float32)

    @property
    def backward(self) -> bool:
        return self.passes == "forward+backward"

    @property
    def title(self) -> str:
        """For tables and plots."""
        what = {
            "similarity": "similarity",
            "loss": f"loss, direction {self.direction}",
            "info_nce": "InfoNCE alone",
        }
        return f"{what[self.workload]}, {self.passes}; {self.shape}"

    @property
    def shape(self) -> str:
        """What else the title says: sizes, dtype, and ψ where it is not the usual one."""
        if self.workload == "info_nce":
            return f"D = {self.dim}, {self.dtype}"
        psi = f"{self.psi.replace('_', ' ')}, " if self.hidden else ""
        padding = f" ({self.padding:.0%} padded)" if self.padding else ""
        return f"{psi}F = {self.frames}{padding}, D = {self.dim}, {self.dtype}"


@dataclass
class Inputs:
    """Random features of one case, and what multiplies its result in the backward pass."""

    text: Tensor  # (B, D)
    video: Tensor  # (B, F, D)
    mask: Tensor  # (B, F) bool
    scale: Tensor  # 0-d
    upstream: Tensor  # (B, B) for the similarity, else 0-d

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same in another floating dtype, as new leaves."""
        text, video, scale = (
            x.detach().to(dtype).requires_grad_() for x in (self.text, self.video, self.scale)
        )
        return Inputs(text, video, self.mask, scale, self.upstream.to(dtype))


def make_inputs(case: Case, device: torch.device, copies: int) -> list[Inputs]:
    """Features of ``copies`` different batches, of the size that CLIP's have."""
    generator = torch.Generator(device).manual_seed(case.batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    fewest = case.frames - round(2 * case.padding * case.frames)
    lengths = torch.linspace(max(1, fewest), case.frames, case.batch, device=device).round()
    mask = torch.arange(case.frames, device=device) < lengths.unsqueeze(1)
    scale = torch.tensor(LOGIT_SCALE, device=device, dtype=case.compute_dtype).requires_grad_()
    similarity = case.workload == "similarity"
    batches = []
    for _ in range(copies):
        text = normal(case.batch, case.dim).to(case.torch_dtype).requires_grad_()
        video = normal(case.batch, case.frames, case.dim).to(case.torch_dtype).requires_grad_()
        upstream = normal(case.batch, case.batch) if similarity else torch.ones((), device=device)
        batches.append(Inputs(text, video, mask, scale, upstream.to(case.compute_dtype)))
    return batches


def make_psi(case: Case, device: torch.device) -> Network:
    """ψ in training mode, with random weights of ordinary size, biases and LayerNorms included."""
    generator = torch.Generator().manual_seed(0)
    # The biases of linear layers begin as random numbers, too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        psi = _NETWORKS[case.psi](case.dim)
    with torch.no_grad():
        for parameter in psi.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.dim() == 2
            parameter.copy_(noise / case.dim**0.5 if matrix else parameter + 0.1 * noise)
    return psi.to(device, case.compute_dtype)


def copies_beyond_cache(case: Case, device: torch.device) -> int:
    """How many batches of inputs are larger than twice the last cache, within bounds."""
    one = case.batch * (case.frames + 1) * case.dim * case.torch_dtype.itemsize
    wanted = min(2 * cache_bytes(device), MOST_ROTATED_BYTES)
    return max(2, min(MOST_COPIES, math.ceil(wanted / one)))


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache; 32 MiB where that cannot be found out."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 2**26
    for level in (3, 2):
        path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size")
        if path.exists():
            return int(path.read_text().strip().removesuffix("K")) * 1024
    return 2**25
