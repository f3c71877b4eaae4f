"""What the head's tests share: error measures, random batches, golden vectors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from garevla import (
    CrossAttentionPsi,
    GapMLPPsi,
    GareLoss,
    dropout_seed,
    gare_increments,
    gare_similarity,
    use_precision,
)
from garevla.head.similarity import encode
from garevla.increments.base import IncrementNetwork
from garevla.increments.low_rank.factors import TextFactors, VideoFactors, text_factors
from garevla.increments.low_rank.videos import LowRankNetwork
from garevla.ops import backends
from garevla.reference import gare as reference

GOLDEN = Path(__file__).parent / "data" / "golden"

Psi = TypeVar("Psi", bound=IncrementNetwork)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; inf where either holds a NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-300)
    return float(error.nan_to_num(nan=torch.inf))


def leave_presets_out_of_order() -> None:
    """One thread enters ``"bfloat16"``, a second ``"tf32"``; the first leaves first."""
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with use_precision("tf32"):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=stay)
    with use_precision("bfloat16"):
        thread.start()
        assert entered.wait(30)
    leave.set()
    thread.join()


ONEDNN_CALL = re.compile(
    r"^onednn_verbose,.*,exec,cpu,inner_product,(?P<implementation>[^,]+),.*,(?P<shape>[^,]+),[^,]+$",
    re.M,
)
"""A product in oneDNN's log, which ``ONEDNN_VERBOSE=1`` switches on."""


def output_of(script: str, **environment: str) -> str:
    """What a script prints in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass leaves for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def random_psi(dim: int, heads: int = 1, **kwargs: Any) -> CrossAttentionPsi:
    """ψ with weights far from the published initialisation, biases and LayerNorms included."""
    return _with_random_weights(CrossAttentionPsi(dim, heads, **kwargs))


def random_gap_mlp(dim: int, *arguments: Any, **kwargs: Any) -> GapMLPPsi:
    """The same of a gap MLP."""
    return _with_random_weights(GapMLPPsi(dim, *arguments, **kwargs))


def _with_random_weights(psi: Psi) -> Psi:
    with torch.no_grad():
        for parameter in psi.parameters():
            noise = torch.randn_like(parameter)
            matrix = parameter.dim() == 2
            parameter.copy_(noise / psi.dim**0.5 if matrix else parameter + 0.3 * noise)
    return psi


def random_batch(
    texts: int,
    videos: int,
    frames: int,
    dim: int,
    dtype: torch.dtype = torch.float64,
    *,
    least_frames: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Text features, frame features that need gradients, and a mask of uneven lengths.

    The increments of a video of one frame are the same for all texts. Their standard deviation,
    0 up to rounding, makes the published bottleneck's gradient rounding noise times 1e6: whoever
    compares that gradient asks for ``least_frames=2``.
    """
    text_features = torch.randn(texts, dim, dtype=dtype).requires_grad_()
    frame_features = torch.randn(videos, frames, dim, dtype=dtype).requires_grad_()
    lengths = torch.randint(least_frames, frames + 1, (videos, 1))
    return text_features, frame_features, torch.arange(frames) < lengths


def small_gaps(
    batch: int,
    dim: int,
    gap: float,
    alike: str,
    psi: CrossAttentionPsi | GapMLPPsi | None = None,
    dropout_mask: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor, CrossAttentionPsi | GapMLPPsi, reference.Pairs, reference.Pairs]:
    """Texts a small ‖g‖/‖t‖ away from the frames of ``"every pair"`` or of ``"the matching pair"``.

    Args:
        psi: in float32; by default a cross-attention.
        dropout_mask: of the published formulas.

    Returns:
        text features, frame features and ψ in float32; the published formulas' pairs of them in
        float64 and in float32.
    """
    psi = random_psi(dim) if psi is None else psi
    base = torch.randn(1 if alike == "every pair" else batch, 1, dim)
    frames = base + 0.1 * gap * torch.randn(batch, 4, dim)
    text = frames.mean(1) + gap * torch.randn(batch, dim)
    masks = {"dropout_mask": dropout_mask}
    exact = reference.pairs(text.double(), frames.double(), psi.double(), **masks)
    psi.float()
    return text, frames, psi, exact, reference.pairs(text, frames, psi, **masks)


