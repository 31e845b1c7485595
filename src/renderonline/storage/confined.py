"""Reading strangers' files in a child with limits (R13 Hostile content): their readers may crash, hang, or ask for all
the memory.

One child serves many calls; it is started again after it died.
"""

import contextlib
import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Self

from renderonline.sandbox import system
from renderonline.sandbox.box import NO_BOX, Box, BoxKind, Found
from renderonline.sandbox.starting import start

LONGEST_REPLY: Final = 1 << 20
"""Bytes of JSON."""
LARGEST_FILE: Final = 16 << 20
"""Bytes; files in memory count."""
STOP_S: Final = 0.1
"""A call that is stopped ends within this."""
_KEPT: Final = frozenset({"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV"})
"""All that the child is told of our environment: nothing secret reaches it."""


class Confined:
    """Calls `function` (`module:name`; it takes and gives JSON values) in a child, one call at a time. Blocking: call
    it in a thread.

    `time_s`: for one call; `memory_bytes`: address space of the child; `file_bytes`: of any file that it writes;
    `reply_bytes`: of JSON that it may answer.
    `found`: the box that the child runs in; there it reads what `read` and writes what `write` names, and no more.
    """

    def __init__(
        self,
        function: str,
        *,
        time_s: float = 30.0,
        memory_bytes: int,
        file_bytes: int = LARGEST_FILE,
        reply_bytes: int = LONGEST_REPLY,
        found: Found = NO_BOX,
        read: Sequence[str] = (),
        write: Sequence[str] = (),
    ) -> None:
        self.time_s, self._reply_bytes = time_s, reply_bytes
        self._found, self._box = found, Box((*system.python_paths(), *read), tuple(write))
        self._words = (function, str(memory_bytes), str(time_s), str(file_bytes))
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            self._end()

    def start(self) -> None:
        """Start the child now, if it does not run, so that the next call need not wait for it."""
        with self._lock:
            self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _start(self._words, self._found, self._box)
        return self._child

    def open(self, *directories: str) -> None:
        """Let later calls read what lies in these directories; a child whose box lacks one ends."""
        with self._lock:
            new = tuple(one for one in directories if one not in self._box.read)
            if new and self._found.kind != BoxKind.NONE:
                self._box = replace(self._box, read=(*self._box.read, *new))
                self._end()

    def call(self, *arguments: Any, stopped: threading.Event | None = None) -> Any:
        """What the function returns. `TimeoutError` when that takes too long, or when `stopped` is set: the child is
        ended then. `EOFError` when it raised something, crashed, or ran out of memory."""
        with self._lock:
            try:
                deadline = time.monotonic() + self.time_s
                return _ask(self._started(), arguments, deadline, self._reply_bytes, stopped or threading.Event())
            except TimeoutError:
                self._end()
                raise
            except (OSError, EOFError, ValueError) as error:
                self._end()
                raise EOFError(str(error)) from error

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(OSError), child:  # leaving it closes the pipes and waits
                os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def _start(words: tuple[str, ...], found: Found, box: Box) -> subprocess.Popen[bytes]:
    # -P: what lies in the directory where we were started is no module of ours.
    argv = [sys.executable, "-P", "-m", "renderonline.storage.confined", *words]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    environment = {name: value for name, value in os.environ.items() if name in _KEPT}
    # numpy would reserve memory for as many threads as there are processors.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # In a session of its own: a Ctrl-C meant for us must not look like a broken file. The box is not tied to the thread
    # that starts it: others go on with the child.
    return start(
        found,
        box,
        argv,
        directory=os.getcwd() if found.kind == BoxKind.NONE else "/",
        tied=False,
        stdin=pipe,
        stdout=pipe,
        stderr=nothing,
        env=environment,
        start_new_session=True,
    )


def _ask(
    child: subprocess.Popen[bytes],
    arguments: tuple[Any, ...],
    deadline: float,
    most: int,
    stopped: threading.Event,
) -> Any:
    """The child's reply; `TimeoutError` past the deadline (monotonic seconds) or when `stopped`, `OSError` or
    `EOFError` when it died."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(arguments).encode() + b"\n")
    child.stdin.flush()
    line = bytearray()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or stopped.is_set():
            raise TimeoutError
        if not select.select([child.stdout], [], [], min(left, STOP_S))[0]:
            continue
        piece = os.read(child.stdout.fileno(), LONGEST_REPLY)
        if not piece or len(line) > most:
            raise EOFError
        line += piece
    return json.loads(line)


def _limit(memory_bytes: int, time_s: float, file_bytes: int) -> None:
    """Bound what this process may use for the next call (`time_s`: seconds of CPU), where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the deadline of the parent is what is left
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + time_s) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))


def serve(function: str, memory_bytes: int, time_s: float, file_bytes: int) -> None:
    """The child's life: arguments per line in, a reply per line out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a reader prints is not an answer
    _limit(memory_bytes, time_s, file_bytes)
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    for line in sys.stdin.buffer:
        _limit(memory_bytes, time_s, file_bytes)
        replies.write(json.dumps(called(*json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
