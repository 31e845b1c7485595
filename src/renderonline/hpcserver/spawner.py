"""The spawner: the one process that starts engines, passes their output on and ends them (R8 Process trees).

Standard library only, one thread. HPCServer speaks to it over its standard input and output in lines of JSON. When its
input closes, HPCServer is gone and every process tree is killed.

    start {id, argv, cwd, env, nice, box, file_bytes, processes}
                                       -> started {id, pid, at_us, key} | refused {id, error}
    stop  {id, signal, grace_s}        the signal to the group, after the grace SIGKILL to the tree
                                       -> output {id, lines} … exited {id, code, peak_kib, left, began}

`exited` comes when nothing of the tree is left (or what is left could not be killed: `left`), after its last output.
`box` holds the fields of a `sandbox.box.Box`, null starts the engine without one. The engine may write files of at most
`file_bytes` (0: any size) and, in a box of bubblewrap, have at most `processes` processes and threads. `began` false:
its box could not be made, the last output says why.
"""

import errno
import json
import os
import re
import resource
import selectors
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from renderonline.farm.needs import BoxKind
from renderonline.hpcserver import process_table
from renderonline.sandbox import box
from renderonline.sandbox.box import Box, Found
from renderonline.sandbox.privacy import keep_private

MAX_LINE: Final = 8 * 1024
"""A longer line of output is passed on in pieces."""
MAX_UNSENT: Final = 4 * 1024 * 1024
"""While HPCServer takes nothing, engines are not read beyond this; they wait in their next write."""
OUTPUT_BURST: Final = 4 * 1024 * 1024
OUTPUT_BYTES_PER_S: Final = 1024 * 1024
"""An engine that writes more is slowed down; nothing of its output is dropped here."""
DRAIN_S: Final = 2.0
"""How long the output of a tree that is gone is read, should a stranger hold the pipe."""
CLEAR_S: Final = 30.0
"""How long an unkillable process (a dead network disk) holds up the end of its attempt."""
TICK_S: Final = 0.01
MOST_REAPED: Final = 256
"""Ended processes that are taken note of before everything else is looked at again."""
ROUNDS: Final = 20
"""Looks for what an ended engine left, between two looks at everything else."""
_BREAKS: Final = re.compile(rb"[\r\n]+")
_FIRST: Final = re.compile(rb'"child-pid"\s*:\s*(\d+)\b(?=\W)')