def check_small_gaps(
    gap: float,
    alike: str,
    psi: CrossAttentionPsi | GapMLPPsi | None = None,
    dropout_mask: Tensor | float = 1.0,
) -> None:
    """Errors within 10× of float32 that forms each gap (DESIGN §8); arguments of small_gaps."""
    text, frames, psi, exact, same_dtype = small_gaps(16, 256, gap, alike, psi, dropout_mask)
    for got, plain, want in (
        (gare_increments(text, frames, psi), same_dtype.increments, exact.increments),
        (gare_similarity(text, frames, psi), same_dtype.similarity, exact.similarity),
    ):
        assert relative_error(got, want) < 10 * relative_error(plain, want) + 1e-7


def check_padding(loss: GareLoss, poison: float) -> None:
    """Padded frames change neither the loss nor a gradient, whatever they hold."""
    text, frames, _ = random_batch(6, 6, 5, loss.psi.dim)
    padding = torch.full((6, 3, loss.psi.dim), poison).double()
    padded = torch.cat([frames.detach(), padding], dim=1).requires_grad_()
    mask = torch.tensor([True] * 5 + [False] * 3).expand(6, 8)
    plain, appended = loss(text, frames, 20.0).loss, loss(text, padded, 20.0, mask).loss
    assert relative_error(appended, plain) < 1e-14
    want_text, want_frames = torch.autograd.grad(plain, [text, frames])
    got_text, got_frames = torch.autograd.grad(appended, [text, padded])
    assert relative_error(got_text, want_text) < 1e-12
    assert relative_error(got_frames[:, :5], want_frames) < 1e-12
    assert got_frames[:, 5:].eq(0).all()


def operation(name: str, backend: str) -> Callable[..., Any]:
    """A backend's function for an operation, whether or not it can run here."""
    return backends._BACKENDS[backend].operations[name].run


def pair_factors(
    text_features: Tensor, frame_features: Tensor, psi: LowRankNetwork, mask: Tensor | None
) -> tuple[TextFactors, VideoFactors]:
    """What the low-rank operations take."""
    text, videos = encode(text_features, frame_features, psi, mask)
    return text_factors(text), videos.factors


class Golden:
    """One golden file: arrays as float64 tensors, and its meta data."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}
        self.meta = json.loads(str(self._arrays.pop("meta")))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[name])).double()

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights under their published names, where the file has a whole model."""
        names = (name for name in self._arrays if name.startswith("state."))
        return {name.removeprefix("state."): self[name] for name in names}

    def psi(self) -> IncrementNetwork:
        """The network, with its weights; in training mode where its dropout is part of it."""
        meta = self.meta
        state = {name: self[name] for name in self._arrays if name.startswith("psi.")}
        if meta.get("kind") == "gap_mlp":
            mlp = GapMLPPsi(meta["D"], meta["H"], meta["act"]).double()
            mlp.load_state_dict({name.removeprefix("psi."): x for name, x in state.items()})
            return mlp
        dropout = meta.get("dropout", 0.0)
        psi = CrossAttentionPsi(meta["D"], meta["heads"], dropout, dropout_mode="pair").double()
        psi.load_official_state_dict(state)
        return psi

    def dropout_masks(self) -> AbstractContextManager[None]:
        """Inside, the masks are the file's."""
        return dropout_seed(self.meta["seed"]) if "seed" in self.meta else nullcontext()

    def loss_arguments(self) -> dict[str, float]:
        return {
            "pool_temperature": self.meta["temp"],
            "alpha": self.meta["alpha"],
            "beta": self.meta["beta"],
            "lambda_direction": self.meta["lambda_dir"],
            "lambda_trust": self.meta["lambda_epsilon"],
            "trust_floor": self.meta["lambda_lower"],
        }
