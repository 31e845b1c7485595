"""Output and frames of the spawner."""

import json

from hypothesis import given
from hypothesis import strategies as st

from renderonline.hpcserver.spawner import MAX_LINE, Lines, frame


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


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3)))
def test_frames_come_out_as_they_went_in(messages: list[dict[str, str]]) -> None:
    *lines, rest = b"".join(map(frame, messages)).split(b"\n")
    assert [json.loads(line) for line in lines] == messages
    assert not rest
