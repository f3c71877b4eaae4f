"""How ψ starts: published or small increments, on features as CLIP gives them and of norm 1.

    python -m benchmarks.starts --json benchmarks/results/cpu-2core/starts.json

The demo's videos and captions, encoded once by a tiny CLIP of 512 features, the published number,
at which fresh increments of the published start are 10.2 long. CLIP stays as it is, and ψ alone
trains on its features, with the whole published loss. R@1 on the held-out videos before the first
step and after epochs, in per cent. Runs of other variants and seeds that the file holds stay in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks import tables
from benchmarks.modes import other_runs
from benchmarks.report import write_results
from garevla import CrossAttentionPsi, GareLoss, mean_frame_similarity
from garevla.data.dataset import VideoDataset
from garevla.data.layouts.msrvtt import load_msrvtt
from garevla.demo import DemoConfig, prepare, training_config
from garevla.encoders import ClipEncoder
from garevla.evaluation import EncodedSplit, RetrievalMetrics, encode_split, rank_of_targets
from garevla.increments.settings import PsiInit
from garevla.training.data import make_dataset
from garevla.training.model import RetrievalModel
from garevla.training.optim import create_optimizer, create_schedule

DIM = 512
BATCH_SIZE = 100
DROPOUT = 0.1
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP_PROPORTION = 0.1
LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Variant:
    """How ψ starts and trains."""

    init: PsiInit
    norm: float | None = None
    """What all features are brought to; None leaves them as they are."""
    learning_rate: float = LEARNING_RATE
    loss: dict[str, float] = field(default_factory=dict)
    """Changes of the loss."""


UNREGULARIZED = {"beta": 0.0, "lambda_trust": 0.0, "lambda_direction": 0.0}
VARIANTS = {
    "as CLIP gives them, published": Variant("published"),
    "as CLIP gives them, small": Variant("small"),
    "norm 1, published": Variant("published", 1.0),
    "norm 1, small": Variant("small", 1.0),
    "norm 1, small, no regularizers": Variant("small", 1.0, loss=UNREGULARIZED),
    "norm 1, published, a tenth of the learning rate": Variant("published", 1.0, 1e-4),
    "norm 1, small, a tenth of the learning rate": Variant("small", 1.0, 1e-4),
    "norm 1, then times 10, published": Variant("published", 10.0),
}


def encode_splits(demo: DemoConfig) -> dict[str, EncodedSplit]:
    """Features of the training and the held-out videos and their captions, made or read."""
    path = demo.output_dir / f"features-{DIM}.pt"
    if path.exists():
        return torch.load(path, weights_only=False)
    model_config = demo.output_dir / f"tiny-{DIM}.json"
    model_config.parent.mkdir(parents=True, exist_ok=True)
    tiny = json.loads((files("garevla.encoders") / "configs" / "tiny.json").read_text())
    model_config.write_text(json.dumps({**tiny, "embed_dim": DIM}))
    prepare(demo, str(model_config))
    data = training_config(demo).data
    encoder = ClipEncoder(
        str(model_config),
        str(demo.output_dir / "clip.pt"),
        max_frames=data.max_frames,
        context_length=training_config(demo).model.context_length,
    )
    model = RetrievalModel(encoder, GareLoss(CrossAttentionPsi(DIM)))
    found = {}
    for split in ("train-9k", "test"):
        items = load_msrvtt(data.annotation_dir, data.video_dir, split)
        videos = make_dataset(VideoDataset, items, data, encoder)
        found[split] = encode_split(model, videos, items.captions)
    torch.save(found, path)
    return found


def bring_to_norm(features: Tensor, norm: float | None) -> Tensor:
    """Text or frame features, as they are where no norm is given; padding stays 0."""
    return features if norm is None else norm * F.normalize(features, dim=-1)


def recall(similarity: Tensor, split: EncodedSplit) -> float:
    """Text-to-video R@1 in per cent."""
    return RetrievalMetrics.from_ranks(rank_of_targets(similarity, split.targets)).recall_at_1


def train_variant(
    name: str, seed: int, splits: dict[str, EncodedSplit], epochs: int
) -> dict[str, Any]:
    """Train one variant; returns its figures."""
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    started = time.perf_counter()
    train, test = (
        dataclasses.replace(
            split,
            text_features=bring_to_norm(split.text_features, variant.norm),
            frame_features=bring_to_norm(split.frame_features, variant.norm),
        )
        for split in (splits["train-9k"], splits["test"])
    )
    loss = GareLoss(CrossAttentionPsi(DIM, dropout=DROPOUT, init=variant.init), **variant.loss)
    num_videos = len(train.frame_features)
    steps_per_epoch = num_videos // BATCH_SIZE
    parameters = list(loss.parameters())
    groups = [
        {
            "params": [each for each in parameters if (each.dim() > 1) == decays],
            "lr": variant.learning_rate,
            "weight_decay": WEIGHT_DECAY * decays,
        }
        for decays in (True, False)
    ]
    optimizer = create_optimizer(groups)
    schedule = create_schedule(optimizer, epochs * steps_per_epoch, WARMUP_PROPORTION)
    targets = torch.from_numpy(train.targets)

    def evaluate() -> float:
        loss.eval()
        with torch.no_grad():
            return recall(
                loss.similarity(test.text_features, test.frame_features, test.frame_mask), test
            )

    curve, losses = [evaluate()], []
    for _ in range(epochs):
        loss.train()
        # A caption of each video.
        order = torch.randperm(len(targets))
        first = torch.full((num_videos,), len(targets)).scatter_reduce(
            0, targets[order], torch.arange(len(order)), "amin"
        )
        for videos in torch.randperm(num_videos).split(BATCH_SIZE)[:steps_per_epoch]:
            out = loss(
                train.text_features[order[first[videos]]],
                train.frame_features[videos],
                LOGIT_SCALE,
                train.frame_mask[videos],
            )
            optimizer.zero_grad()
            out.loss.backward()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        losses.append(float(out.loss.detach()))
        curve.append(evaluate())
    return {
        "variant": name,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "loss": losses,
        "text_to_video": curve,
        "without_increments": recall(
            mean_frame_similarity(test.text_features, test.frame_features, test.frame_mask), test
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/starts"))
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), help="some of: %(default)s"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the results here, beside those of others")
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = DemoConfig(output_dir=args.output_dir, image_steps=300, epochs=args.epochs)
    others = other_runs(args.json, demo, variant=args.variants, seed=args.seeds)
    splits = encode_splits(demo)
    results = []
    for seed in args.seeds:
        for name in args.variants:
            results.append(train_variant(name, seed, splits, args.epochs))
            print(json.dumps(results[-1]), flush=True)
            if args.json:
                rows = others + results
                write_results(args.json, "benchmarks.starts", rows, demo=dataclasses.asdict(demo))
    print(tables.markdown(*tables.starts(results)))


if __name__ == "__main__":
    main()
