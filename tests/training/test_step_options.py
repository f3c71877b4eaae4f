"""Options of a training step: the same step, with less memory or in less time."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from garevla.training import ConfigError, RetrievalModel, TrainConfig, build_model, loop, train
from garevla.training.compilation import check_compiles, compile_model
from garevla.training.log import read_metrics
from garevla.training.optim import create_optimizer, load_optimizer
from tests.helpers import relative_error, saved_bytes
from tests.training.conftest import SMALL_CLIP
from tests.training.runs import MakeConfig, assert_same_end, final_state, train_until

pytestmark = pytest.mark.usefixtures("no_curves")

MODES = ["gare", "discovla", "gare+discovla"]
FRAMES = 3


@pytest.fixture
def deep_model(tmp_path: Path) -> str:
    """Settings of a small CLIP of several blocks."""
    towers = {
        name: {**SMALL_CLIP[name], "layers": layers}
        for name, layers in (("vision_cfg", 4), ("text_cfg", 3))
    }
    path = tmp_path / "deep.json"
    path.write_text(json.dumps({**SMALL_CLIP, **towers}))
    return str(path)


def make_model(config: TrainConfig) -> RetrievalModel:
    """A training model whose adapters do something."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.train()


def make_batch(model: RetrievalModel, mode: str, texts: list[str], *, padded: bool) -> list[Tensor]:
    frames = torch.full((len(texts), 1), FRAMES)
    if padded:
        frames[0] = 1
    tokens = model.tokenize(texts)
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
    video = torch.randn(len(texts), FRAMES, 3, 32, 32)
    batch = [tokens, video, torch.arange(FRAMES) < frames]
    if mode != "gare":
        batch.append(tokens.unsqueeze(1).repeat(1, FRAMES, 1))
    return batch


