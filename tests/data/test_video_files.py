from __future__ import annotations

import pytest

from garevla.data.messages import shortened
from garevla.data.video_files import find_videos


def test_files_are_found_in_the_order_asked_for(tmp_path):
    for name in ("video0", "video1", "video8"):
        (tmp_path / f"{name}.mp4").touch()
    found = find_videos(tmp_path, ["video8", "video3", "video0"])
    assert list(found) == ["video8", "video0"]


def test_ids_with_dots(tmp_path):
    video_id = "3086_UGLY_00.23.23.000-00.23.28.886"
    (tmp_path / f"{video_id}.avi").touch()
    assert find_videos(tmp_path, [video_id]) == {video_id: tmp_path / f"{video_id}.avi"}


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_videos(tmp_path / "nowhere")


def test_long_lists_are_shortened():
    assert shortened(range(3)) == "0, 1, 2"
    assert shortened(range(22)).endswith("18, 19, ... and 2 more")
