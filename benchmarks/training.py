"""One training step: what the encoder costs and what the head adds, for each head.

    python -m benchmarks.training                                       # tiny CLIP, CPU
    python -m benchmarks.training --model ViT-B-32-quickgelu --batch 128 --device cuda
    python -m benchmarks.training --options                     # with each of its options

Random weights, videos and captions; no file is read. The head is the loss with its backward pass
to the features; the encoder is its forward pass, its backward pass from the features and the
update of all weights; the step is all of it. With ``--options``, one head, and the step before and
after each option of a training run (benchmarks/steps.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks import memory, steps, tables
from benchmarks.report import write_results
from benchmarks.timing import calls_per_sample, seconds_of, summarize, undisturbed
from garevla import GareLoss, backend_status
from garevla.encoders import DiscoVLAEncoder
from garevla.reference import gare as reference
from garevla.training.config import DataConfig, Mode, ModelConfig, TrainConfig
from garevla.training.model import RetrievalModel, build_model

PUBLISHED = "published"
Head = Callable[[list[Tensor]], Tensor]


@dataclass
class Batch:
    """Random inputs of one training step."""

    tokens: Tensor  # (B, L) int64
    video: Tensor  # (B, F, 3, H, W)
    mask: Tensor  # (B, F) bool
    captions: Tensor | None  # (B, F, L) int64, for DiscoVLA


def make_model(args: argparse.Namespace, device: torch.device) -> RetrievalModel:
    """The model of a training run, with random weights."""
    config = TrainConfig(
        data=DataConfig(annotation_dir=Path(), video_dir=Path(), max_frames=args.frames),
        model=ModelConfig(
            mode=args.mode,
            name=args.model,
            pretrained=None,
            # The tiny model has fewer blocks than published for fusion.
            vision_fusion_blocks=2 if args.model == "tiny" else 4,
            text_fusion_blocks=1 if args.model == "tiny" else 2,
        ),
    )
    return build_model(config, pretrained=False).to(device).train()


def make_batch(model: RetrievalModel, args: argparse.Namespace, device: torch.device) -> Batch:
    """Noise as frames, and words at random as captions."""
    size = model.encoder.image_size
    video = torch.randn(args.batch, args.frames, 3, size, size, device=device)
    words = ("red", "blue", "circle", "square", "moves", "left", "right", "grows", "stops")
    choices = torch.randint(len(words), (args.batch * (args.frames + 1), 6)).tolist()
    texts = [" ".join(words[index] for index in chosen) for chosen in choices]
    tokens = model.tokenize(texts).to(device)
    captions = None
    if isinstance(model.encoder, DiscoVLAEncoder):
        captions = tokens[args.batch :].unflatten(0, (args.batch, args.frames))
    mask = torch.ones(args.batch, args.frames, dtype=torch.bool, device=device)
    return Batch(tokens[: args.batch], video, mask, captions)


def encode(model: RetrievalModel, batch: Batch) -> list[Tensor]:
    """Texts, frames, the scale and, for DiscoVLA, the pseudo captions' features."""
    encoder = model.encoder
    features = [
        model.encode_text(batch.tokens),
        model.encode_video(batch.video, batch.mask),
        encoder.logit_scale,
    ]
    if batch.captions is not None:
        features.append(encoder.encode_pseudo_captions(batch.captions, batch.mask))
    return features


def heads(model: RetrievalModel, batch: Batch, device: torch.device) -> dict[str, Head]:
    """The loss with each backend that runs, and with the published formulas where it is GARE's."""
    criterion = model.criterion
    if not isinstance(criterion, GareLoss):
        return {"discovla": lambda x: criterion(*x[:3], batch.mask, *x[3:]).loss}

    def of_backend(backend: str) -> Head:
        def loss(x: list[Tensor]) -> Tensor:
            criterion.backend = backend
            return criterion(*x[:3], batch.mask, *x[3:]).loss

        return loss

    status = backend_status(device)
    found = {name: of_backend(name) for name, reason in status.items() if reason is None}
    if batch.captions is None:
        psi = criterion.psi
        found[PUBLISHED] = lambda x: reference.loss(x[0], x[1], psi, x[2], batch.mask)
    return found


def measure(
    model: RetrievalModel, batch: Batch, found: dict[str, Head], repeats: int
) -> list[dict[str, Any]]:
    """Seconds and peak growth of memory of the step, the encoder and the head: a row per head."""
    device = batch.video.device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    features = [x.detach().requires_grad_() for x in encode(model, batch)]
    upstream = [torch.randn_like(x) / x.numel() for x in features]

    def step(head: Head) -> None:
        optimizer.zero_grad()
        head(encode(model, batch)).backward()
        optimizer.step()

    def encoder_alone() -> None:
        optimizer.zero_grad()
        encoded = encode(model, batch)
        learnt = [(x, up) for x, up in zip(encoded, upstream, strict=True) if x.requires_grad]
        torch.autograd.backward(*zip(*learnt, strict=True))
        optimizer.step()

    def head_alone(head: Head) -> None:
        optimizer.zero_grad()
        head(features).backward()

    calls: dict[tuple[str, str], Callable[[], None]] = {("encoder", ""): encoder_alone}
    for name, head in found.items():
        calls["step", name] = partial(step, head)
        calls["head", name] = partial(head_alone, head)
    peaks, samples, times = {}, {}, {}
    for key, call in calls.items():
        call()
        times[key] = calls_per_sample(seconds_of(call, device))
        peaks[key] = memory.peak_growth(call, device)
        samples[key] = []
    # In turns, so that a slow phase of the machine meets all.
    for _ in range(repeats):
        for key, call in calls.items():
            samples[key].append(undisturbed(call, device, times[key]).seconds)
    return [_row(name, samples, peaks) for name in found]


def _row(
    name: str, samples: dict[tuple[str, str], list[float]], peaks: dict[tuple[str, str], int | None]
) -> dict[str, Any]:
    row: dict[str, Any] = {"head": name}
    for part in ("step", "encoder", "head"):
        key = (part, "" if part == "encoder" else name)
        summary = summarize(samples[key])
        row[f"{part}_seconds"] = summary.median
        row[f"{part}_seconds_quartiles"] = [summary.lower, summary.upper]
        row[f"{part}_peak_growth_bytes"] = peaks[key]
    return {**row, "steps_per_second": 1 / row["step_seconds"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="open_clip name; %(default)s")
    parser.add_argument("--mode", choices=get_args(Mode), default="gare", help="%(default)s")
    parser.add_argument("--batch", type=int, default=64, help="%(default)s")
    parser.add_argument("--frames", type=int, default=12, help="%(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="%(default)s")
    parser.add_argument(
        "--options",
        nargs="*",
        choices=steps.OPTIONS,
        metavar="OPTION",
        help="the step with these options, by default with all",
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    model = make_model(args, device)
    batch = make_batch(model, args, device)
    if args.options is None:
        table = tables.training
        rows = measure(model, batch, heads(model, batch, device), args.repeats)
    else:
        table = tables.steps
        rows = steps.measure(
            model,
            lambda each: encode(each, batch),
            lambda each: lambda x: each.criterion(*x[:3], batch.mask, *x[3:]).loss,
            args.options or list(steps.OPTIONS),
            args.repeats,
        )
    shape = {"model": args.model, "mode": args.mode, "batch": args.batch, "frames": args.frames}
    rows = [{**shape, **row} for row in rows]
    print(tables.markdown(*table(rows)))
    if args.json:
        how = memory.method(device)
        write_results(args.json, "benchmarks.training", rows, device=device, memory_measured_by=how)


if __name__ == "__main__":
    main()
