"""Frame ranges: reading, writing, cutting, covering."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import renderonline
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import (
    LARGEST_FRAME,
    MAX_FRAMES,
    FrameRange,
    covering,
    cut,
    first_last_middle,
    format_frames,
    is_among,
    parse_frames,
)

some_frames = st.lists(st.integers(-200, 200), unique=True, max_size=60)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("7", (7,)),
        ("1-5", (1, 2, 3, 4, 5)),
        ("1..5", (1, 2, 3, 4, 5)),
        ("1..9x4", (1, 5, 9)),
        ("-5..-3", (-5, -4, -3)),
        ("-2-2", (-2, -1, 0, 1, 2)),
        ("1-10x5", (1, 6)),
        ("1-3,20", (1, 2, 3, 20)),
        ("10-7", (10, 9, 8, 7)),
        ("10-1x-3", (10, 7, 4, 1)),
        ("1-10y3", (2, 3, 5, 6, 8, 9)),
        ("10-1y-3", (9, 8, 6, 5, 3, 2)),
        ("1-10:3", (1, 4, 7, 10, 3, 5, 9, 2, 6, 8)),
        ("5-1:2", (5, 3, 1, 4, 2)),
        ("1-4:2147483647", (1, 4, 3, 2)),
        ("1-5x-2", (1, 3, 5)),
        ("5,3,4", (5, 3, 4)),
        ("1-3,2-5", (1, 2, 3, 4, 5)),
        (" 1 - 3 , 5 ", (1, 2, 3, 5)),
        ("1,,2", (1, 2)),
        ("0007", (7,)),
    ],
)
def test_frames_are_read_as_people_write_them(text: str, frames: tuple[int, ...]) -> None:
    assert parse_frames(text) == frames


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "a", "1-", "-", "x2", "1.5", "1-3.5x0.5", "0x10", "٣", "1\n", "1;2", "1-2-3"),
        *("1-5x0", "1-5y0", "1-5:0", "1-5y1", "1-5x"),
        *("99999999999", str(LARGEST_FRAME + 1), f"-{LARGEST_FRAME + 1}", "1," * 40_000, "1 2\t3", "--5"),
    ],
)
def test_what_is_no_frame_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_frames(text)
    assert len(refused.value.message) < 250


@pytest.mark.parametrize(
    "text",
    [
        "1-100001",
        "0-2000000000",
        "1-2000000000y2",
        "1-2000000000:7",
        ",".join(["1-100000"] * 3),
        "1-60000,70000-120000",
    ],
)
def test_more_frames_than_a_task_may_have_are_refused_before_they_are_made(text: str) -> None:
    with pytest.raises(InvalidRequest, match="at most 100000 frames"):
        parse_frames(text)


def test_as_many_frames_as_a_task_may_have_are_taken() -> None:
    assert len(parse_frames(f"1-{MAX_FRAMES}")) == MAX_FRAMES
    assert parse_frames("0-2000000000x20001")[-1] <= 2_000_000_000


@pytest.mark.parametrize("copy", ["rnoclient/web/static/js/rules.js", "engines/blender/launcher/__init__.py"])
def test_copies_of_the_most_frames_are_the_same(copy: str) -> None:
    text = (Path(renderonline.__file__).parent / copy).read_text(encoding="utf-8")
    assert re.findall(r"MAX_FRAMES\b[^=\n]* = ([0-9_]+)", text) == [f"{MAX_FRAMES:_}"]


@given(some_frames.filter(bool))
def test_frames_survive_being_written_and_read(frames: list[int]) -> None:
    assert parse_frames(format_frames(frames)) == tuple(frames)


def test_frames_are_written_short() -> None:
    assert format_frames(range(1, 101)) == "1-100"
    assert format_frames([1, 3, 5, 20, 21, 40]) == "1-5x2,20-21,40"
    assert format_frames([1, 9]) == "1,9"
    assert format_frames([10, 8, 6]) == "10-6x-2"
    assert format_frames([]) == ""


@given(st.integers(-1000, 1000), st.integers(0, 200), st.integers(1, 50))
def test_a_range_is_its_frames(first: int, span: int, step: int) -> None:
    found = FrameRange(first, first + span, step)
    assert list(found.frames()) == list(range(first, first + span + 1, step))
    assert len(found) == len(found.frames())
    assert parse_frames(str(found)) == tuple(found.frames())
    assert found == FrameRange(found.first, found.last, found.step)


def test_a_range_runs_upwards() -> None:
    with pytest.raises(InvalidRequest, match="before the first"):
        FrameRange(2, 1)
    with pytest.raises(InvalidRequest, match="step"):
        FrameRange(1, 2, 0)


@given(some_frames, st.integers(0, 12))
def test_cutting_covers_every_frame_exactly_once_and_keeps_to_the_size(frames: list[int], size: int) -> None:
    chunks = cut(frames, size)
    assert sorted(frame for chunk in chunks for frame in chunk.frames()) == sorted(frames)
    assert all(size == 0 or len(chunk) <= size for chunk in chunks)


@given(st.integers(1, 500), st.integers(1, 50))
def test_a_plain_animation_is_cut_into_as_few_chunks_as_the_size_allows(count: int, size: int) -> None:
    assert len(cut(range(1, count + 1), size)) == -(-count // size)


def test_chunks_follow_the_order_of_the_frames() -> None:
    assert cut(range(1, 25), 10) == (FrameRange(1, 10), FrameRange(11, 20), FrameRange(21, 24))
    assert cut([5, 4, 3, 10], 0) == (FrameRange(3, 5), FrameRange(10, 10))
    assert cut([1, 6, 11, 12], 0) == (FrameRange(1, 11, 5), FrameRange(12, 12))
    assert cut([3, 3, 3], 0) == (FrameRange(3, 3),)
    assert cut([], 3) == ()


def test_a_negative_chunk_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="chunk size"):
        cut([1], -1)


@given(some_frames)
def test_covering_is_exact_and_no_worse_than_cutting(frames: list[int]) -> None:
    ranges = covering(frames)
    assert sorted(frame for found in ranges for frame in found.frames()) == sorted(frames)
    assert len(ranges) <= len(cut(sorted(frames), 0))


def test_covering_takes_steps_where_the_engine_does() -> None:
    assert covering([2, 4, 6, 9]) == (FrameRange(2, 6, 2), FrameRange(9, 9))
    assert covering([2, 4, 6, 7], steps=False) == (FrameRange(2, 2), FrameRange(4, 4), FrameRange(6, 7))
    assert covering([]) == ()
    assert len(covering([*range(1, 1000), 2000, 2001, 3000])) == 3


@given(st.integers(0, 300))
def test_first_last_middle_names_everything_once(count: int) -> None:
    order = first_last_middle(count)
    assert sorted(order) == list(range(count))
    assert order[:2] == [0, count - 1][:count]


def test_the_middle_comes_third_and_then_the_middles_of_what_is_left() -> None:
    assert first_last_middle(9) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    assert first_last_middle(1) == [0]


def test_ten_thousand_parts_are_read_part_by_part() -> None:
    assert parse_frames(",".join(str(frame) for frame in range(0, 20_000, 2))) == tuple(range(0, 20_000, 2))


@pytest.mark.parametrize(
    "text", ["7", "1-10,-3", "10-1x-3", "1-20x5,100", "1-10y3", "1-10:3", ",".join(map(str, range(99)))]
)
def test_a_frame_is_among_those_that_are_named(text: str) -> None:
    named = parse_frames(text)
    assert [frame for frame in range(-20, 120) if is_among(text)(frame)] == sorted(named)
    assert not is_among(text)(None)


def test_ranges_are_asked_without_writing_them_out() -> None:
    with pytest.raises(InvalidRequest, match="at most 100000 frames"):
        is_among("1-100000,1-100000,1")
    assert is_among("1-100000,1-100000")(100_000)
