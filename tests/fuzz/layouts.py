"""Damaged annotation files of every layout: read, or refused by an error that names them."""

from __future__ import annotations

import json
import logging
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from garevla.data import AnnotationError
from garevla.data.layouts import layout
from tests.fuzz.isolated import Failure, Isolated
from tests.fuzz.mutations import MUTATIONS

_IDS = [f"v_{index}.mp4" for index in range(6)]
_SENTENCES = ["a dog runs", 'a cook says "now", and more', "ein Käfer \U0001f41e", "NA"]
_LIST = "\n".join(_IDS)
_TIMES = "\t00.01\t00.02\t00.01\t00.02\t"
_CAPTIONS = dict.fromkeys(_IDS, _SENTENCES)
_ROWS = [{"video": i, "caption": text, "split": "test"} for i in _IDS for text in _SENTENCES]

# Of each layout whole files, JSON as values.
FOLDERS: dict[str, list[dict[str, Any]]] = {
    "msrvtt": [
        {
            "MSRVTT_data.json": {
                "videos": [{"video_id": i, "split": "test"} for i in _IDS],
                "sentences": [{"video_id": i, "caption": t} for i in _IDS for t in _SENTENCES],
            },
            "MSRVTT_train.9k.csv": f"video_id\n{_LIST}",
            "MSRVTT_JSFUSION_test.csv": "video_id,sentence\n" + "".join(f"{i},x\n" for i in _IDS),
        },
        {"msrvtt_test_1k.json": [{"video_id": i, "caption": "a dog"} for i in _IDS]},
    ],
    "msvd": [
        {"captions_msvd.json": _CAPTIONS, "train_list.txt": _LIST, "test_list.txt": _LIST},
        *(
            {
                "raw-captions.pkl": pickle.dumps(
                    {i: [text.split() for text in _SENTENCES] for i in _IDS}, protocol
                ),
                "test_list.txt": _LIST,
            }
            for protocol in (0, 2, 4)
        ),
    ],
    "didemo": [
        {
            "test_data.json": [
                {"video": i, "description": t, "times": [[0, 1], [2, 3], [2, 3]]}
                for i in _IDS
                for t in _SENTENCES
            ],
            "test_list.txt": _LIST,
        },
        {
            "didemo_test_label.csv": "success,video_path,text\n"
            + "".join(f'True,/far/{i},"a dog, ""red"""\n' for i in _IDS)
        },
    ],
    "activitynet": [
        {
            "val_1.json": {
                i: {
                    "duration": 60.5,
                    "timestamps": [[n, n + 1.5] for n in range(len(_SENTENCES))],
                    "sentences": _SENTENCES,
                }
                for i in _IDS
            },
            "val_ids.json": _IDS,
            "video_path.json": {i: f"{i}.avi" for i in _IDS},
        }
    ],
    "lsmdc": [
        {
            "LSMDC16_challenge_1000_publictect.csv": "".join(
                f"{i}{_TIMES}{text}\n" for i in _IDS for text in _SENTENCES
            )
        }
    ],
    "vatex": [
        {
            "vatex_public_test_english_v1.1.json": [
                {"videoID": i, "enCap": _SENTENCES} for i in _IDS
            ],
            "test_list.txt": _LIST,
        }
    ],
    "folder": [
        {"captions.json": _ROWS},
        {"test.json": _CAPTIONS},
        {"captions.jsonl": "\n".join(json.dumps(row) for row in _ROWS)},
        {
            "captions.csv": "video,caption,start,end\n"
            + "".join(f'{i},"a dog, ""red""",1,2.5\n' for i in _IDS)
        },
        {"test.tsv": "video\tcaption\n" + "".join(f'{i}\ta "dog"\n' for i in _IDS)},
        {"clip.mp4": "", "clip.txt": "\n".join(_SENTENCES)},
    ],
}
_STRANGE = [
    *(None, True, False, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", " ", "a", "\ud83d"),
    *("v_0.mp4", "../v_0", "\0", "\u2028", [], {}, [[]], [None], {"": []}, [1, 2], "7" * 400),
]


def try_folder(folder: Path, name: str) -> str:
    """Read all splits of a folder; return what came of it."""
    chosen, outcomes = layout(name), []
    for split in chosen.splits:
        try:
            found = chosen.annotations(folder, split)
            chosen.captions_and_files(folder, folder, split)
        except (AnnotationError, FileNotFoundError) as error:
            if str(folder) not in str(error):
                raise AssertionError(f"the file is not named: {error}") from error
            outcomes.append("refused by name")
            continue
        assert all(c.text and c.text.encode() and c.video_id for c in found.captions)
        for clip in found.clips.values():
            clip.time_range.check()
        outcomes.append("read")
    return "read" if "read" in outcomes else "refused by name"


def _try_in_silence(folder: Path, name: str) -> str:
    logging.disable()
    return try_folder(folder, name)


def write_mutated(folder: Path, name: str, generator: np.random.Generator) -> str:
    """Write the files of a layout, one of them damaged; return how."""
    files = FOLDERS[name][int(generator.integers(len(FOLDERS[name])))]
    target = str(generator.choice([each for each in files if files[each] != ""]))
    how = str(generator.choice([*MUTATIONS, "wrong types"]))
    for each, content in files.items():
        is_json = not isinstance(content, str | bytes)
        is_strange = each == target and how == "wrong types"
        if is_json:
            content = json.dumps(_with_strange_value(content, generator) if is_strange else content)
        elif is_strange and isinstance(content, str):
            content = _with_strange_text(content, generator)
        data = content.encode() if isinstance(content, str) else content
        if each == target and how in MUTATIONS:
            data = MUTATIONS[how](data, generator)
        (folder / each).write_bytes(data)
    return how


def _with_strange_value(content: Any, generator: np.random.Generator) -> Any:
    """A copy with something in it replaced by a value of another kind, or doubled."""
    if not isinstance(content, list | dict) or not content or generator.random() < 0.2:
        return _STRANGE[int(generator.integers(len(_STRANGE)))]
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[int(generator.integers(len(keys)))]
    copy = dict(content) if isinstance(content, dict) else list(content)
    if generator.random() < 0.1:
        del copy[key]
    else:
        copy[key] = _with_strange_value(content[key], generator)
    return copy


def _with_strange_text(content: str, generator: np.random.Generator) -> str:
    """With something in it that means something to a reader of tables."""
    pieces = ['"', ",", "\t", "\r", "\n\n", "\ufeff", "\0", ";", '"""', "-1", "nan", "1e999"]
    place = int(generator.integers(len(content) + 1))
    rest = content[place + int(generator.integers(3)) :]
    return content[:place] + str(generator.choice(pieces)) + rest


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Damage files of every layout in turn, without end; yield what came of each."""
    isolated = Isolated(_try_in_silence)
    try:
        while True:
            for name in FOLDERS:
                with tempfile.TemporaryDirectory() as path:
                    how = write_mutated(Path(path), name, generator)
                    try:
                        outcome = isolated(Path(path), name)
                    except Failure as failure:
                        outcome = f"FAILURE {failure}"
                    yield f"layouts, {name}, {how}: {outcome}"
    finally:
        isolated.close()
