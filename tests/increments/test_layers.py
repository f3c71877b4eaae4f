"""What takes the place of ψ's layers, and transforms around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import garevla
from garevla.increments.base import IncrementNetwork
from tests.helpers import random_gap_mlp, random_psi, relative_error

TEXT, FRAMES = torch.randn(3, 8), torch.randn(3, 4, 8)


class LoraLinear(nn.Module):
    """As peft's: the layer that it replaces lends its weight and bias."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class LoraSubclass(nn.Linear):
    """As peft's earlier ones, and others'."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer.in_features, base_layer.out_features)
        self.lora = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora(x)


def names_of_layers(psi: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in psi.named_modules() if isinstance(module, kind)]


NETWORKS: dict[str, Callable[[], IncrementNetwork]] = {
    "cross attention": lambda: random_psi(8),
    "dropout per pair": lambda: random_psi(8, dropout=0.1, dropout_mode="pair"),
    "gap MLP": lambda: random_gap_mlp(8),
}
CASES = [
    pytest.param(make, name, id=f"{label}-{name}")
    for label, make in NETWORKS.items()
    for name in names_of_layers(make(), nn.Linear)
]


@pytest.mark.parametrize("adapter", [LoraLinear, LoraSubclass])
@pytest.mark.parametrize(("make", "name"), CASES)
def test_adapters_inside_are_refused(
    make: Callable[[], IncrementNetwork], name: str, adapter: Callable[[nn.Module], nn.Module]
):
    psi = make()
    parent, _, child = name.rpartition(".")
    setattr(psi.get_submodule(parent), child, adapter(psi.get_submodule(name)))
    message = (
        f"psi's layer '{child}' is now a .*Lora.*exclude_modules.*"
        r"modules_to_save=\['psi'\]"
    )
    for call in (
        lambda: garevla.gare_similarity(TEXT, FRAMES, psi),
        lambda: garevla.GareLoss(psi)(TEXT, FRAMES, 10.0),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_parametrized_layers_are_computed_with(backend: str):
    for make in NETWORKS.values():
        psi = make().eval()
        plain = garevla.gare_similarity(TEXT, FRAMES, psi)
        for name in names_of_layers(psi, nn.Linear):
            parametrizations.weight_norm(psi.get_submodule(name))
        similarity = garevla.gare_similarity(TEXT, FRAMES, psi)
        assert relative_error(similarity, plain) < 1e-5
        similarity.square().sum().backward()
        assert all(
            parameter.grad is not None
            for name, parameter in psi.named_parameters()
            if "parametrizations" in name
        )


def test_peft():
    peft = pytest.importorskip("peft")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
            self.head = garevla.GareLoss(random_psi(8))

        def forward(self, text: Tensor, frames: Tensor) -> Tensor:
            return self.head(self.clip["q_proj"](text), frames, 10.0).loss

    everywhere = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"'q_proj' is now a peft\."):
        everywhere(TEXT, FRAMES)
    # What the message says to do.
    config = peft.LoraConfig(
        target_modules=["q_proj"], exclude_modules=r".*psi.*", modules_to_save=["psi"]
    )
    model = peft.get_peft_model(Model(), config)
    model(TEXT, FRAMES).backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert any("psi" in name for name in trained)
    assert any("lora_A" in name for name in trained)


def test_transforms_are_refused(backend: str):
    message = r"torch\.func .*take gradients with torch\.autograd\.grad"
    for make in NETWORKS.values():
        psi = make()
        loss = garevla.GareLoss(psi)

        def similarity(text: Tensor, psi: IncrementNetwork = psi) -> Tensor:
            return garevla.gare_similarity(text, FRAMES, psi).sum()

        for transform in (
            torch.func.grad(similarity),
            torch.func.grad(lambda text, loss=loss: loss(text, FRAMES, 10.0).loss),
            torch.func.jacrev(lambda text, psi=psi: garevla.gare_increments(text, FRAMES, psi)),
        ):
            with pytest.raises(RuntimeError, match=message):
                transform(TEXT)
        parameters = {name: 2 * value for name, value in psi.named_parameters()}
        with torch.no_grad():
            before = loss(TEXT, FRAMES, 10.0).loss
            own = {f"psi.{name}": value for name, value in parameters.items()}
            after = torch.func.functional_call(loss, own, (TEXT, FRAMES, 10.0)).loss
        assert after != before


def test_compiled_whole():
    for make in NETWORKS.values():
        loss = garevla.GareLoss(make().eval())
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        expected = loss(TEXT, FRAMES, 10.0).loss
        assert relative_error(compiled(TEXT, FRAMES, 10.0).loss, expected) < 1e-5
