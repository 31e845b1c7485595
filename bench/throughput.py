"""No-op chunks through the whole farm: RenderAPI and four HPCServers, all real, each chunk a process.

Every lease, start and end is on disk on both sides before it counts. In the same run, one after another and several
times: the bare reference (`bench.reference`), HyperQueue (`bench.peers`, which keeps nothing on disk), and the limit,
how many of these processes a second one program starts and waits for.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench.figures import show
from bench.peers import hyperqueue_chunks
from tests.support.farm import RealFarm, wait_until
from tests.support.mariadb import PrivateMariaDB

MACHINES = 4
SLOTS = 4
"""Of each machine: while one chunk's end travels, the next one runs."""
CHUNKS = 2000
WARM_UP = 100
ROUNDS = 3
LONGEST_S = 60.0
DIRECT = 500
POLL_S = 0.25
"""Asking is work for the farm too."""
BOXES = ("off", "landlock", "bwrap")
PROGRAM = shutil.which("true") or "/bin/true"
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".txt"]
template = "nothing $RENDERONLINE:@uploaded_file $RENDERONLINE:first $RENDERONLINE:last"
split = "frames"

[[arguments]]
id = "first"
type = "natural"
default = "1"

[[arguments]]
id = "last"
type = "natural"
default = "1"

