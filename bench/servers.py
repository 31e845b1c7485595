"""The servers that are compared, RenderAPI and Debian's nginx: what they cost, and clients that cost little."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/www;
        location / {{ dav_methods PUT; }}
        location /renderapi {{ rewrite ^ /{pulled} break; }}
    }}
}}
user {user};
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one transfer took: wall seconds, seconds of the server's processors, bytes, growth of its memory."""

    seconds: float
    processor_s: float
    size: int
    growth: int
    first_byte_s: float = 0.0

    @property
    def speed(self) -> float:
        """MB/s."""
        return self.size / self.seconds / 1e6

    @property
    def processor(self) -> float:
        """Seconds of a processor for a GB."""
        return self.processor_s / self.size * 1e9


class Server:
    """A server at work: its address, and its processes."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._processes = [psutil.Process(pid), *psutil.Process(pid).children()]

    @contextlib.contextmanager
    def measured(self, size: int) -> Iterator[list[Cost]]:
        """What happens inside costs this; the list has it afterwards."""
        self.settle()
        found: list[Cost] = []
        before, memory = self._processor_s(), self._peak(anew=True)
        begun = time.perf_counter()
        yield found
        seconds = time.perf_counter() - begun
        found.append(Cost(seconds, self._processor_s() - before, size, self._peak() - memory))

    def settle(self) -> None:
        """Nothing is written to the disk any more, and the server is idle."""
        os.sync()
        before = -1.0
        while (now := self._processor_s()) != before:
            before = now
            time.sleep(0.1)

    def _processor_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def _peak(self, *, anew: bool = False) -> int:
        """The most memory that was resident at once, since the start or since this was asked `anew`."""
        total = 0
        for process in self._processes:
            if anew:
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
            status = Path(f"/proc/{process.pid}/status").read_text()
            total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        return total


@contextlib.contextmanager
def nginx(directory: Path, pulled: str) -> Iterator[Server]:
    """Debian's nginx with its directory `www`, which takes PUT. Every path below /renderapi is the file `pulled`."""
    for name in ("www", "body"):
        (directory / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user = psutil.Process().username()
    written = CONFIGURATION.format(directory=directory, port=port, pulled=pulled, user=user)
    (directory / "nginx.conf").write_text(written)
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("There is no nginx. Please type: scripts/system-packages bench")
    process = subprocess.Popen([program, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def send(port: int, head: bytes, parts: list[bytes | Path]) -> http.client.HTTPResponse:
    """One request with a body, files by sendfile: a client that costs as little as it can. `head` without its end."""
    length = sum(part.stat().st_size if isinstance(part, Path) else len(part) for part in parts)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Host: bench\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % length)
        for part in parts:
            if isinstance(part, Path):
                with part.open("rb") as file:
                    connection.sendfile(file)
            else:
                connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.body = response.read()  # type: ignore[attr-defined]
        if response.status >= 300:
            raise SystemExit(f"The bench was refused: {response.status} {response.body!r}")  # type: ignore[attr-defined]
        return response


def receive(port: int, head: bytes) -> tuple[int, float]:
    """One download that is thrown away: its size, and the seconds until its first byte."""
    buffer = bytearray(1 << 20)
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Host: bench\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        if response.status >= 300:
            raise SystemExit(f"The bench was refused: {response.status} {response.read()!r}")
        size = response.readinto(memoryview(buffer)[:1])
        first = time.perf_counter() - begun
        while count := response.readinto(buffer):
            size += count
    return size, first
