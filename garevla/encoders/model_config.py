"""Where a CLIP architecture comes from: an open_clip name, a JSON file, or one shipped here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

_SHIPPED = Path(__file__).parent / "configs"


def shipped_model_names() -> list[str]:
    """Names of the architectures that come with garevla."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def find_config_file(model_name: str) -> Path | None:
    """The JSON file that ``model_name`` stands for, or None where open_clip knows the name.

    Raises:
        FileNotFoundError: ``model_name`` ends in ``.json`` and there is no such file.
    """
    if model_name in shipped_model_names():
        return _SHIPPED / f"{model_name}.json"
    if not model_name.endswith(".json"):
        return None
    path = Path(model_name)
    if not path.is_file():
        raise FileNotFoundError(f"model config file not found: {path}")
    return path


def read_config_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing of an open_clip JSON file.

    Both of open_clip's formats are read: the bare architecture, and ``open_clip_config.json``
    with ``model_cfg`` and ``preprocess_cfg``.

    Raises:
        ValueError: not JSON, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file of use: {error}") from error
    if isinstance(content, dict) and "model_cfg" in content:
        model, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
    else:
        model, preprocess = content, {}
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
        raise ValueError(
            f"{path} is not an open_clip model config: embed_dim, vision_cfg and text_cfg expected"
        )
    model = {key: value for key, value in model.items() if not (key == "custom_text" and not value)}
    return model, preprocess


def named_config(model_name: str) -> dict[str, Any]:
    """open_clip's architecture of that name.

    Raises:
        ValueError: open_clip knows no such model.
    """
    if model_name not in open_clip.list_models():
        raise ValueError(
            f"unknown model {model_name!r}: give an open_clip name such as 'ViT-B-32-quickgelu', "
            f"the path of a .json model config, or one of {shipped_model_names()}"
        )
    return open_clip.get_model_config(model_name)


def check_supported(model_name: str, config: dict[str, Any]) -> None:
    """Refuse what is not CLIP as published: a ViT beside a causal text transformer with EOT.

    Raises:
        ValueError: naming the model and everything about it that is not supported.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    unsupported = {
        "a ResNet image tower": isinstance(vision.get("layers"), list | tuple),
        "a timm image tower": bool(vision.get("timm_model_name")),
        "image features that are not pooled": vision.get("pool_type") == "none",
        "a Hugging Face text tower": bool(text.get("hf_model_name")),
        "a Hugging Face tokenizer": bool(text.get("hf_tokenizer_name")),
        "text features not taken at the end of the text": text.get("pool_type", "argmax")
        != "argmax"
        or bool(text.get("embed_cls")),
        "a text tower without causal mask": bool(text.get("no_causal_mask")),
        "a text tower of its own class": bool(config.get("custom_text")),
        "a text decoder (CoCa)": "multimodal_cfg" in config,
    }
    features = [name for name, present in unsupported.items() if present]
    if features:
        raise ValueError(
            f"model {model_name!r} has {', '.join(features)}; supported are ViT CLIP models with "
            "open_clip's own image and text transformers, such as 'ViT-B-32-quickgelu'"
        )


def context_length(model_name: str) -> int:
    """The most tokens that a model takes of a text, start and end included.

    Raises:
        FileNotFoundError, ValueError: there is no such model.
    """
    path = find_config_file(model_name)
    config = named_config(model_name) if path is None else read_config_file(path)[0]
    return int(config["text_cfg"].get("context_length", 77))
