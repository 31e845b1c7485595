"""Submit -> engine process started while uploads of 2 GB run one after the other, beside the same farm when it is idle.

Both states take turns in one run, so that what else the machine does weighs on both.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.figures import MB, file_of, show
from bench.servers import Server, send
from bench.start_latency import percentile, starts
from renderonline.rnoclient.sdk.client import Client
from tests.support.farm import RealFarm

SIZE = 2000 * MB
ROUNDS = 5
SUBMISSIONS = 50
"""In each state of each round."""


def run() -> None:
    """Print the ratio of both states' p99."""
    idle: list[float] = []
    busy: list[float] = []
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, starts() as measured:
        uploads = _Uploads(measured.farm, file_of(Path(name) / "big.bin", SIZE))
        for _ in range(ROUNDS):
            idle += measured.ms(SUBMISSIONS)
            with uploads.running():
                busy += measured.ms(SUBMISSIONS)
        for state, found in (("idle", idle), (f"while {uploads.done} uploads of 2 GB run", busy)):
            p50, p90, p99 = (percentile(found, percent) for percent in (50, 90, 99))
            print(
                f"submit -> started, {len(found)} submissions, {state}: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f} ms"
            )
    show(
        "submit -> started, p99 while uploads run, of the idle p99", percentile(busy, 99) / percentile(idle, 99), most=3
    )


class _Uploads:
    def __init__(self, farm: RealFarm, file: Path) -> None:
        self.done = 0
        self._farm = farm
        self._file = file
        self._server = Server(int(farm.url.rpartition(":")[2]), farm.renderapi.process.pid)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """One upload after the other inside; behind it the server is idle again, and so is the disk."""
        over, begun = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._upload, args=(begun, over))
        thread.start()
        begun.wait()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._server.settle()

    def _upload(self, begun: threading.Event, over: threading.Event) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # it stands for another computer
        login = self._farm.login
        who = f"email: {login.email}\r\ntoken: {login.token}\r\n".encode()
        sent = []
        with Client(login) as client:
            while not over.is_set():
                announced = {"files": [{"name": "big.bin", "size": SIZE}]}
                sent.append(client.connection.call("POST", "/uploads", data=announced).json()["upload_id"])
                head = f"PATCH /renderapi/v2/uploads/{sent[-1]}/files/0 HTTP/1.1\r\nUpload-Offset: 0\r\n"
                begun.set()
                send(self._server.port, head.encode() + who, [self._file])
            for upload_id in sent:
                client.connection.call("DELETE", f"/uploads/{upload_id}")
        self.done += len(sent)
