"""The operations of the table of backends: what they are given, and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from garevla.increments.low_rank.factors import VideoFactors, center, text_factors
from garevla.ops.hidden.factors import FACTORS, HiddenLayer, HiddenPairs
from tests.helpers import operation as implementation
from tests.helpers import pair_factors, random_batch, random_psi

Inputs = dict[str, Any]
Size = tuple[int, ...]

POOL_TEMPERATURE = 3.0
ALPHA = 2.0


@dataclass(frozen=True)
class Operation:
    """An operation of the table, with or without its optional arguments."""

    name: str
    """In the table of backends."""
    draw: Callable[[Size], Inputs]
    """Inputs of a size: tensors by name, the floating point ones in float64."""
    arguments: Callable[[Inputs], tuple[Any, ...]]
    """What the operation is called with."""
    small: tuple[Size, ...]
    """Sizes that even an interpreter affords."""
    medium: tuple[Size, ...]
    """More sizes for compiled code."""
    large: tuple[Size, ...]
    """More sizes for a GPU."""
    usual: Size
    """One size, with more than one of everything."""
    tiny: Size
    """One size, for what evaluates the operation many times."""
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    """Moves what a finite difference left behind back to where the operation is defined."""
    result: Callable[[Any], Any] = lambda found: found
    """What of the operation's result is compared."""


def draw_pairs(size: Size) -> Inputs:
    """Of (texts, videos, frames, dim, heads)."""
    *shape, heads = size
    texts, videos = shape[:2]
    with torch.no_grad():
        text_features, frames, mask = random_batch(*shape)
        psi = random_psi(shape[-1], heads).double()
        text, video = pair_factors(text_features, frames, psi, mask)
    inputs: Inputs = {"text": text.features, **video._asdict()}
    inputs["logit_scale"] = torch.tensor(5.0, dtype=torch.float64)
    inputs["targets"] = torch.randint(videos, (texts,))
    inputs["samples"] = torch.stack([torch.randperm(videos)[:3] for _ in range(texts)])
    return inputs


def pair_arguments(inputs: Inputs) -> tuple[Any, ...]:
    video = VideoFactors(**{field: inputs[field] for field in VideoFactors._fields})
    return text_factors(inputs["text"]), video, POOL_TEMPERATURE


def with_mean_frame(inputs: Inputs) -> Inputs:
    """Lets the mean frame follow from the frames: a backend may read the one or the others."""
    _, heads, frames = inputs["key_bias"].shape
    valid = inputs["frame_mask"].unsqueeze(2)
    features = inputs["rows"][:, heads * frames : (heads + 1) * frames]
    return inputs | {"mean_frame": center((features * valid).sum(1) / valid.sum(1))}


def statistics_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return (*pair_arguments(inputs), inputs["logit_scale"], inputs["targets"], None)


def sampled_statistics_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return (*statistics_arguments(inputs)[:-1], inputs["samples"])


def draw_hidden(kind: str) -> Callable[[Size], Inputs]:
    """Factors of (texts, videos, frames, dim, hidden units, heads), with dropout."""

    def draw(size: Size) -> Inputs:
        texts, videos, frames, dim, hidden, heads = size
        attention, vectors = heads * frames, torch.randn(videos, heads * frames, dim)
        mask = torch.arange(frames) < torch.randint(1, frames + 1, (videos, 1))
        features = torch.randn(videos, frames, dim, dtype=torch.float64) * mask.unsqueeze(2)
        drawn = {
            "text": (texts, dim),
            "mean_frame": (videos, dim),
            "weight": (dim, hidden),
            "bias": (dim,),
            "text_hidden": (texts, hidden),
            "video_hidden": (videos, hidden),
            "shift": (hidden,) if kind == "gap" else (2 * hidden,),
            "key_bias": (videos, heads, frames),
            "key_offset": (videos, heads, frames),
            "keys": (videos, attention, dim),
            "values": (videos, attention, 2 * hidden),
        }
        factors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in drawn.items()}
        factors |= {
            "frames": features,
            "frame_mask": mask,
            "frame_gram": features @ features.mT,
            "value_gram": (vectors @ vectors.mT).double() / dim,
        }
        factors["keys"] /= dim**0.5
        factors["weight"] /= hidden**0.5
        return {name: factors[name] for name in FACTORS[kind]} | {
            "logit_scale": torch.tensor(5.0, dtype=torch.float64),
            "targets": torch.randint(videos, (texts,)),
            "seed": torch.tensor(2**35 + 7),
        }

    return draw


def hidden_arguments(kind: str, alpha: float | None) -> Callable[[Inputs], tuple[Any, ...]]:
    layer = HiddenLayer(kind, "gelu" if kind == "gap" else "", (1e-5, 1e-5, 1e-5), dropout=0.3)

    def arguments(inputs: Inputs) -> tuple[Any, ...]:
        factors = {name: inputs[name] for name in FACTORS[kind]}
        return HiddenPairs(layer, factors, inputs["seed"]), POOL_TEMPERATURE, alpha

    return arguments


