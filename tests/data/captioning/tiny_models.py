"""Tiny captioning models with random weights, and the words that they know."""

from __future__ import annotations

import typing
from pathlib import Path

import torch

WORDS = ["red", "blue", "green", "circle", "square", "moves", "left", "right", "up", "down"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Weights this large make random models look at the image.
LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 1.0,
}
IMAGES = {**LAYERS, "image_size": 16, "patch_size": 8}
TEXT = {
    **LAYERS,
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def save_blip(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    text = {**TEXT, "sep_token_id": 3, "encoder_hidden_size": 32, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=IMAGES, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    say_words_only(model.text_decoder.cls.predictions.bias)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def save_git(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    model = GitForCausalLM(GitConfig(vision_config=IMAGES, **TEXT))
    say_words_only(model.output.bias)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    GitProcessor(images, tokenizer).save_pretrained(folder)


def save_encoder_decoder(folder: Path, tokenizer: typing.Any) -> None:
    from transformers import (
        BertConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    decoder = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**IMAGES), decoder)
    model = VisionEncoderDecoderModel(config)
    say_words_only(model.decoder.cls.predictions.bias)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


KINDS = {"blip": save_blip, "git": save_git, "encoder-decoder": save_encoder_decoder}


def say_words_only(bias: torch.Tensor) -> None:
    with torch.no_grad():
        bias[: len(SPECIAL)] = -1e4
