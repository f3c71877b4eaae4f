"""Noise in training captions: what it costs plain InfoNCE, GARE, and GARE with its regularizers.

    python -m benchmarks.noise --json benchmarks/results/amd-epyc-avx2-2core/noise.json

The demo's videos, four frames of each. A share of the training captions is wrong, exchanged among
videos, or has lost colors and sizes, so that several videos share what it says: false negatives.
The test captions are as they were. A tiny CLIP that knows the frames already gives the frames'
features, once; the last block of its text tower, the temporal transformer over frames, the
increment network and the scale train. R@1 on the held-out videos after the last epoch, in per cent.
Seeds are of the noise, the initial weights, the order of the data and dropout. Runs that the file
holds already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks import tables
from benchmarks.modes import other_runs
from benchmarks.noisy_captions import NoisyCaptions, add_noise
from benchmarks.report import write_results
from garevla import CrossAttentionPsi, GareLoss, info_nce, mean_frame_similarity
from garevla.data.dataset import VideoDataset
from garevla.data.layouts.msrvtt import load_msrvtt
from garevla.data.sampler import UniqueVideoBatchSampler
from garevla.data.splits import Caption
from garevla.data.synthetic import draw_descriptions
from garevla.demo import DemoConfig, prepare, training_config
from garevla.encoders import ClipEncoder
from garevla.evaluation import RetrievalMetrics, encode_split, rank_of_targets
from garevla.training.config import LossConfig
from garevla.training.data import make_dataset
from garevla.training.model import RetrievalModel
from garevla.training.optim import create_optimizer, create_schedule, parameter_groups

BATCH_SIZE = 100
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP_PROPORTION = 0.1
TEMPORAL_LAYERS = 2
DROPOUT = 0.1
LABEL_SMOOTHING = 0.1
POOL_TEMPERATURE = LossConfig.pool_temperature
# Of the demo's eight, alike from both ends: those of order twins stay alike.
FRAMES = (0, 2, 5, 7)

# So high that all frames weigh the same.
MEAN_FRAME = {"pool_temperature": 1e6}
WITHOUT = {"beta": 0.0, "lambda_trust": 0.0, "lambda_direction": 0.0}


@dataclass(frozen=True)
class Variant:
    """What trains."""

    gare: dict[str, float] | None = field(default_factory=dict)
    """Changes of GARE's loss; None: InfoNCE without increments."""
    label_smoothing: float = 0.0
    pools_by_text: bool = False
    """Without increments: frames weighted by the text, as GARE does it; else their mean."""
    knows_right_videos: bool = False
    """The targets are all videos that a caption is right for."""


VARIANTS = {
    "InfoNCE": Variant(None),
    "InfoNCE, smoothed": Variant(None, LABEL_SMOOTHING),
    "InfoNCE, right videos known": Variant(None, knows_right_videos=True),
    "InfoNCE, frames pooled by text": Variant(None, pools_by_text=True),
    "GARE, no regularizer": Variant(WITHOUT),
    "GARE, bottleneck": Variant({"lambda_trust": 0.0, "lambda_direction": 0.0}),
    "GARE, direction": Variant({"beta": 0.0, "lambda_trust": 0.0}),
    "GARE, trust region": Variant({"beta": 0.0, "lambda_direction": 0.0}),
    "GARE, all three": Variant(),
    "GARE, all three, smoothed": Variant({}, LABEL_SMOOTHING),
    "GARE, all three, right videos known": Variant({}, knows_right_videos=True),
    "GARE, no regularizer, mean frame": Variant(WITHOUT | MEAN_FRAME),
    "GARE, all three, mean frame": Variant(MEAN_FRAME),
}
# Name -> arguments of add_noise.
NOISES: dict[str, dict[str, float]] = {
    "none": {},
    "20 % wrong": {"wrong": 0.2},
    "40 % wrong": {"wrong": 0.4},
    "20 % shared": {"shared": 0.2},
    "40 % shared": {"shared": 0.4},
}
# The others are between these.
DEFAULT_NOISES = ["none", "40 % wrong", "40 % shared"]


@dataclass(frozen=True)
class Videos:
    """Frame features (B, F, D), before the temporal transformer, their mask and captions."""

    frames: Tensor
    mask: Tensor
    ids: tuple[str, ...]
    captions: tuple[Caption, ...]

    @property
    def targets(self) -> Tensor:
        """(N,) int64, the video of each caption."""
        rows = {video_id: row for row, video_id in enumerate(self.ids)}
        return torch.tensor([rows[caption.video_id] for caption in self.captions])


