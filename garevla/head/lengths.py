"""A warning where increments are far longer than the texts that they are to correct."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from garevla.increments.base import EncodedVideos, IncrementNetwork
from garevla.utils.once import warn_once

# Where increments are so long, an untrained ψ halves what is found (benchmarks.starts).
_FAR_LONGER = 3.0


def compare_lengths(
    psi: IncrementNetwork, text: Tensor, videos: EncodedVideos, what: str = "text features"
) -> None:
    """In a network's first call, compare the first text's increments with the text.

    One row of pairs, and on a GPU one wait for it, for each network. Never while a graph is
    compiled or captured, nor where tensors hold no numbers.

    Args:
        psi: the network.
        text: (A, D), as :meth:`EncodedVideos.pairs` takes them.
        videos: of the same call.
        what: the texts are, for the message.
    """
    if torch.compiler.is_compiling() or psi.lengths_compared or not _can_look(psi, text):
        return
    psi.lengths_compared = True
    with torch.no_grad():
        # No backend that would compile kernels for this alone; the temperature is of no account.
        increments = videos.pairs(text[:1], 1.0, "eager").increments
        own, length = increments.norm.mean(), text[0].norm()
        ratio = float(own / length)
    if _FAR_LONGER < ratio < float("inf"):
        warn_once(
            "long increments",
            f"the increments of psi are {ratio:.1f} times as long as the {what} (norm "
            f"{float(length):.3g}), which are lost among them. Give features as CLIP's towers do, "
            "before they are normalized, or normalized ones times 10: docs/methods.md, Features of "
            "norm 1",
        )


def _can_look(psi: IncrementNetwork, text: Tensor) -> bool:
    if text.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    # DataParallel makes its replicas anew in each step.
    return not (is_in_torch_dispatch_mode() or getattr(psi, "_is_replica", False))
