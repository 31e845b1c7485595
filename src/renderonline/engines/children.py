"""Running a program for a while so that nothing of it outlives us: an installer, a probe, a film encoder.

Engines themselves are never started here but by the machine's spawner (R8 Process trees).
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

GRACE_S: Final = 2.0
"""Between asking a child to end and killing it."""
LONGEST_ANSWER: Final = 1 << 20

_DIES_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def child(
    argv: Sequence[str],
    *,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The running program; whatever is left of it when the block is left, by whatever way, is killed. On Linux it dies
    even when we are killed without being asked. `FileNotFoundError` (elsewhere than on Linux) or exit code 1 when the
    program does not exist."""
    if sys.platform.startswith("linux"):
        argv = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *argv]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            _end(process)


class ChildAnswer(NamedTuple):
    """What a program wrote on stdout and stderr, line by line without blank ones. `code` None: it took too long, or
    could not be started."""

    code: int | None
    out: Sequence[str] = ()
    err: Sequence[str] = ()


def ask(
    argv: Sequence[str],
    time_s: float,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[int], object] = lambda _pid: None,
) -> ChildAnswer:
    """Run a program to its end, but for `time_s` at most; `meanwhile` is called with its process id now and then."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, suppress(FileNotFoundError):
        with child(argv, stdout=out, stderr=err, cwd=cwd, environment=environment) as process:
            ends = time.monotonic() + time_s
            while process.poll() is None and time.monotonic() < ends:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                meanwhile(process.pid)
            code = process.poll()
        return ChildAnswer(code, _lines(out), _lines(err))
    return ChildAnswer(None)


def _lines(words: IO[bytes]) -> list[str]:
    words.seek(0)
    lines = words.read(LONGEST_ANSWER).decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            process.wait(GRACE_S)


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit(143)`, so that `finally` runs and children are ended. A program that
    handles SIGTERM by itself keeps its way, and so does every thread but the main one."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
