"""Real HPCServers as processes of their own, and a look at what they leave."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from renderonline.hpcserver import process_table
from renderonline.sandbox.privacy import write_private
from tests.support.fake_renderapi import FakeRenderAPI

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0
LINKED = """
import json, sys
from pathlib import Path
from renderonline.farm.errors import RenderOnlineError
from renderonline.hpcserver.main import run_linked
from renderonline.hpcserver.settings import load
from renderonline.serving.settings import configure_logs
given = json.loads(sys.argv[1])
configure_logs(json_lines=False, level="info")
settings = load(None, environment={}, flags=given["flags"])
try:
    sys.exit(run_linked(settings, **given["run"]))
except RenderOnlineError as error:
    print("REFUSED:", error, flush=True)
    sys.exit(3)
"""


class Node:
    """A linked HPCServer that has joined already: engine `sh` is /bin/sh, `python` this Python."""

    def __init__(
        self, home: Path, url: str, *, path: str = "/usr/bin:/bin", before: Sequence[str] = (), **flags: Any
    ) -> None:
        self.home, self.path, self.before = home, path, before
        self.url = url
        self.flags = {
            "data_directory": str(home),
            "name": home.name,
            "stop_grace": 1.0,
            "sandbox_write": [str(home.parent)],  # the shell is told to look for files beside its own
            "rendering_engines": [
                {"EngineId": "Sh", "ExecutablePath": "/bin/sh"},
                {"EngineId": "python", "ExecutablePath": sys.executable},
            ],
            **flags,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.parent / f"{home.name}.log"

    def join(self, certificate: str = "") -> None:
        """Be a machine of the farm without the enrolment; `certificate` (PEM) is the pinned one."""
        self.home.mkdir(parents=True, exist_ok=True)
        content = {"url": self.url, "machine_id": 1000, "secret": "secret", "certificate": certificate}
        write_private(self.home / "machine.json", json.dumps(content))

    def start(self, **run: Any) -> None:
        """Start the program; `run` are arguments of `run_linked`."""
        given = json.dumps({"flags": self.flags, "run": {"url": self.url, **run}})
        environment = {
            "PATH": self.path,
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "src"),
            "RENDERONLINE_DATA": str(self.home.parent / "data"),
            "SECRET_TOKEN": "do-not-inherit",
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, "-c", LINKED, given], env=environment, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def mark(self) -> str:
        """What the marks of its engines begin with."""
        return process_table.mark((self.home / "identity").read_text())

    def engines(self) -> frozenset[int]:
        """Its engines' processes, wherever they are in the table, without those of the boxes around them."""
        return frozenset(pid for pid in process_table.marked(self.mark) if b"bwrap" not in _command_line(pid))

    def spawner(self) -> int:
        """The process id of its spawner."""
        found = [
            pid
            for pid in process_table.processes()
            if process_table.parent_of(pid) == self.pid and b"spawner" in _command_line(pid)
        ]
        assert len(found) == 1, found
        return found[0]

    async def ends(self) -> int:
        """Wait for its end; gives the exit code."""
        assert self.process is not None
        await until(lambda: self.process is not None and self.process.poll() is not None, "end of HPCServer")
        return self.process.returncode

    def stop(self) -> None:
        """End it, whatever it takes, and what it left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if (self.home / "identity").exists():
            process_table.kill_marked(self.mark, wait_s=5.0)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def linked_node(directory: Path, api: FakeRenderAPI, name: str = "node", **flags: Any) -> Iterator[Node]:
    """A running HPCServer that dials `api`."""
    node = Node(directory / name, api.url, **flags)
    node.join()
    node.start()
    try:
        yield node
    finally:
        node.stop()


async def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait for something outside this program; AssertionError names what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        await asyncio.sleep(0.01)


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def png(width: int = 4, height: int = 3) -> bytes:
    """A small, whole picture: a gradient."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(40 * (x + y) % 256 for x in range(width) for _ in range(3)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
