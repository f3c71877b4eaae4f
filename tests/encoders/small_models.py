"""Small random models of every family that open_clip has: its own configs with smaller numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm

TEXTS = ["a red square moves left", "two dogs", "a man cooks and sings and cooks again", "go"]
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]

# timm's architectures by smaller numbers; open_clip takes them by name alone.
_TIMM: dict[str, dict[str, Any]] = {
    "vit_pe_core_tiny_patch16_384": {"img_size": 64, "num_heads": 3, "ref_feat_shape": (4, 4)},
    "vit_base_patch16_siglip_224": {"img_size": 32, "num_heads": 3},
    "vit_base_patch16_siglip_384": {"img_size": 32, "num_heads": 3},
    "eva02_base_patch16_clip_224": {"img_size": 32, "num_heads": 3},
    "vit_medium_patch16_gap_256": {"img_size": 32, "num_heads": 3},
    "vit_relpos_medium_patch16_cls_224": {"img_size": 32, "num_heads": 3},
    "vit_base_mci_224": {"img_size": 64, "embed_dim": 768, "depth": 1},
    "vitamin_small_224": {"img_size": 64, "embed_dim": 384, "depth": 1},
    "fastvit_mci0": {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "swin_base_patch4_window7_224": {
        "img_size": 56,
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 4, 8),
    },
}
_TIMM_IMAGE_SIZES = {"fastvit_mci0": 64, "convnext_base": 64}

# open_clip's name, what its config has other than numbers, and the image size.
FAMILIES = (
    "ViT-B-32-quickgelu",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "RN50",
    "PE-Core-T-16-384",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "EVA02-B-16",
    "MobileCLIP2-S0",
    "MobileCLIP2-B",
    "ViTamin-S",
    "convnext_base",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "coca_ViT-B-32",
    "coca_base",
    "coca_roberta-ViT-B-32",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "nllb-clip-base-siglip",
)


@contextlib.contextmanager
def small_timm() -> Iterator[None]:
    """timm makes the architectures above small."""
    create = timm.create_model

    def create_small(name: str, **options: Any) -> Any:
        sizes = _TIMM[name]
        if name.startswith(("vit_", "eva02")):
            sizes = {"embed_dim": 48, "depth": 2, **sizes}
        return create(name, **sizes, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_small)
        yield


def write_small(name: str, folder: Path, texts: Sequence[str] = TEXTS) -> str:
    """Write the config of a small model of a family, with the files of its tokenizer beside it;
    returns the config's path."""
    pieces = [*_SPECIAL, *sorted({word for text in texts for word in text.split()})]
    folder = folder / name
    folder.mkdir()
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 48
    timm_name = vision.get("timm_model_name")
    if timm_name is not None:
        vision["image_size"] = _TIMM[timm_name].get("img_size", _TIMM_IMAGE_SIZES.get(timm_name))
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    else:
        vision |= {"layers": 3, "width": 48, "head_width": 24, "patch_size": 16, "image_size": 32}
        if vision.get("attentional_pool"):
            vision |= {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 48, "heads": 2, "layers": 1}
    if text.get("hf_model_name"):
        hf_name = text["hf_model_name"]
        text |= {"hf_model_name": _write_hf_model(hf_name, folder / "tower", len(pieces))}
    else:
        text |= {"width": 48, "heads": 2, "layers": 3}
    if text.get("hf_tokenizer_name"):
        _write_tokenizer(name, folder, pieces)
        text["vocab_size"] = len(pieces)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def _write_tokenizer(name: str, folder: Path, pieces: list[str]) -> None:
    """A tokenizer of whole words in the place of the model's, with special tokens like its."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "sep": "</s>"}
    template = "<s> $A </s>"
    if "SigLIP" in name:
        template = "$A </s>"
        if "SigLIP2" not in name:
            special["pad"] = "</s>"
    if "SigLIP" in name or "CLIPA" in name or "mt5" in name:
        pieces = ["<pad>", "</s>", "<s>", *pieces[3:]]
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(each, ids[each]) for each in ("<s>", "</s>")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": each for role, each in special.items()}
    )
    fast.save_pretrained(folder)


def _write_hf_model(name: str, folder: Path, vocab_size: int) -> str:
    """A small transformers config of the same kind; returns its folder."""
    import transformers

    sizes = {"vocab_size": vocab_size, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if "nllb" in name:
        config = transformers.M2M100Config(
            **sizes,
            d_model=48,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
        )
    elif "mt5" in name:
        sizes |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        config = transformers.MT5Config(
            **sizes, d_model=48, d_kv=24, d_ff=64, num_layers=2, num_heads=2
        )
    else:
        kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
        config = kind(**sizes, **layers, hidden_size=48, max_position_embeddings=90)
    config.save_pretrained(folder)
    return str(folder)
