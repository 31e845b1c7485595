"""Whether somebody works at the computer."""

import os
import subprocess
import sys
import time

import pytest

from renderonline.hpcserver import telemetry as desk
from renderonline.hpcserver.telemetry import OwnersUse, cpu_of_others, last_input


@pytest.mark.parametrize(
    ("minutes_ago", "takes"), [(9, False), (11, True), (-60, True)], ids=["in use", "left alone", "a clock set back"]
)
def test_machine_takes_nothing_while_its_desk_is_used(
    monkeypatch: pytest.MonkeyPatch, minutes_ago: float, takes: bool
) -> None:
    monkeypatch.setattr(desk, "last_input", lambda: time.time() - minutes_ago * 60)
    told = OwnersUse(10, 0).why()
    assert told == ("" if takes else "somebody is at the desk; it takes work when nobody was for 10 minutes")


def test_load_alone_counts_where_nobody_can_tell_when_the_desk_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "last_input", lambda: None)
    assert not OwnersUse(10, 0).why()


def test_load_of_others_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([100.0, 100.0 + 10**6, 100.0 + 10**6])
    monkeypatch.setattr(desk, "MEASURE_S", 0.0)
    monkeypatch.setattr(desk, "cpu_of_others", lambda: next(spent))
    busy = OwnersUse(0, 1.5)
    assert "more than 1.5" in busy.why()
    assert not busy.why()


def test_desk_that_is_not_watched_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(desk, "last_input")
    monkeypatch.delattr(desk, "cpu_of_others")
    assert not OwnersUse(0, 0).why()


@pytest.mark.skipif(sys.platform != "linux", reason="the door of Linux")
def test_terminal_in_use_is_seen() -> None:
    ours, theirs = os.openpty()
    try:
        used_at = last_input()
        assert used_at is not None
        assert time.time() - used_at < 60
    finally:
        os.close(ours)
        os.close(theirs)


def test_cpu_of_what_we_started_is_ours() -> None:
    before = cpu_of_others(), time.monotonic()
    burn = "import time\nwhile time.process_time() < 1.0: pass\nprint(1, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        others, passed = cpu_of_others() - before[0], time.monotonic() - before[1]
    assert others <= passed * (os.cpu_count() or 1) - 0.4
