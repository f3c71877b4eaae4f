from __future__ import annotations

import subprocess
import sys

import pytest

import garevla.data

HEAVY = ("decord", "av", "pandas", "torchvision", "tqdm", "open_clip", "matplotlib")


def test_importing_the_package_needs_none_of_the_extras():
    script = (
        "import sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        "import garevla.data\n"
        "from garevla.data import load_msrvtt, UniqueVideoBatchSampler, VideoDataset\n"
        "from garevla.data import read_frames, check_videos, generate_dataset\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_public_names_exist():
    for name in garevla.data.__all__:
        assert getattr(garevla.data, name) is not None
    assert set(garevla.data.__all__) <= set(dir(garevla.data))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        garevla.data.nonsense  # noqa: B018
