"""Logs of attempts: head, tail, offsets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.hpcserver import attempt_log
from renderonline.hpcserver.attempt_log import AttemptLog


def read_all(log: AttemptLog, limit: int, offset: int = 0) -> str:
    text = ""
    while True:
        begin, piece = log.read(offset, limit)
        if not piece:
            return text
        assert begin == offset
        text += piece
        offset = begin + len(piece.encode())


@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n")), max_size=20),
    st.integers(4, 50),
)
def test_log_reads_back_in_pieces_that_never_cut_a_character(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], limit: int
) -> None:
    log = AttemptLog(tmp_path_factory.mktemp("log"))
    for line in lines:
        log.append([line])
    assert read_all(log, limit) == "".join(f"{line}\n" for line in lines)
    assert log.size == len("".join(f"{line}\n" for line in lines).encode())


def test_log_goes_on_after_it_was_opened_again(tmp_path: Path) -> None:
    AttemptLog(tmp_path).append(["one", "zwei ü"])
    log = AttemptLog(tmp_path)
    log.append(["three"])
    assert read_all(log, 1000) == "one\nzwei ü\nthree\n"


def test_long_log_keeps_head_and_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_log, "HEAD_BYTES", 100)
    monkeypatch.setattr(attempt_log, "PIECE_BYTES", 50)
    log = AttemptLog(tmp_path)
    for number in range(100):
        log.append([f"line {number:04}"])
    assert log.size == 1000
    assert len(list(tmp_path.iterdir())) <= 4
    assert log.read(0, 1000) == (0, "".join(f"line {number:04}\n" for number in range(10)))
    begin, text = log.read(100, 1000)
    assert begin > 100
    assert text.startswith("line ")
    assert read_all(log, 1000, begin).endswith("line 0099\n")
    assert read_all(AttemptLog(tmp_path), 1000, begin) == read_all(log, 1000, begin)


def test_silent_engine_leaves_no_file(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "log")
    assert log.read(0, 10) == (0, "")
    log.remove()
    assert not (tmp_path / "log").exists()
