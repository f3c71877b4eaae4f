from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import garevla
from garevla.ops.native_library import UNAVAILABLE

if not torch.cuda.is_available():
    # Read when triton is imported, which nothing has done so far.
    os.environ["TRITON_INTERPRET"] = "1"


# One of several processes that run tests takes its share of the cores alone, and so do the
# commands that it starts.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    threads = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and there is none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["eager", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once under each backend."""
    if request.param == "native" and UNAVAILABLE is not None:
        pytest.skip(UNAVAILABLE)
    with garevla.use_backend(request.param):
        yield request.param


@pytest.fixture
def native() -> Iterator[None]:
    """Runs the test under the native backend; skips it where there is none."""
    if UNAVAILABLE is not None:
        pytest.skip(UNAVAILABLE)
    with garevla.use_backend("native"):
        yield
