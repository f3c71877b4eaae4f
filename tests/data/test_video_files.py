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


@pytest.mark.parametrize(
    "suffix", ["", ".mpg", ".wmv", ".3gp", ".mts", ".ts", ".flv", ".gif", ".WEBM"]
)
def test_other_containers_and_files_without_suffix(tmp_path, suffix):
    path = tmp_path / f"video0{suffix}"
    path.touch()
    (tmp_path / "video0.txt").touch()
    (tmp_path / "video01.mp4").touch()
    assert find_videos(tmp_path, ["video0"]) == {"video0": path}
    # Without ids, a file is a video by its suffix alone.
    assert find_videos(tmp_path) == {"video01": tmp_path / "video01.mp4"} | (
        {"video0": path} if suffix else {}
    )


def test_ids_that_keep_their_suffix_or_end_in_a_dot(tmp_path):
    for name in ("a@N01.mov", "b@N02.", "c.mp4"):
        (tmp_path / name).touch()
    found = find_videos(tmp_path, ["a@N01.mov", "b@N02.", "c"])
    assert list(found.values()) == [tmp_path / name for name in ("a@N01.mov", "b@N02.", "c.mp4")]


def test_a_video_is_preferred_to_a_moving_image(tmp_path):
    for name in ("video0", "video0.gif", "video0.webm", "video0.ts"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path, ["video0"]) == {"video0": tmp_path / "video0.webm"}


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_videos(tmp_path / "nowhere")


def test_long_lists_are_shortened():
    assert shortened(range(3)) == "0, 1, 2"
    assert shortened(range(22)).endswith("18, 19, ... and 2 more")
