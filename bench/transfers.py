"""Big files to and from RenderAPI over loopback, each beside nginx on the same disk, one after the other.

MB/s depend on what else the machine does; the ratio to nginx in the same minute, and the seconds of the server's
processors for a GB, much less. Every figure stands beside its floor.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench.figures import MB, file_of, show
from bench.servers import Cost, Server, nginx, receive, send
from renderonline.hpcserver.file_exchange import Transfers, TransferSession
from renderonline.hpcserver.joining import Identity
from renderonline.storage.disk import Sums, digest_file
from renderonline.storage.manifests import manifest_of
from tests.support.farm import RealFarm

SIZE = 2000 * MB
LARGE = 4000 * MB
PULLED = 1000 * MB
FRAMES = 2000
FRAME = 1 << 20
RUNS = 3
PULLS = 5
"""An odd one out of three may be one that waited for the disk."""
FIRST_ATTEMPT = 1 << 50
MACHINE = 1_000_000
TOKEN = "bench"
BOUNDARY = b"------------------------a6cf8d1de86b5dd7"  # as long as curl's
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".bin"]
template = "nothing $RENDERONLINE:@uploaded_file"
"""


def run() -> None:
    """Print every figure with its floor."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        _transfers(Path(name))


def _transfers(directory: Path) -> None:
    big, pulled = file_of(directory / "big.bin", SIZE), "pulled.bin"
    _chunks(big)
    with RealFarm(directory) as farm, nginx(directory / "nginx", pulled) as other:
        farm.client.admin.add_engine(ENGINE)
        farm.client.admin.change_subscription(1, queue_limit=1000)
        ours = Server(int(farm.url.rpartition(":")[2]), farm.renderapi.process.pid)
        bench = _Bench(farm, ours, other, directory)
        bench.uploads(big)
        bench.large(file_of(directory / "large.bin", LARGE))
        bench.downloads()
        bench.pull(file_of(directory / "nginx" / "www" / pulled, PULLED))


class _Bench:
    def __init__(self, farm: RealFarm, ours: Server, other: Server, directory: Path) -> None:
        self._farm, self._ours, self._other, self._directory = farm, ours, other, directory
        self._who = f"email: {farm.login.email}\r\ntoken: {farm.login.token}\r\n".encode()

    def uploads(self, file: Path) -> None:
        """PUT, form and nginx in turn."""
        runs: dict[str, list[Cost]] = {"nginx": [], "put": [], "form": []}
        for _ in range(RUNS):
            with self._other.measured(SIZE) as found:
                send(self._other.port, b"PUT /put.bin HTTP/1.1\r\n", [file])
            (self._directory / "nginx" / "www" / "put.bin").unlink()
            runs["nginx"] += found
            runs["put"].append(self._put(file, SIZE))
            cost, task = self._form(file, SIZE)
            runs["form"].append(cost)
            self._farm.client.delete(task)
        limit = _median(runs["nginx"], "speed")
        theirs, sums = _median(runs["nginx"], "processor"), _sums(file)
        print(f"nginx, PUT of 2 GB: {limit:.0f} MB/s, {theirs:.2f} s/GB")
        print(f"BLAKE3 and CRC-32, which a form's file gets while it passes: {sums:.2f} s/GB")
        for name, what, floor, most in (("put", "PATCH of 2 GB", 0.8, 1.4), ("form", "multipart of 2 GB", 0.4, 2.8)):
            speed, processor = _median(runs[name], "speed"), _median(runs[name], "processor")
            show(f"{what}: {speed:.0f} MB/s, of nginx", speed / limit, floor)
            without = processor - sums * (name == "form")
            show(f"{what}: {processor:.2f} s/GB, without the sums and of nginx", without / theirs, most=most)

    def large(self, file: Path) -> None:
        """The growth of memory during one large upload."""
        cost, task = self._form(file, LARGE)
        show(f"multipart of 4 GB ({cost.speed:.0f} MB/s): growth of memory, MiB", cost.growth / 2**20, most=16)
        self._farm.client.delete(task)
        file.unlink()

    def downloads(self) -> None:
        """A ZIP of many frames, and one large file, beside nginx."""
        task = self._task(file_of(self._directory / "scene.bin", 1000))
        self._frames(task)
        whole = self._directory / "nginx" / "www" / "whole.bin"
        (self._directory / "big.bin").rename(whole)
        directory = self._task_directory(task)
        os.link(whole, directory / "big.bin")
        self._landed(task, {"big.bin": (SIZE, 0, digest_file(directory / "big.bin").digest)})
        theirs = [self._get(self._other, b"GET /whole.bin HTTP/1.1\r\n") for _ in range(RUNS)]
        path = f"GET /renderapi/v2/tasks/{task}/".encode()
        one = [self._get(self._ours, path + b"results/big.bin HTTP/1.1\r\n" + self._who) for _ in range(RUNS)]
        (directory / "big.bin").unlink()
        zips = [self._get(self._ours, path + b"download HTTP/1.1\r\n" + self._who) for _ in range(RUNS)]
        limit = _median(theirs, "speed")
        print(f"nginx, GET of 2 GB: {limit:.0f} MB/s, {_median(theirs, 'processor'):.2f} s/GB")
        for what, runs, floor in (("GET of 2 GB", one, 0.4), (f"ZIP of {FRAMES} files", zips, 0.4)):
            speed = _median(runs, "speed")
            show(f"{what}: {speed:.0f} MB/s, {_median(runs, 'processor'):.2f} s/GB, of nginx", speed / limit, floor)
        show(f"ZIP of {FRAMES} files: first byte after ms", _median(zips, "first_byte_s") * 1000, most=20)
        show(f"ZIP of {FRAMES} files: growth of memory, MiB", max(cost.growth for cost in zips) / 2**20, most=16)

    def pull(self, file: Path) -> None:
        """HPCServer's own client fetches a scene, from us and from nginx."""
        scene = self._directory / "scene.bin"
        scene.unlink()
        os.link(file, scene)
        _, task = self._form(scene, PULLED)
        self._attempt(task)
        speeds: dict[int, list[Cost]] = {self._ours.port: [], self._other.port: []}
        for _ in range(PULLS):
            for server in (self._ours, self._other):
                with self._target() as handle, server.measured(PULLED) as found:
                    transfers = Transfers(Identity(f"http://127.0.0.1:{server.port}", MACHINE, ""))
                    transfers.fetch(TransferSession(FIRST_ATTEMPT, TOKEN), "scene.bin", PULLED, handle, set())
                    transfers.close()
                speeds[server.port] += found
        ours, theirs = (_median(runs, "speed") for runs in speeds.values())
        show(f"machine fetches 1 GB: {ours:.0f} MB/s, of nginx with the same client", ours / theirs, 0.8)

    @contextlib.contextmanager
    def _target(self) -> Iterator[int]:
        """A new file: to empty the one before takes time."""
        path = self._directory / "fetched.bin"
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        try:
            yield handle
        finally:
            os.close(handle)
            path.unlink()

    def _put(self, file: Path, size: int) -> Cost:
        connection = self._farm.client.connection
        upload = connection.call("POST", "/uploads", data={"files": [{"name": "big.bin", "size": size}]}).json()[
            "upload_id"
        ]
        path = f"/renderapi/v2/uploads/{upload}"
        with self._ours.measured(size) as found:
            send(self._ours.port, f"PATCH {path}/files/0 HTTP/1.1\r\nUpload-Offset: 0\r\n".encode() + self._who, [file])
        connection.call("DELETE", f"/uploads/{upload}")
        return found[0]

    def _form(self, file: Path, size: int) -> tuple[Cost, int]:
        request = json.dumps({"engine": "nothing"}).encode()
        disposition = b'--%b\r\nContent-Disposition: form-data; name="' % BOUNDARY
        parts: list[bytes | Path] = [
            disposition + b'request"\r\n\r\n' + request + b"\r\n",
            disposition + b'file"; filename="scene.bin"\r\n\r\n',
            file,
            b"\r\n--%b--\r\n" % BOUNDARY,
        ]
        kind = b"Content-Type: multipart/form-data; boundary=%b\r\n" % BOUNDARY
        with self._ours.measured(size) as found:
            answer = send(self._ours.port, b"POST /renderapi/v2/tasks HTTP/1.1\r\n" + kind + self._who, parts)
        return found[0], int(json.loads(answer.body)["task_id"])  # type: ignore[attr-defined]

    def _task(self, file: Path) -> int:
        return int(self._farm.client.submit(file, engine="nothing")["task_id"])

    def _get(self, server: Server, head: bytes) -> Cost:
        first = 0.0
        with server.measured(SIZE) as found:
            size, first = receive(server.port, head)
        return Cost(found[0].seconds, found[0].processor_s, size, found[0].growth, first)

    def _frames(self, task: int) -> None:
        content = os.urandom(FRAME)
        names = [f"frame_{number:04}.exr" for number in range(FRAMES)]
        directory = self._task_directory(task)
        for name in names:
            (directory / name).write_bytes(content)
        digest = hashlib.blake2b(content, digest_size=32).hexdigest()
        self._landed(task, dict.fromkeys(names, (FRAME, zlib.crc32(content), digest)))

    def _task_directory(self, task: int) -> Path:
        with self._database() as connection:
            (path,) = connection.execute(
                "SELECT file_path FROM renders JOIN tasks USING (render_id) WHERE task_id = ?", (task,)
            ).fetchone()
        return Path(path).parent

    def _landed(self, task: int, files: dict[str, tuple[int, int, str]]) -> None:
        """As if a machine had made them."""
        rows = [(task, name, name, *about) for name, about in files.items()]
        os.sync()  # as landing leaves them
        with self._database() as connection:
            connection.executemany(
                "INSERT INTO results (task_id, chunk_id, attempt_id, name_hash, name, state, size, crc32, digest,"
                " landed_us) VALUES (?, 0, 0, ?, ?, 'landed', ?, ?, ?, 1)",
                rows,
            )

    def _attempt(self, task: int) -> None:
        """As if a machine were at work on it."""
        with self._database() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO machines (machine_id, ip_address, port, wish, secret_hash)"
                " VALUES (?, '', 0, 'disabled', 'bench')",
                (MACHINE,),
            )
            connection.execute(
                "INSERT INTO attempts (attempt_id, chunk_id, task_id, machine_id, token, state, assigned_us,"
                " peak_memory_mib, directory) SELECT ?, chunk_id, task_id, ?, ?, 'running', 1, 0, '' FROM chunks"
                " WHERE task_id = ?",
                (FIRST_ATTEMPT, MACHINE, TOKEN, task),
            )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._farm.data / "renderonline.sqlite")) as connection, connection:
            yield connection


def _chunks(file: Path) -> None:
    """What a client does before it asks what is missing."""
    begun = time.process_time()
    manifest_of(file)
    speed = SIZE / (time.process_time() - begun) / MB
    show("client, chunks and BLAKE3 of 2 GB: MB/s of one processor", speed, 800)


def _sums(file: Path) -> float:
    """What the sums of a file cost, in s/GB."""
    sums, spent = Sums(), 0.0
    with file.open("rb", buffering=0) as source:
        while piece := source.read(1 << 20):
            before = time.thread_time()
            sums.update(piece)
            spent += time.thread_time() - before
    return spent / SIZE * 1e9


def _median(runs: list[Cost], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in runs)
