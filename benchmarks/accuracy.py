"""Errors against the float64 oracle: values and gradients of every implementation."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, Network, make_inputs, make_psi
from benchmarks.implementations import (
    DEFINITION,
    IMPLEMENTATIONS,
    PUBLISHED,
    Run,
    build,
    evaluate,
)
from benchmarks.peers import OURS, PLAIN

# Larger batches are checked at this size: the oracle keeps every pair in float64.
LARGEST_CHECKED = {"cpu": 128, "cuda": 512}
# Beyond this an implementation is not slow or fast but wrong.
TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}
ROUNDED_TOLERANCE = 0.1
# Between the two oracles, both in float64.
ORACLES_AGREE = 1e-9
_AGREEMENT_BATCH = 16
# Of the largest gradient's norm: a gradient smaller than this is rounding.
VANISHING = 1e-9


def tolerance(name: str, case: Case) -> float:
    """The largest error that an implementation may have in a case."""
    rounded = IMPLEMENTATIONS[name].precision != "float32"
    return ROUNDED_TOLERANCE if rounded else TOLERANCE[case.dtype]


class Errors(NamedTuple):
    """Relative errors, in norm: of the result, and the largest of all gradients, if any."""

    value: float
    gradient: float | None

    @property
    def largest(self) -> float:
        """The larger one; NaN if one is."""
        return _largest([self.value, *([] if self.gradient is None else [self.gradient])])


class Oracle:
    """The eager definition in float64, itself compared with the published formulas in float64.

    Of InfoNCE alone: that in plain PyTorch, compared with :func:`garevla.info_nce`.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = replace(case, batch=min(case.batch, LARGEST_CHECKED.get(device.type, 64)))
        self.inputs = make_inputs(self.case, device, 1)[0]
        self._names = (PLAIN, OURS) if case.workload == "info_nce" else (DEFINITION, PUBLISHED)
        self.exact = self._in_float64(self._names[0], self.case, self.inputs)

    @classmethod
    def cached(
        cls, cache: dict[tuple[object, ...], Oracle], case: Case, device: torch.device
    ) -> Oracle:
        """The oracle of a case, or that of another with the same shapes at the size checked."""
        key = (case.series, min(case.batch, LARGEST_CHECKED.get(device.type, 64)))
        if key not in cache:
            cache[key] = cls(case, device)
        return cache[key]

    def errors_of(self, run: Run, psi: Network) -> Errors:
        """Errors of an implementation; of gradients that vanish by symmetry none."""
        torch.manual_seed(0)
        return _errors(evaluate(run, self.inputs, self.case, psi), self.exact)

    @functools.cached_property
    def disagreement(self) -> float:
        """Relative difference of both oracles at a small batch; sampled cases have but one."""
        if self.case.direction == "sampled":
            return 0.0
        case = replace(self.case, batch=min(self.case.batch, _AGREEMENT_BATCH))
        inputs = make_inputs(case, self.inputs.text.device, 1)[0]
        one, other = (self._in_float64(name, case, inputs) for name in self._names)
        return _errors(one, other).largest

    def _in_float64(self, name: str, case: Case, inputs: Inputs) -> list[Tensor]:
        case = replace(case, dtype="float64")
        psi = make_psi(self.case, inputs.text.device).double()
        torch.manual_seed(0)
        return evaluate(build(name, case, psi), inputs.to(torch.float64), case, psi)


def _errors(values: list[Tensor], exact: list[Tensor]) -> Errors:
    norms = [float(x.detach().norm()) for x in exact]
    largest = max(norms[1:], default=0.0)
    value, *gradients = [
        float((value.double() - reference).detach().norm()) / max(norm, 1e-300)
        for value, reference, norm in zip(values, exact, norms, strict=True)
    ]
    # Some vanish by symmetry, such as that of a bias ahead of a softmax.
    real = [e for e, norm in zip(gradients, norms[1:], strict=True) if norm > VANISHING * largest]
    return Errors(value, _largest(real) if real else None)


def _largest(errors: list[float]) -> float:
    # max() passes over a NaN.
    return float("nan") if any(error != error for error in errors) else max(errors)