def hidden_statistics_arguments(
    kind: str, alpha: float | None
) -> Callable[[Inputs], tuple[Any, ...]]:
    def arguments(inputs: Inputs) -> tuple[Any, ...]:
        pairs, temperature, _ = hidden_arguments(kind, alpha)(inputs)
        return pairs, temperature, inputs["logit_scale"], inputs["targets"], alpha

    return arguments


def with_exponential(found: Any) -> Any:
    """The mean inside the diversity's logarithm, which of one video is 0 up to rounding."""
    # Not by _replace, which older compilers do not trace.
    values = zip(found._fields, found, strict=True)
    return type(found)(*(x.exp() if name == "direction" else x for name, x in values))


def with_variance(found: Any) -> Any:
    """The norms' mean, whose gradient passes together with the variance's where there is one."""
    mean = found.norm_mean if len(found.column_logsumexp) > 1 else found.norm_mean.detach()
    return found._replace(norm_mean=mean + found.norm_variance)


def draw_increments(size: Size) -> Inputs:
    """Unit increments of (texts, videos, basis vectors, dim)."""
    texts, videos, vectors, dim = size
    inputs = {
        "unit": torch.randn(videos, vectors, texts, dtype=torch.float64),
        "basis": torch.randn(videos, vectors, dim, dtype=torch.float64),
    }
    return of_unit_length(inputs)


def of_unit_length(inputs: Inputs) -> Inputs:
    """Longer, the increments' cosines with themselves would leave their range."""
    increments = torch.einsum("bka,bkd->bda", inputs["unit"], inputs["basis"])
    return inputs | {"unit": inputs["unit"] / increments.norm(dim=1, keepdim=True)}


def draw_frames(size: Size) -> Inputs:
    """Features of length 1, of (texts, videos, captions, frames, dim)."""
    texts, videos, captions, frames, dim = size
    return {
        "captions": normalize(torch.randn(texts, captions, dim, dtype=torch.float64), dim=-1),
        "frames": normalize(torch.randn(videos, frames, dim, dtype=torch.float64), dim=-1),
        "logit_scale": torch.tensor(7.0, dtype=torch.float64),
        "caption_mask": random_mask(texts, captions),
        "frame_mask": random_mask(videos, frames),
    }


def random_mask(batch: int, frames: int) -> Tensor:
    """(batch, frames) bool, with at least one valid frame."""
    mask = torch.rand(batch, frames) < 0.6
    mask[torch.arange(batch), torch.randint(frames, (batch,))] = True
    return mask


def alignment_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs["captions"], inputs["frames"], inputs["logit_scale"]


def masked_alignment_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return (*alignment_arguments(inputs), inputs["caption_mask"], inputs["frame_mask"])


# Texts, videos, frames, dim, heads.
PAIRS_ONE = (17, 3, 5, 130, 2)
PAIRS_SMALL = ((1, 1, 1, 24, 1), (37, 2, 12, 65, 1), (33, 2, 64, 24, 1), (5, 2, 5, 16, 8))
PAIRS_MEDIUM = (
    (1, 1, 1, 8, 1),
    (1, 7, 5, 65, 1),
    (7, 3, 2, 30, 2),
    (8, 8, 5, 8, 8),
    (9, 2, 12, 512, 1),
    (15, 2, 5, 512, 4),
    (16, 1, 64, 8, 4),
    (17, 3, 12, 64, 8),
    (31, 2, 70, 30, 1),
    (33, 40, 1, 65, 1),
)
PAIRS_LARGE = ((300, 5, 12, 64, 1), (130, 71, 12, 512, 1))
# What is as good as another operation's arithmetic has one size where sizes are dear.
PAIRS_FEW = {"small": (PAIRS_ONE,), "medium": (*PAIRS_SMALL, *PAIRS_MEDIUM)}
PAIRS_ALL = {"small": (PAIRS_ONE, *PAIRS_SMALL), "medium": PAIRS_MEDIUM}
PAIRS = {
    "draw": draw_pairs,
    "large": PAIRS_LARGE,
    "usual": (9, 4, 3, 16, 2),
    "tiny": (3, 2, 2, 4, 2),
    "prepare": with_mean_frame,
}
HIDDEN = {
    # Texts, videos, frames, dim, hidden units, heads.
    "small": ((1, 2, 1, 8, 7, 1), (17, 3, 5, 33, 20, 2)),
    "medium": (
        (5, 7, 3, 65, 130, 1),
        (33, 2, 12, 64, 64, 4),
        (3, 9, 1, 24, 40, 1),
        (40, 5, 12, 512, 512, 1),
        (7, 2, 64, 17, 9, 1),
    ),
    "large": ((300, 21, 12, 512, 512, 1), (130, 71, 12, 257, 130, 1)),
    "usual": (9, 4, 3, 16, 24, 2),
    "tiny": (3, 2, 2, 4, 5, 2),
}
# What is as good as another operation's arithmetic has one size where sizes are dear.
HIDDEN_FEW = HIDDEN | {"small": HIDDEN["small"][1:]}


