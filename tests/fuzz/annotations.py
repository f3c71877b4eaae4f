"""Hostile annotation files: read whole, or refused by an error that names the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from garevla.data import AnnotationError, PseudoCaptionError, PseudoCaptions, load_msrvtt
from garevla.data.layouts.msrvtt import CAPTION_FILE, TEST_FILE, TRAIN_FILES
from tests.fuzz.mutations import MUTATIONS

_IDS = [f"video{index}" for index in range(12)]
_CSV = "key,vid_key,video_id,sentence\n" + "".join(
    f"ret{n},msr{n},{i}," + (f'"a cook, at work {n}"' if n % 3 else f"a dog {n}") + "\n"
    for n, i in enumerate(_IDS)
)

_texts = st.text(st.characters(), max_size=30)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=20,
)
_sentences = st.lists(
    st.fixed_dictionaries({"video_id": st.sampled_from(_IDS) | _json, "caption": _texts | _json})
    | _json,
    max_size=8,
)
_captions = st.fixed_dictionaries({"sentences": _sentences | _json}) | _json
_pseudo = st.dictionaries(_texts | st.sampled_from(_IDS), st.lists(_texts) | _json, max_size=5)
# A stretch of the file replaced by characters that mean something to a CSV reader, or by any.
_edits = st.tuples(
    st.integers(0, len(_CSV)),
    st.integers(0, 3),
    st.text(st.sampled_from('",\n\r\t;\0 aé'), max_size=4) | _texts,
)


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Write files and read them, without end; yield what came of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for video_id in _IDS:
            (folder / "videos" / f"{video_id}.mp4").touch()
        (folder / TRAIN_FILES["train-9k"]).write_text("video_id\n" + "\n".join(_IDS))
        kinds = {
            "quotes and commas": (_edits, _read_edited_csv),
            "JSON of captions": (_captions, _read_captions),
            "pseudo captions": (_pseudo, _read_pseudo_captions),
            "damaged bytes": (st.integers(0, 2**32), _read_damaged),
        }
        while True:
            for kind, (strategy, read) in kinds.items():
                outcomes: list[str] = []
                try:
                    _try_many(strategy, read, folder, outcomes, int(generator.integers(2**32)))
                # Also what hypothesis makes of several failures.
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt | GeneratorExit):
                        raise
                    outcomes.append(f"FAILURE traceback: {error!r}")
                yield from (f"annotations, {kind}: {outcome}" for outcome in outcomes)


def _try_many(
    strategy: st.SearchStrategy,
    read: Callable[[Path, object], str],
    folder: Path,
    outcomes: list[str],
    number: int,
) -> None:
    @seed(number)
    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examples(value: object) -> None:
        try:
            outcomes.append(read(folder, value))
        except (AnnotationError, PseudoCaptionError) as error:
            if str(folder) not in str(error):
                raise AssertionError(f"the file is not named: {error}") from error
            outcomes.append("refused by name")

    examples()


def _read_edited_csv(folder: Path, edit: object) -> str:
    start, length, text = edit  # type: ignore[misc]
    content = _CSV[:start] + text + _CSV[start + length :]
    (folder / TEST_FILE).write_bytes(content.encode("utf-8", "surrogatepass"))
    split = load_msrvtt(folder, folder / "videos", "test", missing="skip")
    # A row may be lost to an id that is another one then, not to a quote.
    lost = len(_IDS) - len(split.captions)
    touched = _CSV[start : start + length].count("\n") + 2
    assert lost <= touched, f"{lost} rows lost by {edit!r}"
    return "read"


def _read_captions(folder: Path, content: object) -> str:
    (folder / CAPTION_FILE).write_text(json.dumps(content))
    load_msrvtt(folder, folder / "videos", "train-9k")
    return "read"


def _read_pseudo_captions(folder: Path, content: object) -> str:
    path = folder / "pseudo.json"
    path.write_text(json.dumps(content))
    PseudoCaptions.load(path)
    return "read"


def _read_damaged(folder: Path, number: object) -> str:
    generator = np.random.default_rng(number)  # type: ignore[arg-type]
    mutate = MUTATIONS[str(generator.choice(list(MUTATIONS)))]
    (folder / TEST_FILE).write_bytes(mutate(_CSV.encode(), generator))
    load_msrvtt(folder, folder / "videos", "test", missing="skip")
    return "read"