def frame(message: dict[str, Any]) -> bytes:
    """One message as it travels through the pipes: JSON without a line break in it, and one at its end."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Bytes of output -> lines: split at line feed and carriage return, blank ones dropped, long ones cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        pieces = _BREAKS.split(self._rest + data)
        self._rest = pieces.pop()
        if len(self._rest) > MAX_LINE:
            pieces.append(self._rest)
            self._rest = b""
        cut = (piece[at : at + MAX_LINE] for piece in pieces for at in range(0, len(piece), MAX_LINE))
        return [piece.decode("utf-8", "replace") for piece in cut]

    def close(self) -> list[str]:
        return self.feed(b"\n")


class Engine:
    """One engine process and what descends from it."""

    allowance = float(OUTPUT_BURST)
    is_open = True
    listening = stopped = False
    status = -1
    """Where bubblewrap writes about the box, while it may still do so; what it has written."""
    written = b""
    first = 0
    """The process 1 of the box; signals to its group reach the engine, and it takes none but SIGKILL itself."""
    began = True
    kill_at: float | None = None
    ended_at: float | None = None
    code: int | None = None
    peak_kib = 0
    left: frozenset[int] = frozenset()

    def __init__(self, message: dict[str, Any], mark: str, key: str, pid: int, pipe: int) -> None:
        self.name, self.mark, self.key, self.pid, self.pipe = message["id"], mark, key, pid, pipe
        self.nice, self.file_bytes, self.most_processes = message["nice"], message["file_bytes"], message["processes"]
        self.lines = Lines()
        self.allowance_at = time.monotonic()

    def may_read(self, now: float) -> bool:
        """Whether its share of output per second is not used up."""
        passed, self.allowance_at = now - self.allowance_at, now
        self.allowance = min(OUTPUT_BURST, self.allowance + passed * OUTPUT_BYTES_PER_S)
        return self.allowance > 0 or self.ended_at is not None


class Spawner:
    """The loop. `home` names the HPCServer's data directory in the mark; `found`: which boxes there are."""

    def __init__(self, home: str, found: Found, commands: int, events: int) -> None:
        self._home, self._found = home, found
        self._commands = commands
        self._events = events
        self._selector = selectors.DefaultSelector()
        self._engines: dict[str, Engine] = {}
        self._received = b""
        self._unsent = bytearray()
        self._sending = self._gone = self._unreaped = False
        self._subreaper = process_table.become_subreaper()

    def run(self) -> None:
        """Serve until HPCServer is gone, then leave no process behind."""
        wakeup, woken = os.pipe()
        for end in (wakeup, woken, self._commands, self._events):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        # Handlers, not SIG_IGN: an ignored signal would stay ignored in the engines.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._commands, selectors.EVENT_READ, self._read_commands)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: _read(wakeup, 4096))
        left = process_table.kill_marked(process_table.mark(self._home), wait_s=CLEAR_S)
        self._send(event="ready", left=sorted(left))
        try:
            while not self._gone:
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._reap()
                self._turn(time.monotonic())
        finally:
            self._kill_everything()

    def _read_commands(self) -> None:
        data = _read(self._commands, 1 << 20)
        self._gone = self._gone or data == b""
        *lines, self._received = (self._received + (data or b"")).split(b"\n")
        for message in map(json.loads, lines):
            if message["do"] == "start":
                self._start(message)
            elif message["do"] == "stop":
                self._stop(message)

    def _send(self, **message: Any) -> None:
        self._unsent += frame(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._events, self._unsent[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError:
            self._gone = True
            self._unsent.clear()
        if self._unsent and not self._sending:
            self._selector.register(self._events, selectors.EVENT_WRITE, self._flush)
        elif self._sending and not self._unsent:
            self._selector.unregister(self._events)
        self._sending = bool(self._unsent)

    def _start(self, message: dict[str, Any]) -> None:
        name = message["id"]
        mark, key = process_table.mark(self._home, name), os.urandom(16).hex()
        found = self._found if message["box"] is not None else Found()
        status, tell = os.pipe() if found.kind == BoxKind.BWRAP else (-1, -1)
        _bound_files(message["file_bytes"])
        try:
            pid, pipe = box.start(
                found,
                Box(**(message["box"] or {})),
                message["argv"],
                _spawn,
                directory=message["cwd"],
                status=None if tell < 0 else tell,
                env={**message["env"], process_table.MARK: mark, process_table.KEY: key},
            )
        except (OSError, ValueError) as error:
            if status >= 0:
                os.close(status)
            self._send(event="refused", id=name, error=str(error))
            return
        finally:
            if tell >= 0:
                os.close(tell)
        at_us = time.time_ns() // 1000
        self._engines[name] = engine = Engine(message, mark, key, pid, pipe)
        _make_modest(pid, engine.nice, engine.file_bytes)
        self._send(event="started", id=name, pid=pid, at_us=at_us, key=key)
        os.set_blocking(pipe, False)
        if status >= 0:
            engine.status, engine.began = status, False
            os.set_blocking(status, False)
            self._selector.register(status, selectors.EVENT_READ, lambda: self._read_status(engine))

    def _read_status(self, engine: Engine) -> None:
        """Take note of what bubblewrap tells: at the start its process 1, at the end that the engine had begun."""
        data = _read(engine.status, 1 << 16)
        engine.written += data or b""  # it comes in pieces
        engine.began = engine.began or b'"exit-code"' in engine.written
        if not engine.first and (found := _FIRST.search(engine.written)) is not None:
            engine.first = int(found[1])
            # The limit of processes counts those of the box only because it is set after the box was made.
            for pid in (engine.first, *process_table.children(engine.first)):
                _make_modest(pid, engine.nice, engine.file_bytes, processes=engine.most_processes)
        if data == b"":
            self._close_status(engine)

    def _close_status(self, engine: Engine) -> None:
        if engine.status >= 0:
            self._selector.unregister(engine.status)
            os.close(engine.status)
            engine.status = -1

    def _stop(self, message: dict[str, Any]) -> None:
        engine = self._engines.get(message["id"])
        if engine is None or engine.ended_at is not None:
            return
        deadline = time.monotonic() + message["grace_s"]
        engine.kill_at = deadline if engine.kill_at is None else min(engine.kill_at, deadline)
        if not engine.stopped:
            engine.stopped = True
            for number in (signal.Signals[message["signal"]], signal.SIGCONT):
                process_table.signal_group(engine.first or engine.pid, number)

    def _reap(self) -> None:
        """Take note of ended children: engines, and orphans that became ours."""
        by_pid = {engine.pid: engine for engine in self._engines.values() if engine.ended_at is None}
        ended = None
        with suppress(ChildProcessError):
            for _ in range(MOST_REAPED):  # they may end as fast as we look
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    break
                engine = by_pid.get(ended.si_pid)
                if engine is not None:
                    # Before it is reaped: afterwards the id could be somebody else's.
                    process_table.signal_group(engine.pid, signal.SIGKILL)
                _, status, usage = os.wait4(ended.si_pid, 0)
                if engine is not None:
                    engine.code = os.waitstatus_to_exitcode(status)
                    if engine.status >= 0:
                        self._read_status(engine)
                    if engine.first:
                        engine.code = box.exit_code(engine.code)
                    engine.peak_kib = usage.ru_maxrss
                    engine.ended_at = time.monotonic()
        self._unreaped = ended is not None

    def _turn(self, now: float) -> None:
        for engine in list(self._engines.values()):
            if engine.ended_at is not None:
                self._finish(engine, now, engine.ended_at)
                continue
            self._listen(engine, now)
            if engine.kill_at is not None and now >= engine.kill_at:
                process_table.signal_group(engine.pid, signal.SIGKILL)
                for pid in process_table.marked(engine.mark):
                    process_table.kill(pid, engine.mark)
                engine.kill_at = now + 1.0  # again, should it have started something in between

    def _listen(self, engine: Engine, now: float) -> None:
        wanted = engine.is_open and engine.may_read(now) and len(self._unsent) < MAX_UNSENT
        if wanted and not engine.listening:
            self._selector.register(engine.pipe, selectors.EVENT_READ, lambda: self._read_output(engine))
        elif engine.listening and not wanted:
            self._selector.unregister(engine.pipe)
        engine.listening = wanted

    def _read_output(self, engine: Engine) -> None:
        data = _read(engine.pipe, 1 << 16)
        if data:
            engine.allowance -= len(data)
            self._pass_on(engine, engine.lines.feed(data))
        elif data is not None:
            self._close_output(engine)

    def _close_output(self, engine: Engine) -> None:
        if engine.is_open:
            self._pass_on(engine, engine.lines.close())
            if engine.listening:
                self._selector.unregister(engine.pipe)
            engine.is_open = engine.listening = False
            os.close(engine.pipe)

    def _pass_on(self, engine: Engine, lines: list[str]) -> None:
        if lines:
            self._send(event="output", id=engine.name, lines=lines)

    def _finish(self, engine: Engine, now: float, ended_at: float) -> None:
        """Clear what is left of a tree whose first process ended; when all is gone and read, say so."""
        if now < ended_at + CLEAR_S:
            engine.left = self._kill_orphans(engine)
            if engine.left:
                return
        self._listen(engine, now)
        if engine.is_open and now < ended_at + DRAIN_S:
            return
        self._close_output(engine)
        self._close_status(engine)
        del self._engines[engine.name]
        about = {"code": engine.code, "peak_kib": engine.peak_kib, "left": sorted(engine.left), "began": engine.began}
        self._send(event="exited", id=engine.name, **about)

    def _kill_orphans(self, engine: Engine) -> frozenset[int]:
        """Kill what the ended engine left; a descendant without a live parent is our child, whatever its session. An
        orphan that carries no key of a living engine has no business here either."""
        left = self._orphans()
        for _ in range(ROUNDS if left else 0):  # without a pause: some start others as fast as they are ended
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)  # our child: its id is its own until it is reaped
            self._reap()
            left = self._orphans()
        if engine.stopped or not self._subreaper:
            for pid in (marked := process_table.marked(engine.mark)):
                process_table.kill(pid)
            left |= marked
        return frozenset(pid for pid in left if process_table.is_running(pid))

    def _orphans(self) -> frozenset[int]:
        """Our children that belong to no living engine, zombies among them."""
        if not self._subreaper:
            return frozenset()
        alive = {other.key: other.pid for other in self._engines.values() if other.ended_at is None}
        others = process_table.children() - set(alive.values())
        return frozenset(pid for pid in others if process_table.key_of(pid) not in alive)

    def _patience(self) -> float | None:
        """Seconds until something must be looked at without an event."""
        engines = self._engines.values()
        if self._unreaped:
            return 0.0
        if any(engine.ended_at is not None for engine in engines):
            return TICK_S
        now = time.monotonic()
        waits = [max(0.0, engine.kill_at - now) for engine in engines if engine.kill_at is not None]
        if any(engine.is_open and not engine.listening for engine in engines):
            waits.append(0.05)
        return min(waits, default=None)

    def _kill_everything(self) -> None:
        deadline = time.monotonic() + CLEAR_S
        for engine in self._engines.values():
            if engine.ended_at is None:
                process_table.signal_group(engine.pid, signal.SIGKILL)
        while (left := process_table.children()) and time.monotonic() < deadline:
            for pid in left:
                process_table.kill(pid)
            self._reap()
            time.sleep(TICK_S)
        process_table.kill_marked(process_table.mark(self._home), wait_s=CLEAR_S)


def _spawn(argv: list[str], *, cwd: str, env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> tuple[int, int]:
    """Start a program in a session of its own, without input: its process id, and the pipe of its output. It inherits
    the working directory, which the spawner has for nothing else: `posix_spawn` costs a third of `subprocess.Popen`.
    Raises OSError and ValueError."""
    program = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=env.get("PATH"))
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    reading, writing = os.pipe()
    try:
        os.chdir(cwd)
        ends = ((writing, 1), (writing, 2), *((passed, passed) for passed in pass_fds))
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, *both) for both in ends]
        ignored = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python
        return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigdef=ignored), reading
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.chdir("/")


def _bound_files(file_bytes: int) -> None:
    """How large a file what is started next may write, 0 for any. It inherits this, so that it holds from its first
    instruction on; the spawner itself writes no file. `_make_modest` then makes it final."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes or hard, hard))


def _make_modest(pid: int, nice: int, file_bytes: int, processes: int = 0) -> None:
    """Engines yield to HPCServer, are what the kernel ends first when memory runs out, and have limits; 0: none."""
    with suppress(OSError, AttributeError):  # the limits are Linux's
        if nice:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
        if file_bytes:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        if processes:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (processes, processes))
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("500")


def _read(descriptor: int, size: int) -> bytes | None:
    """What has arrived: b"" at the end, None when nothing is there yet."""
    try:
        return os.read(descriptor, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def main() -> None:
    """Run with the home's name and what is known of boxes (`Found` as JSON) as the first and the third argument,
    standard input and output being HPCServer's pipes."""
    keep_private()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # engines inherit it: a core holds a scene, and fills the disk
    Spawner(sys.argv[1], Found(**json.loads(sys.argv[3])), sys.stdin.fileno(), sys.stdout.fileno()).run()
