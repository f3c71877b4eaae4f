from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _target_is_there(request: pytest.FixtureRequest) -> None:
    """Skips a test whose target cannot run here."""
    if hasattr(request.node, "callspec") and "target" in request.node.callspec.params:
        request.node.callspec.params["target"].require()
