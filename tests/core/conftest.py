from __future__ import annotations

from collections.abc import Iterator

import pytest

import garevla
from garevla import native


@pytest.fixture(params=["eager", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once under each backend."""
    if request.param == "native" and native.UNAVAILABLE is not None:
        pytest.skip(native.UNAVAILABLE)
    with garevla.use_backend(request.param):
        yield request.param
