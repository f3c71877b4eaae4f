"""The operators of torch.library behind the backends: what PyTorch asks of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import garevla
from garevla.utils.versions import version_numbers
from tests.conformance.operations import OPERATIONS, inputs_of, leaves, outputs, results
from tests.conformance.targets import EAGER, TARGETS, Target, on_operations, on_targets
from tests.helpers import random_batch, random_psi, relative_error

NAMESPACE = "garevla"
"""What the namespaces of all operators begin with."""

Call = tuple[Any, tuple[Any, ...]]


class OperatorCalls(TorchDispatchMode):
    """Notes every call of an operator of the package's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace.startswith(NAMESPACE):
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def operator_calls(target: Target, operation: str, dtype: torch.dtype) -> list[Call]:
    """The operators' calls in an operation: with gradients, of one output's, and without."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad)
        return value

    def constant(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, Tensor) else value

    inputs = inputs_of(operation, OPERATIONS[operation].tiny, dtype, target.device)
    with OperatorCalls() as forward:
        found = outputs(operation, target.backend, inputs)
    # The gradients' operators have none of their own.
    with OperatorCalls() as backward:
        wanted = list(leaves(inputs).values())
        torch.autograd.grad(found[0].sum(), wanted, retain_graph=True, allow_unused=True)
        if len(found) > 1:
            torch.autograd.grad(sum(x.sum() for x in found), wanted, allow_unused=True)
    with torch.no_grad(), OperatorCalls() as without:
        outputs(operation, target.backend, inputs)
    calls = [(function, tree_map(leaf, args)) for function, args in forward.calls]
    others = [*backward.calls, *(without.calls if _differs(forward, without) else ())]
    return calls + [(function, tree_map(constant, args)) for function, args in others]


def _differs(forward: OperatorCalls, without: OperatorCalls) -> bool:
    """Whether other operators, or other options, are called where no gradient is wanted."""

    def described(calls: list[Call]) -> list[Any]:
        return [
            (function, [None if isinstance(x, (Tensor, list)) else x for x in args])
            for function, args in calls
        ]

    return described(forward.calls) != described(without.calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@on_operations(slow_where_interpreted=True)
def test_opcheck(target: Target, operation: str, dtype: torch.dtype):
    if dtype == torch.float64:
        if target.interpreted:
            pytest.skip("the same operators as in float32, and slow")
        inputs = inputs_of(operation, OPERATIONS[operation].tiny, dtype, target.device)
        if (reason := target.refusal(operation, inputs)) is not None:
            pytest.skip(reason)
    calls = operator_calls(target, operation, dtype)
    assert calls
    for function, arguments in calls:
        torch.library.opcheck(function, arguments)


@on_targets()
def test_every_operator_is_checked(target: Target):
    called = {
        function.name()
        for operation in OPERATIONS
        if target.owns(operation)
        for function, _ in operator_calls(target, operation, torch.float32)
    }
    namespaces = {name.partition("::")[0] for name in called}
    registered = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert called == {name for name in registered if name.partition("::")[0] in namespaces}


@pytest.mark.skipif(
    version_numbers(torch.__version__) < (2, 8), reason="older compilers break these graphs"
)
@on_operations([EAGER, *TARGETS], slow_where_interpreted=True)
def test_compiles_in_one_graph(target: Target, operation: str):
    given = OPERATIONS[operation]
    inputs = inputs_of(operation, given.usual, torch.float32, target.device)

    def function(inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        return outputs(operation, target.backend, inputs)

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    named = list(leaves(inputs).values())

    def run(function: Any) -> list[Tensor | None]:
        values = function(inputs)
        total = sum(value.square().sum() for value in values)
        return [*values, *torch.autograd.grad(total, named, allow_unused=True)]

    for got, want in zip(run(compiled), run(function), strict=True):
        assert (got is None) == (want is None)
        assert got is None or relative_error(got, want) < 1e-6


LOSSES = {
    "streaming": {"lambda_direction": 0.0},
    "samples": {"direction_samples": 3, "lambda_direction": 0.1},
    "exact": {"lambda_direction": 0.1},
}


# In the interpreter it would take long: its operations compile, says the test above.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["similarity", *LOSSES])
@on_targets([target for target in TARGETS if not target.interpreted])
def test_the_head_compiles_in_one_graph(target: Target, name: str):
    psi = random_psi(16, 2).to(target.device)
    text, frames, mask = (
        x.detach().to(target.device) for x in random_batch(6, 6, 4, 16, torch.float32)
    )
    scale = torch.tensor(20.0, device=target.device)
    inputs = [x.requires_grad_() for x in (text, frames, scale)]
    if name == "similarity":

        def function(text: Tensor, frames: Tensor, scale: Tensor) -> Tensor:
            return (scale * garevla.gare_similarity(text, frames, psi, mask)).square().sum()
    else:
        loss = garevla.GareLoss(psi, **LOSSES[name])

        def function(text: Tensor, frames: Tensor, scale: Tensor) -> Tensor:
            return loss(text, frames, scale, mask).loss

    found = []
    torch.compiler.reset()
    with garevla.use_backend(target.backend):
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            torch.manual_seed(3)
            value = run(*inputs)
            found.append([value, *torch.autograd.grad(value, [*inputs, psi.mean_proj.weight])])
    bound = 1e-6 if target.device == "cpu" else 1e-5
    for compiled, plain in zip(found[1], found[0], strict=True):
        assert relative_error(compiled, plain) < bound


@on_operations()
def test_no_second_derivatives(target: Target, operation: str):
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, torch.float32, target.device)
    total = sum(value.square().sum() for value in outputs(operation, target.backend, inputs))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(total, next(iter(leaves(inputs).values())), create_graph=True)


@on_operations()
def test_devices_must_be_one(target: Target, operation: str):
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, torch.float32, target.device)
    for name in ("rows", "basis", "frames"):
        if name in inputs:
            inputs[name] = inputs[name].to("meta")
    with pytest.raises((ValueError, RuntimeError), match=r"device|on meta"):
        results(operation, target.backend, inputs)
