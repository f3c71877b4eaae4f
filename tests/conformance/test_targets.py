"""A backend that is not there is skipped; one that is there, and broken, fails its tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

import garevla
from garevla.ops import backends
from tests.conformance.targets import BROKEN, TARGETS, Target


def test_every_backend_is_tested():
    found = {target.backend for target in TARGETS}
    assert found == {*garevla.ops.backends.backend_names()} - {"eager"}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("the extension was not built", pytest.skip), (f"it {BROKEN}: ImportError", pytest.fail)],
)
def test_a_backend_that_cannot_run(reason: str, outcome, monkeypatch: pytest.MonkeyPatch):
    name = TARGETS[0].backend
    entry = replace(backends._BACKENDS[name], unavailable=lambda device: reason)
    monkeypatch.setitem(backends._BACKENDS, name, entry)
    with pytest.raises(outcome.Exception, match=reason):
        Target(name, "cpu").require()
