"""The machine's outbox (R5.2 Outbox)."""

import subprocess
import sys
from pathlib import Path

import pytest

from renderonline.farm.errors import NoSpace
from renderonline.hpcserver.journal import FULL_SIZE, Append, Held, Outbox

SCRIPT = """
import os, sys
from pathlib import Path
from renderonline.hpcserver.journal import Append, Outbox
outbox = Outbox(Path(sys.argv[1]))
"""
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from renderonline.hpcserver.journal import Append, Outbox
from renderonline.farm.errors import NoSpace
path = Path(sys.argv[1])
outbox = Outbox(path, full_size=1 << 20)
largest = max(file.stat().st_size for file in path.parent.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))  # from here on no file can grow: a full disk
written = 0
try:
    for _ in range(200):
        outbox.commit([Append(1, '{"type": "result"}' + " " * 500) for _ in range(200)])
        written += 200
except NoSpace as error:
    print(written, len(outbox.after(0, 10_000)), "disk" in str(error))
"""


def test_reports_are_numbered_and_forgotten_when_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.store(Held(7, "t", "/d"))
    assert list(outbox.commit([Append(7, "a"), Append(7, "b", last=True)])) == [1, 2]
    assert outbox.held() == (Held(7, "t", "/d", 2),)
    assert outbox.after(0, 10) == [(1, "a"), (2, "b")]
    assert outbox.after(1, 10) == [(2, "b")]
    outbox.commit([], acknowledged=1)
    assert outbox.held() == (Held(7, "t", "/d", 2),)
    outbox.commit([], acknowledged=2)
    assert outbox.held() == ()
    assert outbox.after(0, 10) == []
    assert list(outbox.commit([Append(8, "c")])) == [3]


def test_next_run_numbers_what_is_left_from_one(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "outbox.db")
    first.store(Held(1, "t", "/d"))
    first.commit([*(Append(1, str(number)) for number in range(4)), Append(1, "x", last=True)])
    first.commit([], acknowledged=3)
    first.close()
    second = Outbox(tmp_path / "outbox.db")
    assert second.after(0, 10) == [(1, "3"), (2, "x")]
    assert second.held() == (Held(1, "t", "/d", 2),)
    assert list(second.commit([Append(1, "y")])) == [3]
    second.commit([], acknowledged=3)
    second.close()
    third = Outbox(tmp_path / "outbox.db")
    assert third.last_seq == 0
    assert list(third.commit([Append(1, "z")])) == [1]


def test_what_was_committed_survives_without_a_close(tmp_path: Path) -> None:
    script = SCRIPT + "outbox.commit([Append(1, 'kept')]); os._exit(9)"
    path = tmp_path / "outbox.db"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    assert Outbox(path).after(0, 10) == [(1, "kept")]


def test_failing_batch_leaves_nothing_and_uses_no_number(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    with pytest.raises(OverflowError):
        outbox.commit([Append(1, "a"), Append(2**70, "not a number for SQLite")])
    assert list(outbox.commit([Append(1, "b")])) == [1]


def test_file_has_its_full_size_from_the_start(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    assert (tmp_path / "outbox.db-wal").stat().st_size >= FULL_SIZE
    outbox.close()
    assert (tmp_path / "outbox.db").stat().st_size >= FULL_SIZE


def test_full_disk_takes_reports_until_the_set_aside_space_is_used_and_keeps_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "outbox.db")], check=True, capture_output=True, text=True
    )
    written, kept, named = done.stdout.split()
    assert int(written) >= 1000
    assert (kept, named) == (written, "True")


def test_second_program_in_the_same_file_is_refused(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "outbox.db")
    second = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "outbox.db")], check=False, capture_output=True, text=True
    )
    assert "NoSpace" in second.stderr
    assert "locked" in second.stderr
    first.close()


def test_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()
    with pytest.raises(NoSpace, match=r"outbox\.db can't be written"):
        Outbox(tmp_path / "outbox.db")