def hidden_operations(kind: str) -> dict[str, Operation]:
    """The operations on a kind of layer, with and without the directional diversity."""
    draw = draw_hidden(kind)
    return {
        f"hidden_similarity of {kind}": Operation(
            "hidden_similarity",
            draw,
            lambda inputs: hidden_arguments(kind, None)(inputs)[:2],
            **HIDDEN_FEW,
        ),
        f"hidden_terms of {kind}": Operation(
            "hidden_terms", draw, hidden_arguments(kind, ALPHA), result=with_exponential, **HIDDEN
        ),
        f"hidden_statistics of {kind}": Operation(
            "hidden_statistics", draw, hidden_statistics_arguments(kind, None), **HIDDEN
        ),
        f"hidden_statistics of {kind} with direction": Operation(
            "hidden_statistics",
            draw,
            hidden_statistics_arguments(kind, ALPHA),
            result=with_exponential,
            **HIDDEN_FEW,
        ),
    }


FRAMES = {
    "draw": draw_frames,
    # Texts, videos, captions, frames, dim.
    "small": (
        (1, 1, 1, 1, 7),
        (5, 3, 5, 12, 24),
        (2, 9, 12, 5, 65),
        (33, 2, 1, 5, 130),
        (3, 31, 13, 1, 17),
        (33, 2, 16, 17, 5),
        (2, 2, 33, 64, 16),
        (1, 3, 64, 33, 15),
        (1, 2, 3, 130, 5),
    ),
    "medium": (),
    "large": ((130, 71, 12, 12, 512),),
    "usual": (5, 3, 5, 6, 24),
    "tiny": (3, 2, 2, 4, 7),
}
OPERATIONS = {
    "pair_similarity": Operation("pair_similarity", arguments=pair_arguments, **PAIRS, **PAIRS_FEW),
    "pair_terms": Operation("pair_terms", arguments=pair_arguments, **PAIRS, **PAIRS_ALL),
    "pair_statistics": Operation(
        "pair_statistics",
        arguments=statistics_arguments,
        result=with_variance,
        **PAIRS,
        **PAIRS_FEW,
    ),
    "pair_statistics with samples": Operation(
        "pair_statistics",
        arguments=sampled_statistics_arguments,
        result=with_variance,
        **PAIRS,
        **PAIRS_ALL,
    ),
    "direction": Operation(
        "direction",
        draw=draw_increments,
        arguments=lambda inputs: (inputs["unit"], inputs["basis"], ALPHA),
        # Texts, videos, basis vectors, dim.
        small=(
            (1, 1, 3, 65),
            (7, 5, 3, 24),
            (1, 65, 4, 130),
            (3, 33, 26, 16),
            (2, 63, 1, 17),
            (1, 130, 2, 7),
        ),
        medium=(
            (1, 7, 7, 65),
            (7, 3, 6, 30),
            (8, 8, 42, 8),
            (9, 2, 14, 512),
            (15, 2, 22, 512),
            (16, 1, 258, 8),
            (17, 3, 98, 64),
            (31, 2, 72, 30),
            (33, 40, 3, 65),
        ),
        large=((300, 5, 14, 64), (130, 71, 14, 512)),
        usual=(9, 4, 8, 16),
        tiny=(3, 2, 6, 4),
        prepare=of_unit_length,
        # The mean inside the logarithm, which of one video is 0 up to rounding.
        result=torch.exp,
    ),
    "frame_alignment": Operation("frame_alignment", arguments=alignment_arguments, **FRAMES),
    "frame_alignment with masks": Operation(
        "frame_alignment", arguments=masked_alignment_arguments, **FRAMES
    ),
    **hidden_operations("gap"),
    **hidden_operations("attention"),
}


@cache
def exact_inputs(draw: Callable[[Size], Inputs], size: Size) -> Inputs:
    torch.manual_seed(0)
    return draw(size)


def leaves(inputs: Inputs) -> dict[str, Tensor]:
    return {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}


def inputs_of(
    operation: str, size: Size, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> Inputs:
    """What an operation is given, as leaves; the same in every dtype, but for rounding."""
    exact = exact_inputs(OPERATIONS[operation].draw, size)
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in exact.items()
    }
    return inputs | {
        name: value.detach().to(device, dtype, copy=True).requires_grad_()
        for name, value in leaves(exact).items()
    }


def outputs(operation: str, backend: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors that an operation returns; their gradients flow into ``inputs``."""
    given = OPERATIONS[operation]
    found = given.result(implementation(given.name, backend)(*given.arguments(inputs)))
    found = (found,) if isinstance(found, Tensor) else tuple(found)
    return tuple(tensor for tensor in found if tensor is not None)


def results(operation: str, backend: str, inputs: Inputs) -> list[Tensor]:
    """All outputs, and the gradients of their weighted sum."""
    found = outputs(operation, backend, inputs)
    generator = torch.Generator().manual_seed(1)
    total = sum((torch.randn(x.shape, generator=generator).to(x) * x).sum() for x in found)
    gradients = torch.autograd.grad(total, list(leaves(inputs).values()), allow_unused=True)
    return [*found, *(gradient for gradient in gradients if gradient is not None)]
