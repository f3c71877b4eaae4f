"""InfoNCE alone, as CLIP has it, in plain PyTorch and by the packages that people take for it.

Texts and videos are (B, D) and normalized; row i belongs to row i. The packages are optional:
``pip install "garevla[peers]"``. Their kernels are called as their documentation says.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from garevla import info_nce

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""(texts, videos, logit scale) → 0-d."""
CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, index of each query's key) → mean over queries, 0-d."""

# Texts whose logits are there at once.
CHUNK = 1024
# The widest block of features of Inf-CL's kernels.
INF_CL_BLOCK = 256


class Peer(NamedTuple):
    """One implementation; ``make`` imports what it needs."""

    make: Callable[[], Loss]
    precision: str = "float32"
    """Of products of float32; ``"tf32"`` where the kernels have no other by default."""
    package: str | None = None
    """On PyPI."""
    on_gpu_only: bool = False

    @property
    def foreign(self) -> bool:
        """Whether others answer for it: packages, PyTorch's compiler and chunks."""
        return self.package is not None or self.make in (_compiled, _linear_cross_entropy)

    @property
    def version(self) -> str | None:
        """``memeff 0.3.1``; None of what is in PyTorch or here."""
        if self.package is None:
            return None
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return None

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on a device with features of a dtype, as far as that is known."""
        if self.package and self.version is None:
            return f"{self.package} is not installed"
        if self.on_gpu_only and device.type != "cuda":
            return "its kernels need a CUDA device"
        if self.on_gpu_only and dtype == torch.float64:
            return "its kernels have no float64"
        if self.package is None and self.precision == "tf32":
            if dtype != torch.float32:
                return "only products of float32 are rounded"
            if device.type != "cuda":
                return "on a CPU the same as float32"
        try:
            self.make()
        # Packages of others: whatever an import may raise.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None


def plain_loss(text: Tensor, video: Tensor, scale: float) -> Tensor:
    """Two cross-entropies of one (B, B) matrix of logits."""
    logits = (text @ video.mT).to(_softmax_dtype(text)) * scale
    targets = _targets(text)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.mT, targets)) / 2


def chunked_loss(text: Tensor, video: Tensor, scale: float) -> Tensor:
    """Some texts at a time against all videos, recomputed in the backward pass."""

    def logsumexps(texts: Tensor) -> tuple[Tensor, Tensor]:
        logits = (texts @ video.mT).to(_softmax_dtype(text)) * scale
        return logits.logsumexp(dim=1), logits.logsumexp(dim=0)

    parts = [checkpoint(logsumexps, chunk, use_reentrant=False) for chunk in text.split(CHUNK)]
    rows, columns = zip(*parts, strict=True)
    both = torch.cat(rows) + torch.stack(columns).logsumexp(dim=0)
    right = (text * video).sum(dim=1, dtype=_softmax_dtype(text)) * scale
    return both.mean() / 2 - right.mean()


def _ours() -> Loss:
    return lambda text, video, scale: info_nce((text @ video.mT).to(_softmax_dtype(text)), scale)


def _compiled() -> Loss:
    return torch.compile(plain_loss, dynamic=False)


def _linear_cross_entropy() -> Loss:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise RuntimeError("this PyTorch has no chunked torch.nn.functional.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return _both_ways(
        lambda queries, keys, targets: F.linear_cross_entropy(
            queries, keys, targets, options=options
        )
    )


def _open_clip() -> Loss:
    loss = importlib.import_module("open_clip.loss").ClipLoss()

    def call(text: Tensor, video: Tensor, scale: float) -> Tensor:
        # As its training loop does.
        half = text.dtype.itemsize == 2
        with torch.autocast(text.device.type, text.dtype if half else None, enabled=half):
            return loss(video, text, scale)

    return call


def _liger() -> Loss:
    module = importlib.import_module("liger_kernel.transformers")
    cross_entropy = module.LigerFusedLinearCrossEntropyLoss()
    return _both_ways(lambda queries, keys, targets: cross_entropy(keys, queries, targets))


def _inf_cl() -> Loss:
    flash_loss = importlib.import_module("inf_cl").cal_flash_loss

    def cross_entropy(queries: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
        block = math.gcd(queries.shape[1], INF_CL_BLOCK)
        return flash_loss(queries, keys, targets, head_dim=block).mean()

    return _both_ways(cross_entropy)


def _memeff() -> Loss:
    loss_type = importlib.import_module("memeff").MemoryEfficientCLIPLoss

    def call(text: Tensor, video: Tensor, scale: float) -> Tensor:
        # "Stable" gradients are those of the loss times a factor.
        return loss_type(1 / scale, normalized_inputs=True, stable=False)(video, text)

    return call


def _cut_cross_entropy() -> Loss:
    linear_cross_entropy = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    # Its default leaves out small gradients: for a vocabulary, whose words mostly have none.
    return _both_ways(
        lambda queries, keys, targets: linear_cross_entropy(queries, keys, targets, filter_eps=None)
    )


def _both_ways(cross_entropy: CrossEntropy) -> Loss:
    def call(text: Tensor, video: Tensor, scale: float) -> Tensor:
        targets = _targets(text)
        to_video = cross_entropy(scale * text, video, targets)
        return (to_video + cross_entropy(scale * video, text, targets)) / 2

    return call


def _targets(text: Tensor) -> Tensor:
    return torch.arange(len(text), device=text.device)


def _softmax_dtype(text: Tensor) -> torch.dtype:
    return torch.promote_types(text.dtype, torch.float32)


PLAIN = "torch"
OURS = "garevla.info_nce"
PEERS: dict[str, Peer] = {
    PLAIN: Peer(lambda: plain_loss),
    "torch, tf32": Peer(lambda: plain_loss, "tf32"),
    "torch, compiled": Peer(_compiled),
    "torch, compiled, tf32": Peer(_compiled, "tf32"),
    "torch, chunked": Peer(lambda: chunked_loss),
    "torch, chunked, tf32": Peer(lambda: chunked_loss, "tf32"),
    "torch, linear_cross_entropy": Peer(_linear_cross_entropy),
    OURS: Peer(_ours),
    "open_clip": Peer(_open_clip, package="open_clip_torch"),
    "Liger-Kernel": Peer(_liger, package="liger-kernel", on_gpu_only=True),
    "Inf-CL": Peer(_inf_cl, "tf32", package="inf_cl", on_gpu_only=True),
    "memeff": Peer(_memeff, "tf32", package="memeff", on_gpu_only=True),
    "cut-cross-entropy": Peer(_cut_cross_entropy, package="cut-cross-entropy", on_gpu_only=True),
}
PEER_NAMES = tuple(PEERS)