def step(model: RetrievalModel, batch: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    model.zero_grad()
    loss = model(*batch).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def settings_of(mode: str, name: str, **changes: Any) -> dict[str, Any]:
    fusion = {} if mode == "gare" else {"vision_fusion_blocks": 1, "text_fusion_blocks": 1}
    return {"mode": mode, "name": name, "psi_dropout": 0.0, **fusion, **changes}


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_run_again_give_the_same_gradients(
    make_config: MakeConfig, deep_model: str, mode: str, chunk: int
):
    config = make_config(
        "run",
        model=settings_of(mode, deep_model, temporal_layers=2),
        run={"encoder_chunk": chunk},
    )
    found, bytes_kept = [], []
    for again in (False, True):
        model = make_model(config)
        for tower in (model.encoder.clip.visual, model.encoder.clip):
            for block in tower.transformer.resblocks:
                # Its masks have to be the same both times. DiscoVLA keeps CLIP in evaluation mode.
                block.ls_1 = nn.Dropout(0.3).train()
        if again:
            model.encoder.checkpoint_activations()
        batch = make_batch(model, mode, ["a red circle", "it moves up", "two"], padded=True)
        torch.manual_seed(1)
        found.append(step(model, batch))
        encode = functools.partial(model.encode_video, *batch[1:3])
        bytes_kept.append(saved_bytes(encode))
    (loss, gradients), (loss_again, gradients_again) = found
    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name
    # Of 4 vision and 2 temporal blocks the input is left, of all frames at most.
    tokens, width = (32 // 16) ** 2 + 1, SMALL_CLIP["vision_cfg"]["width"]
    inputs = 6 * 3 * FRAMES * tokens * width * 4
    assert bytes_kept[1] + inputs < 0.5 * bytes_kept[0]


def test_a_run_goes_on_with_blocks_that_run_again(
    make_config: MakeConfig, uninterrupted: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    train_until(make_config("cut", run={"save_every_steps": 2}), monkeypatch, "clip_grad_norm_", 4)
    config = make_config(
        "cut",
        run={"save_every_steps": 2, "resume": True, "activation_checkpointing": True},
    )
    train(config)
    assert_same_end(config, uninterrupted)


def updated(
    fused: bool, dtype: torch.dtype, state: dict[str, Any] | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Weights after 20 updates, or 10 more with a state, and the optimizer's state."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(300, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    weight = nn.Parameter(draw())
    optimizer = create_optimizer(
        [{"params": [weight], "lr": 1e-2, "weight_decay": 0.2}], fused=fused
    )
    if state is not None:
        load_optimizer(optimizer, copy.deepcopy(state))
    for _ in range(20 if state is None else 10):
        weight.grad = draw()
        optimizer.step()
    assert bool(optimizer.param_groups[0]["fused"]) == fused
    return weight.detach(), optimizer.state_dict()


def test_one_kernel_updates_as_many_do():
    exact, _ = updated(False, torch.float64)
    plain, plain_state = updated(False, torch.float32)
    fused, fused_state = updated(True, torch.float32)
    assert relative_error(fused, exact) < 3 * relative_error(plain, exact) + 1e-8
    # Whoever wrote the state, either goes on from it.
    exact, _ = updated(False, torch.float64, updated(False, torch.float64)[1])
    errors = [
        relative_error(updated(own, torch.float32, state)[0], exact)
        for own in (False, True)
        for state in (plain_state, fused_state)
    ]
    assert max(errors) < 3 * errors[0] + 1e-8
    with pytest.raises(ValueError, match="number of parameter groups"):
        load_optimizer(
            create_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}]),
            {**plain_state, "param_groups": plain_state["param_groups"] * 2},
        )


def test_a_run_goes_on_with_one_kernel(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    def losses(config: TrainConfig) -> list[float]:
        records = read_metrics(config.run.output_dir / "metrics.jsonl")
        return [record["loss"] for record in records if record["kind"] == "train"]

    plain = make_config("plain", optimizer={"fused": False})
    train(plain)
    cut = {"optimizer": {"fused": False}, "run": {"save_every_steps": 2}}
    train_until(make_config("cut", **cut), monkeypatch, "clip_grad_norm_", 4)
    resumed = make_config("cut", run={"save_every_steps": 2, "resume": True})
    train(resumed)
    assert all(group["fused"] for group in final_state(resumed)["optimizer"]["param_groups"])
    # Weights without a gradient but rounding (a bias of keys) move with its sign, and do nothing.
    assert losses(resumed) == pytest.approx(losses(plain), rel=1e-4)


def test_encoders_run_in_bfloat16_and_the_loss_does_not(make_config: MakeConfig):
    config = make_config("run", run={"precision": "bfloat16"})
    seen = []

    class Seen(Exception):
        pass

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen.append((module.training, arguments[0].dtype, getattr(output, "loss", output).dtype))

    original = loop.build_model

    def build(*arguments: Any, **options: Any) -> RetrievalModel:
        model = original(*arguments, **options)
        model.criterion.register_forward_hook(note)
        model.encoder.clip.visual.register_forward_hook(note)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", build)
        train(config)
    half, single = torch.bfloat16, torch.float32
    losses = {(given, found) for training, given, found in seen if training and given == half}
    assert losses == {(half, single)}
    # Of float32 images, also in evaluation.
    images = {(training, found) for training, given, found in seen if given == single}
    assert images == {(True, half), (False, half)}


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"run\.compile: .* needs a C\+\+ compiler"):
        check_compiles(torch.device("cpu"))


@pytest.mark.parametrize("mode", ["gare", pytest.param("gare+discovla", marks=pytest.mark.slow)])
def test_a_compiled_step(make_config: MakeConfig, mode: str):
    """Without graph breaks; once for all lengths of texts, and but for the loss of frames, whose
    loop over texts is unrolled, for all sizes of batches."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    config = make_config("run", model=settings_of(mode, "tiny", temporal_layers=1))
    config.model.name = str(config.data.annotation_dir.parent / "model.json")
    plain, compiled = make_model(config), make_model(config)
    names = compiled.state_dict().keys()
    compile_model(compiled, backend="eager")
    assert compiled.state_dict().keys() == names
    counters.clear()
    graphs = []
    for texts in (
        ["a red circle moves", "a dot", "two", "it turns around"],
        ["a red circle moves then it turns", "a dot", "two"],
        ["a red circle", "a dot", "two"],
    ):
        batch = make_batch(plain, mode, texts, padded=True)
        (want, gradients), (loss, found) = step(plain, batch), step(compiled, batch)
        assert relative_error(loss, want) < 1e-6
        assert found.keys() == gradients.keys()
        largest = max(gradient.norm() for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert (found[name] - gradient).norm() < 1e-5 * max(gradient.norm(), 1e-3 * largest)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] + (mode != "gare") >= graphs[1] == graphs[2] > 0
    assert not counters["graph_break"]
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_run(
    make_config: MakeConfig, uninterrupted: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """Cut off, and resumed compiled: with chunks, last batches, evaluation and checkpoints."""
    torch.compiler.reset()
    monkeypatch.setattr(loop, "check_compiles", lambda device: None)
    monkeypatch.setattr(loop, "compile_model", lambda model: compile_model(model, "eager"))
    changes = {"optimizer": {"batch_size": 7}, "model": {"psi_dropout": 0.0}}
    run = {"save_every_steps": 2, "encoder_chunk": 3}
    plain = make_config("plain", **changes, run=run)
    train(plain)
    train_until(make_config("cut", **changes, run=run), monkeypatch, "clip_grad_norm_", 4)
    options = {"resume": True, "compile": True, "activation_checkpointing": True}
    resumed = make_config("cut", **changes, run={**run, **options})
    train(resumed)
    want, found = final_state(plain)["model"], final_state(resumed)["model"]
    assert want.keys() == found.keys()
    for name, weight in want.items():
        assert relative_error(found[name], weight) < 1e-3, name
    torch.compiler.reset()
