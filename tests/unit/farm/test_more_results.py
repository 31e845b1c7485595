"""Which files besides the frames are results, and to which frame they belong."""

import pytest

from renderonline.farm.result_names import NOTHING_MORE, Bounds, MoreResults, frame_in

MORE = MoreResults(take=("*",), leave=("blendcache_*", "*.blend1", "tmp/*.txt"))


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("mask_0001.png", True),
        ("passes/depth/z_0001.exr", True),
        ("report.txt", True),
        ("blendcache_shot/cloth_000001.bphys", False),
        ("a/blendcache_shot/x", False),
        ("shot.blend1", False),
        ("tmp/a.txt", False),
        ("a/tmp/a.txt", True),
    ],
)
def test_patterns_take_and_leave(name: str, taken: bool) -> None:
    assert MORE.takes(name) is taken
    assert not NOTHING_MORE.takes(name)


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("mask_0005.png", 5),
        ("shot010/v2/mask_0005.png", 5),
        ("frame_0005_L.png", 5),
        ("mask.png", None),
        ("5/mask_0006.png", None),  # two frames of the chunk
        ("mask_0007.png", None),  # none of the chunk
        ("mask_00000000000005.png", None),
        ("0005_0005.png", 5),
    ],
)
def test_a_single_number_that_is_a_frame_says_which(name: str, frame: int | None) -> None:
    assert frame_in(name, {4, 5, 6}) == frame


def test_a_sign_counts_where_there_are_negative_frames() -> None:
    assert frame_in("mask_-0005.png", {-5, -4}) == -5
    assert frame_in("mask-0005.png", {4, 5}) == 5


def test_bounds_count_each_file_once_and_name_what_is_met() -> None:
    bounds = Bounds(MoreResults(take=("*",), files=2, mib=1))
    assert [bounds.met_by(name, 1) for name in ("a", "a", "b", "c", "a")] == ["", "", "", "2 files", ""]
    assert bounds.met_by("b", 1 << 20) == "1 MiB"
    assert bounds.met_by("b", (1 << 20) - 1) == ""
