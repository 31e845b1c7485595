"""Which processes exist, whose they are, and how to end them (R8 Process trees). Standard library only: the spawner
uses it.

The mark is the environment variable `RENDERONLINE_ATTEMPT=<home>/<attempt>/`; `home` names one HPCServer's data
directory, so that two HPCServers on one computer leave each other's engines alone. The key is the variable
`RENDERONLINE_ENGINE`: random, so that in a box nobody can carry another engine's. The process table is read from
Linux's `/proc`; elsewhere nothing is found and only process groups are killed (untested there).
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Final

MARK: Final = "RENDERONLINE_ATTEMPT"
KEY: Final = "RENDERONLINE_ENGINE"
_PR_SET_CHILD_SUBREAPER: Final = 36


def mark(home: str, attempt: str = "") -> str:
    """The mark of one attempt; without an attempt what the marks of all attempts of this HPCServer begin with. It ends
    in a slash so that no mark is the beginning of another one."""
    return f"{home}/{attempt}/" if attempt else f"{home}/"


def become_subreaper() -> bool:
    """Make orphaned descendants of this process its children; False where the system can't (R8 Process trees)."""
    if sys.platform != "linux":
        return False
    return int(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


def children(of: int = 0) -> frozenset[int]:
    """The direct children of a process (0: this one), zombies among them."""
    pid = of or os.getpid()
    words = _read(f"{pid}/task/{pid}/children")
    if words is None:  # a kernel without this file
        return frozenset(other for other in processes() if parent_of(other) == pid)
    return frozenset(map(int, words.split()))


def processes() -> tuple[int, ...]:
    """The ids of all processes that can be seen; () where there is no `/proc`."""
    try:
        return tuple(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return ()


def parent_of(pid: int) -> int:
    """The id of the process's parent, 0 when it is gone."""
    return int(_stat(pid)[1])


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _stat(pid)[0] not in {b"X", b"Z"}


def mark_of(pid: int) -> str:
    """The mark that a process was started with, "" when it has none or it can't be read."""
    return _variable(pid, MARK)


def key_of(pid: int) -> str:
    """The key of the engine that a process descends from, "" when it has none or it can't be read."""
    return _variable(pid, KEY)


def marked(prefix: str) -> frozenset[int]:
    """All running processes whose mark begins with `prefix`, this one never."""
    own = os.getpid()
    return frozenset(pid for pid in processes() if pid != own and mark_of(pid).startswith(prefix) and is_running(pid))


def kill(pid: int, prefix: str = "") -> None:
    """SIGKILL one process if its mark begins with `prefix`; one that is gone or somebody else's is left. The pidfd is
    taken before the mark is looked at, so that a reused id is never hit."""
    with suppress(AttributeError, OSError):  # no pidfd here, or no such process
        handle = os.pidfd_open(pid)
        try:
            if mark_of(pid).startswith(prefix):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group; a group that is gone is left."""
    with suppress(OSError):
        os.killpg(group, number)


def kill_marked(prefix: str, *, wait_s: float) -> frozenset[int]:
    """Kill whatever carries the mark until nothing does (R8 Process trees); what is still there after `wait_s` seconds
    is returned. Repeated because a process may start another one while its table entry is being read."""
    deadline = time.monotonic() + wait_s
    while (left := marked(prefix)) and time.monotonic() < deadline:
        for pid in left:
            kill(pid, prefix)
        time.sleep(0.01)
    return left


def _variable(pid: int, wanted: str) -> str:
    for entry in (_read(f"{pid}/environ") or b"").split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == wanted.encode():
            return value.decode(errors="replace")
    return ""


def _read(name: str) -> bytes | None:
    try:
        with open(f"/proc/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None


def _stat(pid: int) -> tuple[bytes, bytes]:
    """State and parent; the name in front of them may hold spaces and brackets. As if dead when it is gone."""
    words = (_read(f"{pid}/stat") or b"").rpartition(b")")[2].split()
    return (words[0], words[1]) if words else (b"X", b"0")
