"""An image-captioning model of ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from garevla.data.caption_journal import CaptioningError
from garevla.data.messages import first_line

DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"

_SECONDS_FOR_HUB = 5.0


class Captioner:
    """A captioning model: prepared frames -> texts.

    Args:
        name: on the Hugging Face hub, or a local folder.
        device: where it runs.
        text_settings: ``num_beams`` and ``max_new_tokens``.

    Raises:
        CaptioningError: it cannot be loaded, or needs a prompt.
        ImportError: transformers is not installed.

    Attributes:
        image_processor: frames -> the model's inputs.
    """

    def __init__(self, name: str, device: torch.device, text_settings: dict[str, int]) -> None:
        transformers = _import_transformers()
        self.name = name
        self.device = device
        self.text_settings = text_settings
        # Left open, the user would be asked on the terminal whether to run the model's own code.
        options: dict[str, Any] = {"trust_remote_code": False}
        # Else transformers would try for minutes; a copy from before may be all that is needed.
        offline = _why_offline(name)
        options["local_files_only"] = offline is not None
        try:
            # Not AutoProcessor, which for an encoder-decoder pair is its tokenizer alone.
            self.image_processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            model = transformers.AutoModelForImageTextToText.from_pretrained(name, **options)
        # transformers, the hub's client and the file formats each have errors of their own.
        except Exception as error:
            raise CaptioningError(
                f"image-captioning model {name!r} cannot be loaded; where it cannot be downloaded, "
                f"give the path of a local copy. Reason: {offline or first_line(error)}"
            ) from error
        # Without its prompt such a model may well talk, but not about the image.
        if self.tokenizer.chat_template is not None:
            raise CaptioningError(
                f"model {name!r} is a chat model, which needs a prompt; take one that captions "
                f"images by itself, such as {DEFAULT_MODEL}"
            )
        self.model = model.to(device).eval()

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Caption frames; a caption may be empty.

        Args:
            inputs: what ``image_processor`` makes of the frames.

        Raises:
            CaptioningError: the model does not caption images without a prompt.
        """
        moved = {
            key: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        try:
            tokens = self.model.generate(**moved, do_sample=False, **self.text_settings)
        except (TypeError, ValueError) as error:
            raise CaptioningError(
                f"model {self.name!r} does not caption images without a prompt: {first_line(error)}"
            ) from error
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _why_offline(name: str) -> str | None:
    """Why a model cannot be downloaded for want of a connection, found in seconds; else None."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).exists():
        return None
    try:
        HfApi().model_info(name, timeout=_SECONDS_FOR_HUB)
    except (HfHubHTTPError, ValueError):
        # An answer, or no name of a model on the hub: transformers says what is wrong.
        return None
    # The hub's client has raised errors of several packages.
    except Exception as error:
        reason = first_line(error)
        return f"there is no copy of it, and the Hugging Face hub is not reached: {reason}"
    return None


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f'transformers cannot be imported: pip install "garevla[caption]". Reason: {error}'
        ) from error
    return transformers
