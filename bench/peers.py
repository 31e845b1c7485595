"""HyperQueue, the peer that is measured beside the farm: fast, in memory, without users (`hyperqueue` on PyPI).

    python -m bench.peers chunks WORKERS SLOTS COUNT PROGRAM     chunks a second
    python -m bench.peers starts COUNT PAUSE                     milliseconds to each start

Each run is a process of its own: in one that has run thousands of tasks HyperQueue is slower. Its client asks once in
a second whether a job is done, so the end is the start of a task that depends on all others.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

from bench.clock import Clock

SETTLED_S = 1.5
"""A worker takes no task in its first second."""


def hyperqueue_chunks(workers: int, slots: int, count: int, program: str) -> float:
    """Chunks a second of one job of `count` tasks."""
    return sum(_apart("chunks", workers, slots, count, program))


def hyperqueue_starts(count: int, pause_s: float) -> list[float]:
    """Milliseconds from each submission to the start of its process, one after another on an idle worker."""
    return _apart("starts", count, pause_s)


def _apart(*words: object) -> list[float]:
    """The figures are the last line: HyperQueue itself prints a table first."""
    command = [sys.executable, "-m", "bench.peers", *map(str, words)]
    said = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, timeout=300).stdout
    return [float(value) for value in said.splitlines()[-1].split()]


def _cluster(directory: Path, workers: int, slots: int) -> LocalCluster:
    cluster = LocalCluster(server_dir=str(directory))
    for _ in range(workers):
        cluster.start_worker(WorkerConfig(cores=slots))
    time.sleep(SETTLED_S)  # a fixed time: nothing says when a worker is ready
    return cluster


def _chunks(directory: Path, clock: Clock, workers: int, slots: int, count: int, program: str) -> None:
    with _cluster(directory, workers, slots) as cluster:
        job = Job(default_workdir=str(directory))
        tasks = [job.program([program], stdout=None, stderr=None) for _ in range(count)]
        job.program([clock.program], deps=tasks, stdout=None, stderr=None)
        begun = time.time()
        cluster.client().submit(job)
        print(count / (clock.read() - begun))


def _starts(directory: Path, clock: Clock, count: int, pause_s: float) -> None:
    with _cluster(directory, 1, 4) as cluster:
        client = cluster.client()
        taken = []
        for _ in range(count):
            job = Job(default_workdir=str(directory))
            job.program([clock.program], stdout=None, stderr=None)
            begun = time.time()
            client.submit(job)
            taken.append((clock.read() - begun) * 1000)
            time.sleep(pause_s)  # a fixed time: the pause is what is asked for
        print(*taken)


def main() -> None:
    """Measure, and print the figures."""
    kind, *values = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, Clock(Path(name)) as clock:
        if kind == "chunks":
            _chunks(Path(name), clock, int(values[0]), int(values[1]), int(values[2]), values[3])
        else:
            _starts(Path(name), clock, int(values[0]), float(values[1]))


if __name__ == "__main__":
    main()
