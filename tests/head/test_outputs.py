"""Outputs in other people's training loops, and ψ in their checkpoints."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

import garevla
from garevla.increments.base import IncrementNetwork
from tests.helpers import random_gap_mlp, random_psi

TEXT, FRAMES, CAPTIONS = torch.randn(3, 8), torch.randn(3, 4, 8), torch.randn(3, 4, 8)

OUTPUTS: dict[str, Callable[..., Any]] = {
    "gare": lambda **more: garevla.GareLoss(random_psi(8), beta=0)(TEXT, FRAMES, 10.0, **more),
    "discovla": lambda **more: garevla.DiscoVLALoss()(TEXT, FRAMES, 10.0, **more),
    "joint": lambda **more: garevla.GareDiscoVLALoss(random_psi(8))(
        TEXT, FRAMES, 10.0, None, CAPTIONS, **more
    ),
}
outputs = pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)


@outputs
def test_by_name_and_by_position(make: Callable[..., Any]):
    for out in (make(), make(return_similarity=True)):
        assert out["loss"] is out[0] is out.loss
        assert next(iter(out)) == "loss"
        assert list(out) == list(out.keys()) == [name for name, _ in out.items()]
        assert len(out) == len(out.to_tuple()) == len(list(out.values()))
        for index, (name, value) in enumerate(out.items()):
            assert value is out[name] is out[index] is getattr(out, name)
            assert isinstance(value, Tensor)
        assert out[1:] == out.to_tuple()[1:]
        assert "contrastive" in out
        assert out.get("nothing", 7) == 7


@outputs
def test_what_is_none_is_passed_over(make: Callable[..., Any]):
    out = make()
    absent = [name for name, value in vars(out).items() if value is None]
    assert "similarity" in absent
    for name in absent:
        assert name not in out
        assert out.get(name) is None
        with pytest.raises(KeyError, match=name):
            out[name]


@outputs
def test_a_tree_of_tensors(make: Callable[..., Any]):
    out = make()
    doubled = _pytree.tree_map(lambda x: 2 * x if isinstance(x, Tensor) else x, out)
    assert type(doubled) is type(out)
    assert all(torch.equal(doubled[name], 2 * out[name]) for name in out)
    assert list(doubled) == list(out)


def test_compiled_functions_return_outputs():
    loss = garevla.GareLoss(random_psi(8))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    out = compiled(TEXT, FRAMES, 10.0)
    assert isinstance(out, garevla.GareLossOutput)
    assert torch.equal(out["loss"], loss(TEXT, FRAMES, 10.0).loss)


class Retrieval(nn.Module):
    """As in the README, with ψ where a codebase may put it."""

    def __init__(self, psi: IncrementNetwork, order: str) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        for name in order.split():
            if name == "psi":
                self.psi = psi
            elif name == "validation":
                self.validation = garevla.GareLoss(psi, beta=0)
            else:
                self.loss = garevla.GareDiscoVLALoss(psi)

    def forward(self, text: Tensor, frames: Tensor) -> garevla.GareLossOutput:
        return self.loss(self.project(text), self.project(frames), 10.0)


ORDERS = ["loss", "psi loss", "loss psi", "loss validation", "psi validation loss"]
orders = pytest.mark.parametrize("order", ORDERS)


def networks() -> list[IncrementNetwork]:
    return [random_psi(8), random_gap_mlp(8)]


@orders
def test_psi_is_saved_once(order: str):
    for psi in networks():
        model = Retrieval(psi, order)
        names = [name for name, _ in model.named_parameters()]
        for keep_vars in (False, True):
            assert list(model.state_dict(keep_vars=keep_vars)) == names
        assert list(psi.state_dict()) == [name for name, _ in psi.named_parameters()]
        assert list(model.loss.state_dict()) == [n for n, _ in model.loss.named_parameters()]


@orders
@pytest.mark.parametrize("assign", [False, True])
def test_what_is_saved_loads(order: str, assign: bool):
    for source, target in zip(networks(), networks(), strict=True):
        saved = io.BytesIO()
        torch.save(Retrieval(source, order).state_dict(), saved)
        saved.seek(0)
        model = Retrieval(target, order)
        result = model.load_state_dict(torch.load(saved), strict=True, assign=assign)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert model.loss.psi is target
        for name, value in target.state_dict().items():
            assert torch.equal(value, source.state_dict()[name])


def test_files_with_psi_twice_load():
    source, target = random_psi(8), random_psi(8)
    once = Retrieval(source, "loss").state_dict()
    twice = once | {f"psi.{name}": value for name, value in source.state_dict().items()}
    Retrieval(target, "psi loss").load_state_dict(twice)
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in target.state_dict().items())


@orders
def test_a_file_without_psi_is_refused(order: str):
    model = Retrieval(random_psi(8), order)
    state = {name: value for name, value in model.state_dict().items() if "project" in name}
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*mean_proj\.weight"):
        model.load_state_dict(state)
    half = {name: value for name, value in model.state_dict().items() if "mean_proj" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*mean_proj\.weight"):
        model.load_state_dict(half)


def test_copies_and_pickles_are_models_of_their_own():
    model = Retrieval(random_psi(8), "psi loss")
    state = model.state_dict()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.psi is other.loss.psi is not model.psi
        assert list(other.state_dict()) == list(state)
        other.load_state_dict(state)


def test_two_networks_are_both_saved():
    first, second = random_psi(8), random_psi(8)
    both = nn.ModuleList([garevla.GareLoss(first), garevla.GareLoss(second)])
    assert len(both.state_dict()) == 2 * len(first.state_dict())


@pytest.fixture
def process_group(tmp_path: Any):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@orders
@pytest.mark.parametrize("static_graph", [False, True])
def test_distributed_data_parallel(process_group: None, order: str, static_graph: bool):
    torch.manual_seed(1)
    model = Retrieval(random_psi(8), order)
    plain = copy.deepcopy(model)
    plain(TEXT, FRAMES)["loss"].backward()
    parallel = DistributedDataParallel(model, static_graph=static_graph)
    for _ in range(3):
        parallel.zero_grad()
        parallel(TEXT, FRAMES)["loss"].backward()
        for got, want in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(got.grad, want.grad)
    assert list(parallel.state_dict()) == [f"module.{name}" for name in model.state_dict()]


def test_safetensors(tmp_path: Any):
    safetensors = pytest.importorskip("safetensors.torch")
    for order in ORDERS:
        source, model = Retrieval(random_psi(8), order), Retrieval(random_psi(8), order)
        path = os.fspath(tmp_path / "model.safetensors")
        # Refuses tensors that share memory.
        safetensors.save_file(source.state_dict(), path)
        model.load_state_dict(safetensors.load_file(path))
        assert torch.equal(model.loss.psi.mean_proj.weight, source.loss.psi.mean_proj.weight)
