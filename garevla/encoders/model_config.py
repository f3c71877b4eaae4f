"""Where a CLIP architecture comes from: an open_clip name, a JSON file, or one shipped here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

from garevla.encoders.text_towers import tower_kind

# With one of these, open_clip makes blocks of another class.
_CUSTOM_BLOCKS = (
    *("qk_norm", "scaled_cosine_attn", "scale_heads"),
    *("scale_attn_inner", "scale_attn", "scale_fc"),
)
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


def obstacles(config: dict[str, Any]) -> list[str]:
    """Why a model does not give a feature of an image and one of a text; mostly nothing."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    found = {
        "image features that are not pooled": vision.get("pool_type") == "none"
        and not vision.get("attentional_pool"),
        "text features that are not pooled": text.get("pool_type") == "none",
        "images that are not square": len(set(_image_sides(vision))) > 1,
        "a class token after the text without a text tower of its own (custom_text)": bool(
            text.get("embed_cls")
        )
        and not config.get("custom_text"),
        "a tokenizer that puts a token behind the padding": bool(text.get("tokenizer_mode")),
    }
    return [name for name, present in found.items() if present]


def adaptation_obstacles(config: dict[str, Any]) -> list[str]:
    """What keeps DiscoVLA from a model: its equations are of blocks of open_clip's own
    transformers, of CLS, and of the end of a text behind which nothing counts."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    is_timm, is_hf = vision.get("timm_model_name"), text.get("hf_model_name")
    is_resnet = isinstance(vision.get("layers"), list | tuple)
    is_vit = not (is_timm or is_resnet)
    pool = _text_option(text, "pool_type")
    found = {
        "a timm image tower, whose blocks are not CLIP's": bool(is_timm),
        "a ResNet image tower, which has no blocks of attention": is_resnet and not is_timm,
        "image features not taken at CLS": is_vit
        and (bool(vision.get("attentional_pool")) or vision.get("pool_type", "tok") != "tok"),
        "image blocks that are not CLIP's": is_vit and _has_other_blocks(vision),
        "a Hugging Face text tower": bool(is_hf),
        "text features taken at a class token behind the padding": bool(text.get("embed_cls")),
        "text features not taken at the end of the text": not is_hf
        and pool not in ("argmax", "eos"),
        "a text tower without causal mask, which sees the padding": not is_hf
        and bool(_text_option(text, "no_causal_mask")),
        "text blocks that are not CLIP's": not is_hf and _has_other_blocks(text),
    }
    return [name for name, present in found.items() if present]


def word_obstacle(config: dict[str, Any]) -> str | None:
    """Why a model gives no features of words beside those of texts, or None."""
    return tower_kind(config["text_cfg"]).no_words


def describe_towers(config: dict[str, Any]) -> tuple[str, str]:
    """In a few words, what computes the features of images and of texts."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        image = "timm"
    elif isinstance(vision.get("layers"), list | tuple):
        image = "ResNet"
    else:
        pools = {"tok": "CLS", "avg": "mean of patches"}
        pool = pools[vision.get("pool_type", open_clip.CLIPVisionCfg.pool_type)]
        image = f"ViT, {'attention pool' if vision.get('attentional_pool') else pool}"
    if text.get("hf_model_name"):
        return image, "Hugging Face"
    if text.get("embed_cls"):
        return image, "causal, class token behind the padding"
    causal = "bidirectional" if _text_option(text, "no_causal_mask") else "causal"
    ends = {"argmax": "end of the text", "eos": "end of the text", "last": "last token"}
    pool = _text_option(text, "pool_type")
    return image, f"{causal}, {ends.get(pool, f'{pool} token')}"


def check_supported(model_name: str, config: dict[str, Any], *, adapted: bool = False) -> None:
    """Refuse models that cannot be used, or that DiscoVLA cannot adapt.

    Raises:
        ValueError: naming the model and everything about it that is in the way.
    """
    if found := obstacles(config):
        raise ValueError(f"model {model_name!r} cannot be used: it has {', '.join(found)}")
    if adapted and (found := adaptation_obstacles(config)):
        raise ValueError(
            f"model {model_name!r} has {', '.join(found)}; DiscoVLA adapts ViT CLIP models such as "
            "'ViT-B-32-quickgelu', and mode gare takes this one"
        )


def load_config(model_name: str) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Architecture of a model, its preprocessing as far as a file says it, and that file.

    Raises:
        FileNotFoundError, ValueError: there is no such model.
    """
    path = find_config_file(model_name)
    if path is None:
        return named_config(model_name), {}, None
    return *read_config_file(path), path


def image_size(config: dict[str, Any]) -> int:
    """Side of a model's images, in pixels."""
    return _image_sides(config["vision_cfg"])[0]


def context_length(config: dict[str, Any]) -> int:
    """The most tokens that a model takes of a text, start and end included."""
    return int(_text_option(config["text_cfg"], "context_length"))


def _image_sides(vision: dict[str, Any]) -> tuple[int, int]:
    size = vision.get("image_size", open_clip.CLIPVisionCfg.image_size)
    return (size, size) if isinstance(size, int) else tuple(size)


def _text_option(text: dict[str, Any], name: str) -> Any:
    """A setting of a text tower, or open_clip's default."""
    return text.get(name, getattr(open_clip.CLIPTextCfg, name))


def _has_other_blocks(tower: dict[str, Any]) -> bool:
    """Whether a tower's blocks are other ones than ResidualAttentionBlock."""
    return tower.get("block_type") == "custom" or any(map(tower.get, _CUSTOM_BLOCKS))
