"""Increments of single pairs, as the layers define them: for samples and for looking at them.

Plain PyTorch, for any backend: what is sampled is a small part of all pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from garevla.ops.dropout import keep_mask
from garevla.ops.eager.chunks import CHUNK_ELEMENTS
from garevla.ops.eager.hidden import activate
from garevla.ops.hidden.diversity import LOG_FLOOR
from garevla.ops.hidden.factors import FACTORS, HiddenPairs, seed_and_origin


def increments(pairs: HiddenPairs, texts: Tensor, videos: Tensor) -> Tensor:
    """Δ_ij of P pairs, (P, D).

    Args:
        pairs: the factors.
        texts, videos: (P,) int64, the pairs' indices.
    """
    factors, layer = pairs.factors, pairs.layer
    text = factors["text"][texts]
    centered = text - text.mean(dim=1, keepdim=True)
    variance = (factors["mean_frame"][videos] - centered).square().mean(dim=1)
    inverse = (variance + layer.layer_norm_eps[0]).rsqrt().unsqueeze(1)
    mask: Tensor | float = 1.0
    if pairs.seed is not None:
        size = factors["weight"].shape[1]
        seed, first_text, first_video = seed_and_origin(pairs.seed.to(text.device))
        at = first_text + texts, first_video + videos
        keep = keep_mask(seed, layer.dropout, *at, size)
        mask = keep.to(text.dtype) / (1 - layer.dropout)
    if layer.kind == "gap":
        gap = factors["video_hidden"][videos] - factors["text_hidden"][texts]
        hidden = activate(layer.activation, factors["shift"] + inverse * gap) * mask
    else:
        weights = _attention_weights(factors, text, videos, inverse, layer.layer_norm_eps[1])
        mixed = torch.einsum("pk,pks->ps", weights, factors["values"][videos]) + factors["shift"]
        plain, masked = mixed.chunk(2, dim=1)
        hidden = F.layer_norm(plain + mask * masked, plain.shape[1:], eps=layer.layer_norm_eps[2])
    return F.linear(hidden, factors["weight"], factors["bias"])


def _attention_weights(
    factors: dict[str, Tensor], text: Tensor, videos: Tensor, inverse_gap: Tensor, eps: float
) -> Tensor:
    """(P, K) attention weights after LN2: text (P, D), inverse_gap (P, 1)."""
    gap_key = factors["key_offset"][videos].flatten(1) - torch.einsum(
        "pkd,pd->pk", factors["keys"][videos], text
    )
    bias = factors["key_bias"][videos]
    logits = bias + (inverse_gap * gap_key).view_as(bias)
    padding = ~factors["frame_mask"][videos].unsqueeze(1)
    probability = logits.masked_fill(padding, -torch.inf).softmax(dim=2).flatten(1)
    gram = factors["value_gram"][videos]
    variance = torch.einsum("pk,pkl,pl->p", probability, gram, probability)
    return probability * (variance + eps).rsqrt().unsqueeze(1)


def sampled_diversity(pairs: HiddenPairs, samples: Tensor, alpha: float) -> Tensor:
    """The directional diversity with its inner mean estimated from samples (A, n), 0-d.

    As :func:`garevla.ops.eager.direction.sampled_direction`; a few texts at a time, recomputed in
    the backward pass.
    """
    num_texts, per_text = samples.shape
    names, tensors = FACTORS[pairs.layer.kind], pairs.tensors()
    num_videos = len(pairs.factors["frames"])
    per_pair = sum(
        pairs.factors[name].shape[1:].numel() for name in names if name in ("keys", "values")
    )
    per_pair += sum(pairs.factors["weight"].shape)

    def of_texts(start: int, stop: int, *tensors: Tensor) -> Tensor:
        texts = torch.arange(start, stop, device=samples.device).repeat_interleave(per_text)
        given = HiddenPairs(pairs.layer, dict(zip(names, tensors, strict=True)), pairs.seed)
        found = increments(given, texts, samples[start:stop].flatten())
        norm = found.norm(dim=1, keepdim=True).clamp_min(1e-12)
        unit = (found / norm).unflatten(0, (-1, per_text))
        kernel = (alpha * (unit @ unit.mT - 1)).exp()
        apart = kernel.sum(dim=(1, 2)) - kernel.diagonal(dim1=1, dim2=2).sum(dim=1)
        apart = apart * ((num_videos - 1) / (per_text * (per_text - 1)))
        return ((1 + apart) / num_videos + LOG_FLOOR).log().sum()

    step = max(1, CHUNK_ELEMENTS // (per_text * (per_pair + per_text)))
    total = pairs.text.new_zeros(())
    for start in range(0, num_texts, step):
        stop = min(start + step, num_texts)
        total = total + checkpoint(
            of_texts, start, stop, *tensors, use_reentrant=False, preserve_rng_state=False
        )
    return total / num_texts
