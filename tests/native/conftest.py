from __future__ import annotations

from collections.abc import Iterator

import pytest

import garevla
import garevla.native


@pytest.fixture
def native() -> Iterator[None]:
    """Runs the test under the native backend; skips it where there is none."""
    if garevla.native.UNAVAILABLE is not None:
        pytest.skip(garevla.native.UNAVAILABLE)
    with garevla.use_backend("native"):
        yield
