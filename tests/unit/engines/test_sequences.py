"""Pictures of a sequence that frames would show and that are not there."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from renderonline.engines.blender.launcher.files import _lacking


@pytest.mark.parametrize(
    ("start", "length", "offset", "cyclic", "lacking"),
    [
        (1, 4, 0, False, ["s_003.png"]),
        (1, 4, 1, False, ["s_003.png", "s_005.png"]),
        (3, 2, 0, False, []),
        (1, 2, 2, True, ["s_003.png"]),
        (1, 0, 0, False, []),
    ],
)
def test_what_the_frames_show_and_nobody_has_is_named(
    start: int, length: int, offset: int, cyclic: bool, lacking: list[str], tmp_path: Path
) -> None:
    for number in (1, 2, 4):
        (tmp_path / f"s_{number:03}.png").touch()
    user = SimpleNamespace(frame_start=start, frame_duration=length, frame_offset=offset, use_cyclic=cyclic)
    assert list(_lacking(str(tmp_path / "s_001.png"), user, range(1, 9))) == lacking
    assert list(_lacking(str(tmp_path / "no_1.png"), user, range(1, 9))) == []