[frames]
first = "first"
last = "last"
"""


@dataclass(frozen=True)
class Run:
    """One run: chunks a second, and what a chunk cost each kind of process, in microseconds of a processor."""

    chunks_s: float
    cost_us: dict[str, float]

    @property
    def total_us(self) -> float:
        """Of all processes, the engine's own too."""
        return sum(self.cost_us.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {value:,.0f}" for kind, value in self.cost_us.items())
        return f"{self.chunks_s:,.0f}/s, {self.total_us:,.0f} us of CPU a chunk ({parts})"


def run() -> None:
    """Print chunks a second, of one task with thousands of them."""
    farm, reference, hyperqueue = list[Run](), list[Run](), list[float]()
    for _ in range(ROUNDS):
        farm.append(_shown("farm, SQLite", farm_run()))
        reference.append(_shown("bare reference", reference_run()))
        hyperqueue.append(hyperqueue_chunks(MACHINES, SLOTS, CHUNKS, PROGRAM))
        print(f"  HyperQueue: {hyperqueue[-1]:,.0f}/s (in memory)", flush=True)
    print(f"processes started directly by one program: {_direct(processes=False):,.0f}/s one after another with Popen,")
    print(f"  {_direct(processes=True):,.0f}/s with posix_spawn and {MACHINES * SLOTS} at a time")
    median = _median(farm)
    show("no-op chunks, SQLite: of the bare reference", median / _median(reference), 0.6)
    show("no-op chunks, SQLite: of HyperQueue", median / statistics.median(hyperqueue), 1)
    show("no-op chunks: CPU a chunk, us", statistics.median(run.total_us for run in farm), most=3000)
    for box in BOXES[1:]:
        _shown(f"farm, SQLite, Sandbox = {box}", farm_run(sandbox=box))
    with PrivateMariaDB(durable=True) as server:
        runs = [_shown("farm, MariaDB", farm_run(migrated(server), server.pid)) for _ in range(ROUNDS)]
    show("no-op chunks, MariaDB: of SQLite", _median(runs) / median, 0.5)


def _shown(what: str, run: Run) -> Run:
    print(f"  {what}: {run}", flush=True)
    return run


def _median(runs: Iterable[Run]) -> float:
    return statistics.median(run.chunks_s for run in runs)


def farm_run(connection: str | None = None, database: int | None = None, *, sandbox: str = "off") -> Run:
    """One run of the farm on a fresh SQLite, or on the database of `connection` (its server's process: `database`)."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        scene = Path(name) / "scene.txt"
        scene.write_text("nothing\n")
        with RealFarm(Path(name), connection=connection) as farm:
            farm.client.admin.add_engine(ENGINE)
            flags = ("--slots", str(SLOTS))
            environment = {"HPCSERVER_SANDBOX": sandbox}
            machines = [
                farm.add_machine(f"m{number}", engines={"nothing": PROGRAM}, flags=flags, environment=environment)
                for number in range(MACHINES)
            ]
            _finished(farm, scene, WARM_UP)
            measured = Measured(
                {
                    "RenderAPI": [json.loads((farm.data / "renderapi.json").read_text())["pid"]],
                    "HPCServer": [machine.process.pid for machine in machines],
                    "spawner": [child.pid for machine in machines for child in children(machine.process.pid)],
                    **({"mariadbd": [database]} if database else {}),
                },
                engines="spawner",
            )
            with measured:
                seconds = _finished(farm, scene, CHUNKS)
            return Run(CHUNKS / seconds, measured.us(CHUNKS))


def _finished(farm: RealFarm, scene: Path, chunks: int) -> float:
    """Submit, and wait until every chunk has ended; seconds from one to the other, by the task's own end."""
    begun = time.time()
    task = farm.client.submit(scene, engine="nothing", frames=f"1-{chunks}", chunk_size=1)["task_id"]
    while (shown := farm.client.task(task))["status"] not in {"succeeded", "failed", "cancelled"}:
        if time.time() - begun > LONGEST_S:
            raise RuntimeError(f"After {LONGEST_S:g} s only {shown['chunks']} of {chunks} chunks have ended")
        time.sleep(POLL_S)
    if shown["status"] != "succeeded":
        raise RuntimeError(f"The task ended as {shown['status']}: {shown['reason']}")
    return datetime.fromisoformat(str(shown["ended"])).timestamp() - begun


def migrated(server: PrivateMariaDB) -> str:
    """The connection of a new database that has the farm's schema."""
    connection = server.create_database()
    command = [sys.executable, "-m", "renderonline.cli.main", "db", "migrate", "--connection", connection]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return connection


def reference_run() -> Run:
    """One run of `bench.reference`: as many nodes with as many slots, the same program."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, contextlib.ExitStack() as down:
        server = down.enter_context(_program("server", name))
        port = Path(name, "port")
        wait_until(port.exists, "port of the reference")
        url = f"http://127.0.0.1:{port.read_text()}"
        words = ("node", port.read_text(), str(SLOTS), PROGRAM)
        nodes = [down.enter_context(_program(*words)) for _ in range(MACHINES)]
        wait_until(lambda: _asked(url)["free"] == MACHINES * SLOTS, "link of every node")
        _reference_finished(url, WARM_UP)
        measured = Measured({"server": [server.pid], "nodes": [node.pid for node in nodes]}, engines="nodes")
        with measured:
            seconds = _reference_finished(url, CHUNKS)
        return Run(CHUNKS / seconds, measured.us(CHUNKS))


def _reference_finished(url: str, chunks: int) -> float:
    before, begun = _asked(url)["ended"], time.time()
    urllib.request.urlopen(f"{url}/submit", json.dumps({"chunks": chunks}).encode()).close()
    while (state := _asked(url))["ended"] < before + chunks:
        if time.time() - begun > LONGEST_S:
            raise RuntimeError(f"After {LONGEST_S:g} s only {state['ended'] - before} of {chunks} chunks have ended")
        time.sleep(POLL_S)
    return float(state["last_end"]) - begun


def _asked(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/state") as answer:
        return dict(json.load(answer))


@contextlib.contextmanager
def _program(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "bench.reference", *words], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def children(pid: int) -> list[psutil.Process]:
    """The processes that a process has started and not waited for."""
    return psutil.Process(pid).children()


class Measured:
    """The processor time of processes by kind, while the context lasts; of those they started as `engine`."""

    def __init__(self, kinds: dict[str, list[int]], *, engines: str) -> None:
        """`engines` is the kind whose children are the engines."""
        self._kinds = {kind: [psutil.Process(pid) for pid in pids] for kind, pids in kinds.items()}
        self._engines = engines

    def __enter__(self) -> None:
        self._before = self._seconds()

    def __exit__(self, *_: object) -> None:
        self._after = self._seconds()

    def us(self, chunks: int) -> dict[str, float]:
        """Microseconds a chunk."""
        return {kind: (after - self._before[kind]) / chunks * 1e6 for kind, after in self._after.items()}

    def _seconds(self) -> dict[str, float]:
        taken = {kind: sum(_own(process) for process in known) for kind, known in self._kinds.items()}
        times = [process.cpu_times() for process in self._kinds[self._engines]]
        return taken | {"engine": sum(time.children_user + time.children_system for time in times)}


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _direct(*, processes: bool) -> float:
    """Started directly: as Python's users do, one after another, or the cheapest way, several at a time."""
    begun = time.monotonic()
    if processes:
        running = set[int]()
        for _ in range(DIRECT):
            if len(running) == MACHINES * SLOTS:
                running.remove(os.wait()[0])
            running.add(os.posix_spawn(PROGRAM, [PROGRAM], os.environ))
        for pid in running:
            os.waitpid(pid, 0)
    else:
        for _ in range(DIRECT):
            subprocess.run([PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return DIRECT / (time.monotonic() - begun)
