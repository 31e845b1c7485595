"""Submit -> engine process started, on an idle farm: RenderAPI, SQLite and one HPCServer as real processes.

The clock starts before the client sends its request and stops when HPCServer has started the engine's process (the
time it reports, of the same computer's clock). Beside it, in the same run, stands the limit: starting the same
program directly.
"""

import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.support.farm import RealFarm

SUBMISSIONS = 100
WARM_UP = 10
PAUSES_S = {"one after another": 0.015, "after a pause": 0.05}
"""What lies between a submission and the first question about it: asking at once would disturb what is measured."""
PROGRAM = shutil.which("true") or "/bin/true"
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".txt"]
template = "nothing $RENDERONLINE:@uploaded_file"
"""


def run() -> None:
    """Print p50 and p99 of 100 submissions, one at a time: with a pause of 15 ms after each, then with one of 50."""
    for pattern, pause_s in PAUSES_S.items():
        latencies = _measured(pause_s)
        direct = _direct()
        print(
            f"submit -> engine process started, idle farm, {len(latencies)} submissions {pattern}:"
            f" p50 {_percentile(latencies, 50):.2f} ms, p99 {_percentile(latencies, 99):.2f} ms"
            f" (starting the program directly: p50 {direct:.2f} ms, ratio {_percentile(latencies, 50) / direct:.1f})"
        )


def p99(beside: Callable[[RealFarm], AbstractContextManager[None]] = lambda _farm: nullcontext()) -> float:
    """The slowest but one of 100 submissions, in ms, while `beside` does something with the same farm."""
    return _percentile(_measured(PAUSES_S["after a pause"], beside), 99)


def _measured(
    pause_s: float, beside: Callable[[RealFarm], AbstractContextManager[None]] = lambda _farm: nullcontext()
) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        directory = Path(name)
        scene = directory / "scene.txt"
        scene.write_text("nothing\n")
        with RealFarm(directory) as farm:
            farm.client.admin.add_engine(ENGINE)
            farm.client.admin.change_subscription(1, queue_limit=1000)
            farm.add_machine("bench", engines={"nothing": PROGRAM})
            sent: dict[int, float] = {}
            with beside(farm):
                for _ in range(WARM_UP + SUBMISSIONS):
                    before = time.time()
                    task = farm.client.submit(scene, engine="nothing")
                    sent[task["task_id"]] = before
                    time.sleep(pause_s)  # a fixed time: the pause is what the two patterns differ in
                    farm.wait_for_status(task["task_id"], "succeeded", "failed")
        return _latencies(directory / "renderapi" / "renderonline.sqlite", sent)[WARM_UP:]


def _latencies(database: Path, sent: dict[int, float]) -> list[float]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT task_id, started_us FROM attempts ORDER BY task_id").fetchall()
    return [(started_us / 1e6 - sent[task_id]) * 1000 for task_id, started_us in rows if started_us is not None]


def _direct() -> float:
    taken = []
    for _ in range(SUBMISSIONS):
        before = time.perf_counter()
        process = subprocess.Popen([PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        taken.append((time.perf_counter() - before) * 1000)
        process.wait()
    return statistics.median(taken)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
