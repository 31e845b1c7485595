"""Our own programs as child processes: started, waited for, and all stopped on every way out.

A child never outlives its parent: its standard input is a pipe that nobody writes to, and `leash` ends the child
when that pipe closes, also when the parent was killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

from renderonline.farm.errors import NotAvailable, RenderOnlineError
from renderonline.storage import disk

LEASH: Final = "RENDERONLINE_LEASH"
POLL_S: Final = 0.05
INTERRUPTED: Final = 130
"""The exit code of a program that Ctrl-C ended."""
STOP_S: Final = 20.0
"""How long a program may take to end before it is killed."""
GONE_S: Final = 15.0
"""How long what a program started may take to end after it."""
LOG_TAIL: Final = 2000


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `signal` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.signal = number


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as one exception, raised once and never inside `held()`."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: int | None = None
        self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._take) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing interrupts what stands in here; an interrupt comes right after it."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._waiting is not None:
                self._take(self._waiting, None)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._depth:
            self._waiting = number
        elif not self._raised:  # whoever presses Ctrl-C again must not stop the cleaning up
            self._raised = True
            raise Interrupted(number)


@dataclass(slots=True)
class Program:
    """A child and where its output goes."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def tail(self) -> str:
        """The end of its output."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


class Supervisor:
    """Starts programs and stops them all, the youngest first, when its `with` block is left.

    Environment variables that begin with one of `hidden` are not passed on.
    """

    def __init__(self, interrupts: Interrupts, hidden: tuple[str, ...] = ()) -> None:
        self._interrupts, self._hidden = interrupts, hidden
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start `renderonline` with `words` as a process group of its own, its output into `log`."""
        disk.make_private(log.parent)
        argv = [sys.executable, "-P", "-m", "renderonline.cli.main", *words]
        given = {name: value for name, value in os.environ.items() if not name.startswith(self._hidden or "\0")}
        given |= {**(environment or {}), LEASH: "1", "PYTHONUNBUFFERED": "1"}
        with self._interrupts.held(), open(log, "ab", opener=disk.private) as output:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
            program = Program(name, subprocess.Popen(argv, env=given, start_new_session=True, **pipes), log)
            self._programs.append(program)
        return program

    def wait_for(self, program: Program, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `ready()`; `NotAvailable` with the end of its output when the program ends before."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise NotAvailable(f"{program.name} is not ready after {timeout_s:g} s.\n{program.tail()}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """`RenderOnlineError` when one of the programs has ended by itself."""
        for program in self._programs:
            code = program.process.poll()
            if code is not None:
                raise RenderOnlineError(f"{program.name} has ended (exit code {code}):\n{program.tail()}")

    def forget(self, program: Program) -> None:
        """Expect nothing more of a program that was ended on purpose."""
        self._programs = [one for one in self._programs if one is not program]

    def stop(self) -> None:
        """End all programs and what they started; not interrupted."""
        with self._interrupts.held():
            while self._programs:
                name = self._programs[-1].name
                stop_together([program for program in self._programs if program.name == name])
                self._programs = [program for program in self._programs if program.name != name]


def stop_together(programs: Sequence[Program]) -> None:
    """SIGTERM, after `STOP_S` SIGKILL, then wait until nothing is left of their process groups."""
    for program in programs:
        if program.process.poll() is None:
            program.process.terminate()
    deadline = time.monotonic() + STOP_S
    for program in programs:
        try:
            program.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.process.kill()
            program.process.wait()
        if program.process.stdin is not None:
            program.process.stdin.close()
    for program in programs:
        _clear_group(program.process.pid)


def _clear_group(group: int) -> None:
    """What a program started ends by itself when it is gone; what does not is killed."""
    if not hasattr(os, "killpg"):
        return
    deadline = time.monotonic() + GONE_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(POLL_S)
        os.killpg(group, signal.SIGKILL)


def leash() -> None:
    """In a child of a `Supervisor`: end (as by SIGTERM) when the parent is gone. Elsewhere nothing."""
    if os.environ.pop(LEASH, "") != "1":
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leash", daemon=True).start()
