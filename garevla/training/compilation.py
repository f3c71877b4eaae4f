"""torch.compile of what takes a training step's time: the encoder's blocks and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from garevla.data.messages import first_line
from garevla.encoders import DiscoVLAEncoder
from garevla.training.config import ConfigError
from garevla.training.model import RetrievalModel

# What open_clip, timm and transformers call the list of a tower's blocks.
_BLOCK_LISTS = ("resblocks", "blocks", "layer")
# Both towers' blocks, with and without fusion, padding and gradients, share one function. torch
# would compile no more than eight of these variants and run the others as they are.
_MOST_VARIANTS = 64


def compile_model(model: RetrievalModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the encoder's blocks and the loss, in place, each when it first runs.

    A tower's blocks are alike and share what is compiled for one. Batches and texts may have any
    size; nothing is compiled anew for another, but for a few of size 1 or that equal each other.
    Names of weights stay as they are. What the encoder does besides, its choice of valid frames
    above all, which depends on values, is left as it is.

    Args:
        model: it is changed.
        backend: torch.compile's.
    """
    # Its import takes seconds.
    from torch._dynamo import config

    config.cache_size_limit = max(config.cache_size_limit, _MOST_VARIANTS)
    for part in _parts(model):
        part.compile(dynamic=True, backend=backend)


def _parts(model: RetrievalModel) -> Iterator[nn.Module]:
    encoder: nn.Module | None = model.encoder
    if isinstance(encoder, DiscoVLAEncoder):
        # They run CLIP's blocks.
        yield from encoder.vision_adapters
        yield from encoder.text_adapters
        encoder = encoder.temporal
    for name, module in () if encoder is None else encoder.named_modules():
        if name.rpartition(".")[2] in _BLOCK_LISTS:
            yield from module.children()
    yield model.criterion


def check_compiles(device: torch.device) -> None:
    """Compile something small.

    Raises:
        ConfigError: torch.compile cannot, for want of a compiler.
    """

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    # What was compiled before is no sign that there still is a compiler.
    compiled = torch.compile(double, options={"fx_graph_cache": False})
    try:
        compiled(torch.ones(8, device=device))
    except Exception as error:
        needed = "Triton" if device.type == "cuda" else "a C++ compiler"
        raise ConfigError(
            f"run.compile: torch.compile does not work here on {device.type}, where it needs "
            f"{needed}; leave it off, or: {first_line(error)}"
        ) from error
