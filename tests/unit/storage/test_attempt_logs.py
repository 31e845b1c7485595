"""Logs of attempts: resumed by offset, head and tail kept (R5.3 Progress and logs)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.storage import attempt_logs
from renderonline.storage.attempt_logs import AttemptLog, AttemptLogs


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptLogs:
    """Logs with a head of 10 bytes and pieces of 5."""
    monkeypatch.setattr(attempt_logs, "HEAD", 10)
    monkeypatch.setattr(attempt_logs, "PIECE", 5)
    return AttemptLogs(tmp_path / "logs")


def whole(kept: AttemptLogs, attempt: int = 1) -> list[tuple[int, bytes]]:
    """All that is kept, as (offset, bytes)."""
    parts, offset = [], 0
    while (part := kept.read(attempt, offset)).data:
        parts.append((part.offset, part.data))
        offset = part.next
    return parts


def test_log_is_one_file_while_it_is_short(tmp_path: Path) -> None:
    kept = AttemptLogs(tmp_path)
    assert kept.append(1, 0, b"first\n") == 6
    assert kept.append(1, 6, b"second\n") == 13
    assert (tmp_path / "1.log").read_bytes() == b"first\nsecond\n"
    assert kept.size(1) == 13


def test_bytes_that_come_twice_are_kept_once(small: AttemptLogs) -> None:
    small.append(1, 0, b"abcd")
    assert small.append(1, 2, b"cdef") == 6
    assert small.append(1, 0, b"ab") == 6
    assert whole(small) == [(0, b"abcdef")]


def test_head_and_tail_of_a_long_log_are_kept(small: AttemptLogs) -> None:
    text = b"0123456789abcdefghijklmnopqrstuvwxyz"
    for start in range(0, len(text), 4):
        small.append(1, start, text[start : start + 4])
    parts = whole(small)
    assert parts[0] == (0, b"0123456789")
    assert sum(len(data) for _, data in parts) <= 20
    last = parts[-1]
    assert last[0] + len(last[1]) == len(text) == small.size(1)
    assert all(text[offset : offset + len(data)] == data for offset, data in parts)


def test_gap_stays_a_gap(small: AttemptLogs) -> None:
    small.append(1, 0, b"abc")
    assert small.append(1, 100, b"xyz") == 103
    assert whole(small) == [(0, b"abc"), (100, b"xyz")]


def test_one_huge_piece_is_split(small: AttemptLogs) -> None:
    text = bytes(range(48, 48 + 60))
    assert small.append(1, 0, text) == 60
    assert sum(len(data) for _, data in whole(small)) == 20


def test_reading_an_unknown_log_gives_nothing(small: AttemptLogs) -> None:
    assert small.read(9) == attempt_logs.LogPart(0, b"", 0)
    assert small.size(9) == 0


def test_restart_needs_no_memory(small: AttemptLogs, tmp_path: Path) -> None:
    small.append(1, 0, b"0123456789abcdefgh")
    again = AttemptLogs(tmp_path / "logs")
    assert again.size(1) == 18
    assert again.append(1, 18, b"ij") == 20
    assert whole(again)[-1][1].endswith(b"ij")


def test_removed_log_leaves_nothing(small: AttemptLogs, tmp_path: Path) -> None:
    small.append(1, 0, b"x" * 100)
    small.append(2, 0, b"y")
    small.remove(1)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["2.log"]


def test_offsets_that_no_log_has_are_ignored(small: AttemptLogs) -> None:
    assert small.append(1, 2**60, b"x") == 0


def test_what_has_no_room_beside_the_reserve_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1000
    monkeypatch.setattr(attempt_logs.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    kept = AttemptLogs(tmp_path, reserve=990)
    assert kept.append(1, 0, b"0123456789") == 10
    with pytest.raises(OSError, match="Too little"):
        kept.append(1, 10, b"0123456789a")
    assert whole(kept) == [(0, b"0123456789")]
    free = 2000
    assert kept.append(1, 21, b"later") == 26
    assert kept.read(1, 10).offset == 21


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
def test_log_of_a_machine_reads_back_in_pieces_that_never_cut_a_character(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt_logs, "HEAD", 10)
        patch.setattr(attempt_logs, "PIECE", 1000)
        log = AttemptLog(AttemptLogs(tmp_path_factory.mktemp("log")), 1)
        for line in lines:
            log.append([line])
        assert read_all(log, limit) == "".join(f"{line}\n" for line in lines)
        assert log.size == len("".join(f"{line}\n" for line in lines).encode())


def test_log_of_a_machine_goes_on_after_it_was_opened_again(tmp_path: Path) -> None:
    AttemptLog(AttemptLogs(tmp_path), 1).append(["one", "zwei ü"])
    log = AttemptLog(AttemptLogs(tmp_path), 1)
    log.append(["three"])
    assert read_all(log, 1000) == "one\nzwei ü\nthree\n"


def test_silent_engine_leaves_no_file(tmp_path: Path) -> None:
    log = AttemptLog(AttemptLogs(tmp_path), 1)
    assert log.read(0, 10) == (0, "")
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_log_of_a_new_attempt_is_not_looked_for_and_removed_whole(tmp_path: Path) -> None:
    log = AttemptLog(AttemptLogs(tmp_path), 1, new=True)
    assert log.size == 0
    log.append(["a line"])
    log.remove()
    assert (log.size, list(tmp_path.iterdir())) == (0, [])
