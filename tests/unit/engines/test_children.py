"""Children end with us, whatever happens."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from renderonline.engines.blender import install as children
from renderonline.engines.blender.install import child, sigterm_unwinds

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_is_ended_when_the_block_is_left() -> None:
    with child(SLEEP, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert is_gone(process.pid)


def test_a_child_is_ended_when_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), child(SLEEP) as process:
        raise KeyboardInterrupt
    assert is_gone(process.pid)


def test_a_stubborn_child_is_killed_with_its_own_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.2)
    script = 'trap "" TERM; sleep 600 & echo $!; wait; sleep 600'
    with child(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
    assert is_gone(process.pid)
    wait_for(lambda: is_gone(grandchild))


def test_a_child_that_ended_by_itself_keeps_its_exit_code() -> None:
    with child([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        process.wait(20)
    assert process.returncode == 7


def test_a_program_that_does_not_exist_ends_with_1() -> None:
    with child(["/nonexistent/program"]) as process:
        assert process.wait(20) == 1


KILLED = """
import subprocess, sys
from renderonline.engines.blender.install import child
with child(sys.argv[1:], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    print(process.pid, flush=True)
    process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_dies_even_when_we_are_killed(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", KILLED, *SLEEP]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
    wait_for(lambda: is_gone(pid))


def test_sigterm_unwinds_the_block_and_is_as_before_afterwards() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def work() -> None:
        with sigterm_unwinds():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_handles_sigterm_keeps_its_way() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        with sigterm_unwinds():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: seen)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM]


def test_other_threads_leave_signals_alone(tmp_path: Path) -> None:
    def work() -> None:
        with sigterm_unwinds():
            (tmp_path / "done").touch()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert (tmp_path / "done").exists()
