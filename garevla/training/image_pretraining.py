"""A small CLIP trained on single frames and their captions.

It stands in for downloaded weights where there are none: like CLIP's, its image features know what
an image shows, and nothing of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from garevla.encoders import ClipEncoder
from garevla.head.info_nce import info_nce
from garevla.training.optim import create_optimizer, create_schedule, parameter_groups
from garevla.utils.files import atomic_file


def pretrain_clip(
    model_name: str,
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    output: Path,
    *,
    context_length: int = 32,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Train a CLIP from random weights and write them as a checkpoint that open_clip reads.

    A batch is drawn from the images, with one caption of each; an image whose caption is in the
    batch already is passed over, since equal captions would count as wrong.

    Args:
        model_name: as for :class:`garevla.encoders.ClipEncoder`.
        images: uint8 (N, height, width, 3).
        captions: of each image, at least one text.
        output: the file to write, whole or not at all.
        context_length: tokens per caption, start and end included.
        steps, batch_size, learning_rate: of AdamW with warm-up and cosine decay; fewer captions
            make smaller batches.
        seed: of weights and batches.
        progress: show a tqdm bar.

    Returns:
        The loss of the last step.

    Raises:
        ValueError: an image without captions, or fewer than two different captions in all.
    """
    texts = _different_texts(images, captions)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    encoder = ClipEncoder(
        model_name, None, temporal_layers=0, context_length=context_length
    ).train()
    transform = encoder.video_transform()
    cropped = transform.crop(images)
    tokens = dict(zip(texts, encoder.tokenizer.trimmed(texts), strict=True))
    parameters = parameter_groups(
        encoder, encoder.clip, learning_rate=learning_rate, clip_lr_scale=1.0, weight_decay=0.05
    )
    optimizer = create_optimizer(parameters)
    schedule = create_schedule(optimizer, steps, warmup_proportion=0.1)
    for _ in tqdm(range(steps), desc="images", unit="step", disable=not progress):
        batch = _draw_batch(captions, batch_size, generator)
        image_features = encoder.encode_images(transform.normalize(cropped[list(batch.values())]))
        text_features = encoder.encode_text(torch.stack([tokens[text] for text in batch]))
        similarity = torch.cosine_similarity(
            text_features.unsqueeze(1), image_features.unsqueeze(0), dim=-1
        )
        loss = info_nce(similarity, encoder.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        encoder.clamp_logit_scale_()
    with atomic_file(output) as file:
        torch.save(encoder.clip.state_dict(), file)
    return loss.item()


def _different_texts(images: np.ndarray, captions: Sequence[Sequence[str]]) -> list[str]:
    """The different captions, each once; raises ValueError where there is nothing to learn."""
    texts = list(dict.fromkeys(text for image_captions in captions for text in image_captions))
    captioned = sum(len(image_captions) > 0 for image_captions in captions)
    if not len(captions) == len(images) == captioned or len(texts) < 2:
        raise ValueError(
            f"need a caption for each image and two different ones at least, got {len(images)} "
            f"images, {captioned} with captions, and {len(texts)} different captions"
        )
    return texts


def _draw_batch(
    captions: Sequence[Sequence[str]], size: int, generator: np.random.Generator
) -> dict[str, int]:
    """Different captions, at most ``size``, and the index of an image of each."""
    batch: dict[str, int] = {}
    for index in generator.permutation(len(captions)).tolist():
        image_captions = captions[index]
        batch.setdefault(image_captions[int(generator.integers(len(image_captions)))], index)
        if len(batch) == size:
            break
    return batch
