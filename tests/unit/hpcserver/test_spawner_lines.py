"""Output and frames of the spawner."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.hpcserver.spawner import MAX_FRAME, MAX_LINE, Lines, frame, take_frames


@given(st.lists(st.binary(max_size=40)))
def test_lines_do_not_depend_on_how_the_bytes_arrive(pieces: list[bytes]) -> None:
    whole, parts = Lines(), Lines()
    expected = [*whole.feed(b"".join(pieces)), *whole.close()]
    found = [line for piece in pieces for line in parts.feed(piece)] + parts.close()
    assert found == expected


def test_lines_end_at_line_feeds_and_carriage_returns() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntwo\rthree\r\n\n\nfo") == ["one", "two", "three"]
    assert lines.feed(b"ur") == []
    assert lines.close() == ["four"]
    assert lines.close() == []


def test_endless_line_does_not_pile_up() -> None:
    lines = Lines()
    for _ in range(10):
        lines.feed(b"x" * MAX_LINE)
    assert len("".join(lines.close())) <= MAX_LINE


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert Lines().feed(b"\xff\xfea\n") == ["\ufffd\ufffda"]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3)), st.integers(1, 7))
def test_frames_come_out_as_they_went_in(messages: list[dict[str, str]], step: int) -> None:
    stream = b"".join(map(frame, messages))
    buffer, found = bytearray(), []
    for at in range(0, len(stream), step):
        buffer += stream[at : at + step]
        found += take_frames(buffer)
    assert json.loads(json.dumps(found)) == messages
    assert not buffer


def test_frame_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        take_frames(bytearray((MAX_FRAME + 1).to_bytes(4, "big")))
