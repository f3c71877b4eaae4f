"""Hostile settings: refused in a sentence, never by a traceback."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from garevla.training.config import TrainConfig
from tests.fuzz.isolated import Failure, Isolated


def try_settings(path: Path) -> str:
    """Train with a file of settings; there is no data, so that nothing comes of it."""
    from garevla.cli import main

    try:
        code = main(["train", "--config", str(path)])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2, f"exit code {code}"
    return "refused"


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        ["", "null", "auto", "gare", "cpu", "meta", "cuda:99", "-1", "1e999", "[", "é"]
    )
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _names(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, ...]]:
    hints = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in hints.items():
        factory = field.default_factory
        if dataclasses.is_dataclass(factory):
            yield from ((name, *rest) for rest in _names(factory))  # type: ignore[arg-type]
        else:
            yield (name,)


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Write settings and train with them, without end; yield what came of each."""
    isolated = Isolated(try_settings)
    names = [name for name in _names(TrainConfig) if name[-1] not in ("annotation_dir",)]
    changes = st.lists(st.tuples(st.sampled_from(names), _values), min_size=1, max_size=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.yaml")
        outcomes: list[str] = []

        def attempt(found: list[tuple[tuple[str, ...], Any]]) -> None:
            content: dict[str, Any] = {}
            for name, value in [
                (("data", "annotation_dir"), f"{folder}/none"),
                (("data", "video_dir"), f"{folder}/none"),
                (("run", "output_dir"), f"{folder}/run"),
                *found,
            ]:
                inner = content
                for part in name[:-1]:
                    inner = inner.setdefault(part, {})
                inner[name[-1]] = value
            path.write_text(json.dumps(content))  # which is YAML, too
            outcomes.append(isolated(path))

        try:
            while True:
                outcomes.clear()
                run = given(changes)(attempt)
                run = settings(
                    max_examples=10,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )(run)
                try:
                    seed(int(generator.integers(2**32)))(run)()
                except Failure as failure:
                    outcomes.append(f"FAILURE {failure} with {path.read_text()}")
                yield from (f"settings: {outcome}" for outcome in outcomes)
        finally:
            isolated.close()
