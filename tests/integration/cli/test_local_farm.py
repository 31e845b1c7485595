"""Child programs end with their parent, whatever happens to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from renderonline.cli import local_farm
from renderonline.cli.local_farm import Program, Supervisor
from renderonline.cli.terminal import Interrupted, Interrupts
from renderonline.farm.errors import NotAvailable, RenderOnlineError

PARENT = """
import sys, time
from pathlib import Path
from renderonline.cli.local_farm import Supervisor
from renderonline.cli.terminal import Interrupts
directory = Path(sys.argv[1])
with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
    words = ["api", "--port", "0", "--data-directory", str(directory)]
    program = supervisor.start("RenderAPI", words, directory / "log")
    (directory / "child").write_text(str(program.process.pid))
    time.sleep(60)
"""


def wait_until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_child_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (tmp_path / "renderapi.json").exists())
        child = int((tmp_path / "child").read_text())
        parent.send_signal(number)
        parent.wait(30)
        wait_until(lambda: not alive(child))
    finally:
        parent.kill()
        parent.wait()


def program_of(code: str, directory: Path, name: str = "tool") -> Program:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    return Program(name, process, directory / "log")


def test_program_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_farm, "STOP_S", 0.5)
    ready = tmp_path / "ready"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
    program = program_of(code, tmp_path)
    wait_until(ready.exists)
    local_farm.stop_together([program])
    assert program.process.returncode == -signal.SIGKILL


def test_what_a_program_leaves_in_its_group_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_farm, "GONE_S", 0.2)
    ready = tmp_path / "ready"
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(ready)!r}, 'w').write(str(p.pid))"
    )
    program = program_of(code, tmp_path)
    program.process.wait()
    local_farm.stop_together([program])
    wait_until(lambda: not alive(int(ready.read_text())))


def test_program_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
        program = supervisor.start("RenderAPI", ["api", "--port", "nonsense"], tmp_path / "log")
        with pytest.raises(RenderOnlineError, match="valid integer"):
            supervisor.wait_for(program, lambda: False)


def test_program_that_is_never_ready_is_told(tmp_path: Path) -> None:
    with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
        supervisor._programs.append(program_of("import time; time.sleep(60)", tmp_path))
        with pytest.raises(NotAvailable, match="not ready"):
            supervisor.wait_for(supervisor._programs[0], lambda: False, timeout_s=0.1)


def test_interrupt_comes_once_and_not_while_it_is_held() -> None:
    with Interrupts() as interrupts:
        steps = []
        with pytest.raises(Interrupted) as caught, interrupts.held():  # noqa: PT012 - what is held is the point
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("whole")
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("not again")
    assert steps == ["whole", "not again"]
    assert caught.value.signal == signal.SIGTERM


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
