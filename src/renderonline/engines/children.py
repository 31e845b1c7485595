"""Running a program for a while so that nothing of it outlives us: an installer, a probe, a film encoder.

Engines themselves are never started here but by the machine's spawner (R8).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, NoReturn

GRACE_S: Final = 2.0
"""Between asking a child to end and killing it."""

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
    """The running program; whatever is left of it when the block is left, by whatever way, is killed.

    On Linux it dies even when we are killed without being asked. `FileNotFoundError` (elsewhere than on Linux) or exit
    code 1 when the program does not exist.
    """
    if sys.platform.startswith("linux"):
        argv = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *argv]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def lines_of(words: IO[bytes]) -> list[str]:
    """What a child has written to the file, line by line without blank ones."""
    words.seek(0)
    return [line.strip() for line in words.read().decode(errors="replace").splitlines() if line.strip()]


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
    """Within the block SIGTERM raises `SystemExit(143)`, so that `finally` runs and children are ended.

    A program that handles SIGTERM by itself keeps its way, and so does every thread but the main one.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unwind(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
