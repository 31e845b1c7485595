"""Choosing some of a task's files."""

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import chooser

FILES = [("shot.blend", None), ("f_0001.png", 1), ("f_0002.png", 2), ("shot.mp4", None), ("f[1].png", 3)]


@pytest.mark.parametrize(
    ("frames", "names", "found"),
    [
        ("", [], [name for name, _ in FILES]),
        ("1-2", [], ["f_0001.png", "f_0002.png"]),
        ("2", ["*.mp4"], ["f_0002.png", "shot.mp4"]),
        ("", ["f_000?.png"], ["f_0001.png", "f_0002.png"]),
        ("", ["f[1].png"], ["f[1].png"]),
        ("9", ["*.MP4"], []),
    ],
)
def test_frames_and_names_choose_together(frames: str, names: list[str], found: list[str]) -> None:
    chosen = chooser(frames, names)
    assert [name for name, frame in FILES if chosen(name, frame)] == found


def test_what_is_no_range_is_told() -> None:
    with pytest.raises(InvalidRequest):
        chooser("1-x")
