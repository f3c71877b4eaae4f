"""Errors against the float64 oracle: values and gradients of every implementation."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, make_inputs, make_psi
from benchmarks.implementations import PUBLISHED, ROUNDED, Run, build, evaluate
from garevla import CrossAttentionPsi

# Larger batches are checked at this size: the oracle keeps every pair in float64.
LARGEST_CHECKED = {"cpu": 64, "cuda": 512}
# Beyond this an implementation is not slow or fast but wrong.
TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}
ROUNDED_TOLERANCE = 0.1
# Between the two oracles, both in float64.
ORACLES_AGREE = 1e-9
_AGREEMENT_BATCH = 16


def tolerance(name: str, case: Case) -> float:
    """The largest error that an implementation may have in a case."""
    return ROUNDED_TOLERANCE if name in ROUNDED else TOLERANCE[case.dtype]


class Oracle:
    """The eager definition in float64, itself compared with the published formulas in float64."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = replace(case, batch=min(case.batch, LARGEST_CHECKED.get(device.type, 64)))
        self.inputs = make_inputs(self.case, device, 1)[0]
        self.exact = self._in_float64("eager", self.case, self.inputs)

    @classmethod
    def cached(
        cls, cache: dict[tuple[object, ...], Oracle], case: Case, device: torch.device
    ) -> Oracle:
        """The oracle of a case, or that of another with the same shapes at the size checked."""
        key = (case.series, min(case.batch, LARGEST_CHECKED.get(device.type, 64)))
        if key not in cache:
            cache[key] = cls(case, device)
        return cache[key]

    def error_of(self, run: Run, psi: CrossAttentionPsi) -> float:
        """Largest relative error, in norm, of the result and of each gradient that is not 0."""
        torch.manual_seed(0)
        return _largest_error(evaluate(run, self.inputs, self.case, psi), self.exact)

    @functools.cached_property
    def disagreement(self) -> float:
        """Relative difference of both oracles at a small batch; sampled cases have but one."""
        if self.case.direction == "sampled":
            return 0.0
        case = replace(self.case, batch=min(self.case.batch, _AGREEMENT_BATCH))
        inputs = make_inputs(case, self.inputs.text.device, 1)[0]
        ours, published = (self._in_float64(name, case, inputs) for name in ("eager", PUBLISHED))
        return _largest_error(ours, published)

    def _in_float64(self, name: str, case: Case, inputs: Inputs) -> list[Tensor]:
        case = replace(case, dtype="float64")
        psi = make_psi(self.case, inputs.text.device).double()
        torch.manual_seed(0)
        return evaluate(build(name, case, psi), inputs.to(torch.float64), case, psi)


def _largest_error(values: list[Tensor], exact: list[Tensor]) -> float:
    largest = max(float(x.detach().norm()) for x in exact[1:]) if len(exact) > 1 else 0.0
    errors = [0.0]
    for value, reference in zip(values, exact, strict=True):
        norm = float(reference.detach().norm())
        # Some gradients vanish by symmetry, such as that of a bias ahead of a softmax.
        if norm > 1e-9 * largest:
            errors.append(float((value.double() - reference).detach().norm()) / norm)
    # max() passes over a NaN.
    return float("nan") if any(error != error for error in errors) else max(errors)
