"""The code of docs/adapters.md, in the codebases that it is for and on its own."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

import garevla
from garevla.encoders import ClipEncoder
from tests.helpers import random_psi, relative_error
from tests.snippets import names_of, snippets

DOCUMENT = Path(__file__).parents[1] / "docs/adapters.md"


@pytest.fixture
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What the test is parametrized with, out of the block that defines it."""
    name = request.param
    (code,) = (code for code in snippets(DOCUMENT) if f" {name}(" in code)
    return names_of(code, tmp_path)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("adapter", [name], indirect=True)


@of("cached_backward")
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(adapter, chunk: int) -> None:
    encoder = ClipEncoder("tiny", None, temporal_layers=1, max_frames=3).double().eval()
    loss = garevla.GareLoss(random_psi(encoder.dim).double())
    tokens = torch.randint(1, 100, (8, 6))
    tokens[:, -1] = 49407
    video = torch.randn(8, 3, 3, 64, 64, dtype=torch.float64)
    mask = torch.arange(3) < torch.tensor([[3], [2]] * 4)
    text, frames = encoder.encode_text(tokens), encoder.encode_video(video, mask)
    expected = loss(text, frames, encoder.logit_scale, mask)
    expected.loss.backward()
    parameters = [*encoder.parameters(), *loss.parameters()]
    wanted = [parameter.grad for parameter in parameters]
    assert all(gradient is not None for gradient in wanted)
    encoder.zero_grad(set_to_none=True)
    loss.zero_grad(set_to_none=True)
    out = adapter["cached_backward"](
        (encoder.encode_text, lambda rows: encoder.encode_video(video[rows], mask[rows])),
        (tokens, torch.arange(8)),
        loss,
        encoder.logit_scale,
        mask,
        chunk,
    )
    assert relative_error(out.loss, expected.loss) < 1e-12
    whole = torch.cat([gradient.flatten() for gradient in wanted]).norm()
    for parameter, gradient in zip(parameters, wanted, strict=True):
        # That of the keys' bias is 0 but for rounding.
        assert (parameter.grad - gradient).norm() < 1e-11 * gradient.norm() + 1e-14 * whole


@of("TextVideoCLIP")
def test_open_clips_own_trainer(adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pytest.importorskip("open_clip_train.train")
    clip = ClipEncoder("tiny", None, temporal_layers=0).clip
    model = adapter["TextVideoCLIP"](clip, clip.visual.output_dim)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    texts = open_clip.tokenize(["a red circle", "two dogs", "a cat"], context_length=32)
    batches = [(torch.randn(3, 2, 3, 64, 64), texts)] * 2

    class Loader(list):
        num_batches, num_samples = 2, 6

    data = {"train": Namespace(dataloader=Loader(batches), set_epoch=lambda epoch: None)}
    args = Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=1.0,
        batch_size=3,
        world_size=1,
        rank=0,
        local_rank=0,
        log_every_n_steps=1,
        wandb=False,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(trainer, "get_autocast", lambda *args, **options: nullcontext)
    trainer.train_one_epoch(model, data, adapter["pass_on"], 0, optimizer, None, None, None, args)
    after = model.state_dict()
    unmoved = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not [name for name in unmoved if name.startswith("gare.") and "k_proj.bias" not in name]
    assert len(unmoved) < len(before) // 4


@of("TextVideoModel")
def test_transformers_clip(adapter) -> None:
    transformers = pytest.importorskip("transformers")
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "pad_token_id": 0}
    images = {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(
        text_config=tower | words, vision_config=tower | images, projection_dim=12
    )
    clip = transformers.CLIPModel(config)
    model = adapter["TextVideoModel"](clip)
    ids = torch.randint(1, 49, (4, 8))
    ids[:, -1] = 49
    batch: dict[str, Tensor] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(4, 3, 3, 32, 32),
        "frame_mask": torch.arange(3) < torch.tensor([[3], [1], [2], [3]]),
    }
    loss = model(**batch)["loss"]
    loss.backward()
    assert all(x.grad is not None for name, x in model.named_parameters() if "position" not in name)
    # transformers' own similarity of texts and single frames is that of these features.
    single = {**batch, "pixel_values": batch["pixel_values"][:, 0]}
    del single["frame_mask"]
    expected = clip(**single).logits_per_text / clip.logit_scale.exp()
    text = model.encode_text(ids, batch["attention_mask"])
    frames = model.encode_video(batch["pixel_values"])
    got = garevla.mean_frame_similarity(text, frames[:, :1])
    assert relative_error(got, expected) < 1e-5
    wanted = model.gare(text, frames, clip.logit_scale.exp(), batch["frame_mask"]).loss
    assert relative_error(loss, wanted) < 1e-6