@dataclass(frozen=True)
class Texts:
    """Texts ahead of the last block: hidden (N, L, width), positions of EOT (N,)."""

    hidden: Tensor
    ends: Tensor

    def __getitem__(self, rows: list[int]) -> Texts:
        ends = self.ends[rows]
        return Texts(self.hidden[rows, : int(ends.max()) + 1], ends)


class Model(nn.Module):
    """The trained part: CLIP's text tower, the temporal transformer and, where it has one, ψ."""

    def __init__(self, encoder: ClipEncoder, variant: Variant) -> None:
        super().__init__()
        assert encoder.temporal is not None  # it was made with one
        self.encoder, self.variant, self.temporal = encoder, variant, encoder.temporal
        # Copies of the text tower's blocks are slow to see any order in features that stay as
        # they are.
        self.temporal.reset_parameters()
        clip = encoder.clip.requires_grad_(False)
        self.frozen_blocks, self.last_block = (
            clip.transformer.resblocks[:-1],
            clip.transformer.resblocks[-1],
        )
        for part in (self.last_block, clip.ln_final):
            part.requires_grad_(True)
        for parameter in (clip.text_projection, clip.logit_scale):
            parameter.requires_grad_(True)
        self.criterion = None
        if variant.gare is not None:
            psi = CrossAttentionPsi(encoder.dim, dropout=DROPOUT)
            smoothing = variant.label_smoothing
            self.criterion = GareLoss(psi, label_smoothing=smoothing, **variant.gare)

    @torch.no_grad()
    def read(self, captions: Sequence[Caption]) -> Texts:
        """Texts, as far as the text tower does not train."""
        clip = self.encoder.clip
        tokens = self.encoder.tokenize([caption.text for caption in captions])
        # EOT has the largest id.
        ends = tokens.argmax(dim=1)
        tokens = tokens[:, : int(ends.max()) + 1]
        hidden = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]
        for block in self.frozen_blocks:
            hidden = block(hidden, attn_mask=self._causal(hidden))
        return Texts(hidden, ends)

    def encode_texts(self, texts: Texts) -> Tensor:
        """Text features (A, D)."""
        clip = self.encoder.clip
        hidden = self.last_block(texts.hidden, attn_mask=self._causal(texts.hidden))
        return clip.ln_final(hidden[torch.arange(len(hidden)), texts.ends]) @ clip.text_projection

    def _causal(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        return self.encoder.clip.attn_mask[:length, :length]

    def similarity(self, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """(A, B) of features."""
        if self.variant.pools_by_text:
            return pooled_similarity(texts, frames, mask)
        if self.criterion is None:
            return mean_frame_similarity(texts, frames, mask)
        return self.criterion.similarity(texts, frames, mask)

    def loss(self, read: Texts, frames: Tensor, mask: Tensor, right: Tensor | None) -> Tensor:
        """Of a batch: A texts, frames (A, F, D), mask (A, F), right videos (A, A)."""
        texts, frames = self.encode_texts(read), self.temporal(frames, mask)
        scale = self.encoder.logit_scale
        if self.criterion is not None:
            return self.criterion(texts, frames, scale, mask, targets=right).loss
        similarity = self.similarity(texts, frames, mask)
        smoothing = self.variant.label_smoothing
        return info_nce(similarity, scale, right, label_smoothing=smoothing)


def pooled_similarity(texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """(A, B) cosines of texts (A, D) and the frames (B, F, D) that they pool as in GARE, without
    increments."""
    products = torch.einsum("ad, bfd -> abf", texts, frames) / POOL_TEMPERATURE
    weights = products.masked_fill(mask == 0, -torch.inf).softmax(dim=-1)
    pooled = torch.einsum("abf, bfd -> abd", weights, frames)
    return torch.cosine_similarity(texts.unsqueeze(1), pooled, dim=-1)


def make_encoder(demo: DemoConfig, temporal_layers: int) -> ClipEncoder:
    """The demo's tiny CLIP, which knows its frames."""
    settings = training_config(demo)
    return ClipEncoder(
        "tiny",
        str(demo.output_dir / "clip.pt"),
        temporal_layers=temporal_layers,
        max_frames=settings.data.max_frames,
        context_length=settings.model.context_length,
    )


def encode_videos(demo: DemoConfig) -> dict[str, Videos]:
    """Frames of the training and the held-out videos, encoded or read, and their captions."""
    data = training_config(demo).data
    path = demo.output_dir / "frame-features.pt"
    splits = {
        name: load_msrvtt(data.annotation_dir, data.video_dir, split)
        for name, split in (("train", "train-9k"), ("test", "test"))
    }
    if not path.exists():
        encoder = make_encoder(demo, temporal_layers=0)
        model = RetrievalModel(encoder, GareLoss(CrossAttentionPsi(encoder.dim)))
        found = {}
        for name, split in splits.items():
            encoded = encode_split(
                model, make_dataset(VideoDataset, split, data, encoder), split.captions
            )
            found[name] = (encoded.frame_features, encoded.frame_mask, list(encoded.video_ids))
        torch.save(found, path)
    found = torch.load(path, weights_only=True)
    return {
        name: Videos(frames[:, FRAMES], mask[:, FRAMES], tuple(ids), splits[name].captions)
        for name, (frames, mask, ids) in found.items()
    }


def train_variant(
    name: str, noise: str, seed: int, demo: DemoConfig, videos: dict[str, Videos]
) -> dict[str, Any]:
    """Train one variant on captions with noise; returns its figures."""
    torch.manual_seed(seed)
    started = time.process_time()
    model = Model(make_encoder(demo, TEMPORAL_LAYERS), VARIANTS[name])
    train = videos["train"]
    targets = train.targets
    noisy = noisy_captions(noise, seed, demo, train)
    texts = model.read(noisy.captions)
    video_ids = [caption.video_id for caption in noisy.captions]
    batches = UniqueVideoBatchSampler(video_ids, BATCH_SIZE, seed=seed)
    optimizer = create_optimizer(
        parameter_groups(
            model,
            model.encoder.clip,
            learning_rate=LEARNING_RATE,
            clip_lr_scale=1.0,
            weight_decay=WEIGHT_DECAY,
        )
    )
    schedule = create_schedule(optimizer, demo.epochs * len(batches), WARMUP_PROPORTION)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    losses = []
    for epoch in range(demo.epochs):
        model.train()
        batches.set_epoch(epoch)
        for chosen in batches:
            rows = targets[chosen]
            right = noisy.right_videos(chosen) if model.variant.knows_right_videos else None
            loss = model.loss(texts[chosen], train.frames[rows], train.mask[rows], right)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            model.encoder.clamp_logit_scale_()
        losses.append(float(loss.detach()))
    return {
        "variant": name,
        "noise": noise,
        "seed": seed,
        "processor_seconds": time.process_time() - started,
        "loss": losses,
        **evaluate(model, videos["test"]),
    }


def noisy_captions(noise: str, seed: int, demo: DemoConfig, train: Videos) -> NoisyCaptions:
    """The training captions with noise; the videos are what the demo made."""
    described, _ = draw_descriptions(demo.num_train, demo.num_test, seed=demo.seed)
    descriptions = {f"video{index}": each for index, each in enumerate(described)}
    return add_noise(train.captions, descriptions, seed=seed, **NOISES[noise])


@torch.no_grad()
def evaluate(model: Model, test: Videos) -> dict[str, Any]:
    """Figures in both directions."""
    model.eval()
    similarity = model.similarity(
        model.encode_texts(model.read(test.captions)),
        model.temporal(test.frames, test.mask),
        test.mask,
    )
    # A held-out video has one caption.
    ways = {"text_to_video": similarity, "video_to_text": similarity[test.targets.argsort()].T}
    targets = {"text_to_video": test.targets, "video_to_text": torch.arange(len(test.ids))}
    return {
        way: RetrievalMetrics.from_ranks(rank_of_targets(scores, targets[way])).as_dict()
        for way, scores in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/noise"))
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument(
        "--noises", nargs="+", choices=NOISES, default=DEFAULT_NOISES, metavar="NOISE"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the results here, beside those of others")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # More held-out videos than the demo's: its figures would be too coarse.
    demo = DemoConfig(output_dir=args.output_dir, num_test=200, image_steps=300, epochs=args.epochs)
    try:
        results = other_runs(args.json, demo, variant=())
    except ValueError as error:
        parser.error(str(error))
    prepare(demo)
    videos = encode_videos(demo)
    made = {(row["variant"], row["noise"], row["seed"]) for row in results}
    for seed in args.seeds:
        for noise in args.noises:
            for name in args.variants:
                if VARIANTS[name].knows_right_videos and "shared" not in NOISES[noise]:
                    continue  # all captions have one right video
                if (name, noise, seed) in made:
                    continue
                results.append(train_variant(name, noise, seed, demo, videos))
                print(json.dumps(results[-1]), flush=True)
                if args.json:
                    write_results(
                        args.json, "benchmarks.noise", results, demo=dataclasses.asdict(demo)
                    )
    print(tables.markdown(*tables.noise(results)))


if __name__ == "__main__":
    main()
