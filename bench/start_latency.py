"""Submit -> engine process started, on an idle farm: RenderAPI, SQLite and one HPCServer as real processes.

The clock starts before the client sends its request and stops when HPCServer has started the engine's process (the
time it reports, of the same computer's clock). Beside it, in the same run, stands the limit: starting the same
program directly.
"""

import contextlib
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from renderonline.sandbox import box, probing
from renderonline.sandbox.box import Box, Found, start
from tests.support.farm import RealFarm

SUBMISSIONS = 100
WARM_UP = 10
AFTER_A_PAUSE_S = 0.05
PAUSES_S = {"one after another": 0.015, "after a pause": AFTER_A_PAUSE_S}
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
        with starts() as measured:
            latencies = measured.ms(SUBMISSIONS, pause_s)
        direct = _direct()
        print(
            f"submit -> engine process started, idle farm, {len(latencies)} submissions {pattern}:"
            f" p50 {percentile(latencies, 50):.2f} ms, p99 {percentile(latencies, 99):.2f} ms"
            f" (starting the program directly: p50 {direct:.2f} ms, ratio {percentile(latencies, 50) / direct:.1f})"
        )


def run_boxes() -> None:
    """Print how long a program that does nothing takes from its start to its end: without a box, and in each kind that
    this computer makes."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        places = tuple(str(Path(name, part)) for part in ("task", "output", "home", "tmp"))
        for place in places:
            Path(place).mkdir()
        open_box = Box(places[:1], places[1:], (), places[3], devices=box.cards())
        alone = _ended(Found(), open_box)
        print(f"a program that does nothing, start to end, {SUBMISSIONS} times: p50 {alone:.2f} ms without a box")
        for kind in ("bwrap", "landlock"):
            with contextlib.suppress(probing.NoBox):
                found = probing.probe(kind)
                taken = _ended(found, open_box)
                print(f"  in {found.version}: p50 {taken:.2f} ms, {taken - alone:.2f} ms more (goal: at most 8 ms)")


def _ended(found: Found, box: Box) -> float:
    taken = []
    for _ in range(SUBMISSIONS):
        before = time.perf_counter()
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
        process = start(found, box, [PROGRAM], directory=box.write[0], **options)
        if process.wait() != 0:
            raise RuntimeError(f"{PROGRAM} ended with {process.returncode} in {found.version or 'no box'}")
        taken.append((time.perf_counter() - before) * 1000)
    return statistics.median(taken)


class Starts:
    """A farm with one machine, and an engine that does nothing."""

    def __init__(self, farm: RealFarm, scene: Path) -> None:
        self.farm = farm
        self._scene = scene

    def ms(self, count: int, pause_s: float) -> list[float]:
        """How long each of so many submissions took to start, one at a time."""
        sent: dict[int, float] = {}
        for _ in range(count):
            before = time.time()
            task = self.farm.client.submit(self._scene, engine="nothing")
            sent[task["task_id"]] = before
            time.sleep(pause_s)  # a fixed time: the pause is what the two patterns differ in
            self.farm.wait_for_status(task["task_id"], "succeeded", "failed")
        with contextlib.closing(sqlite3.connect(self.farm.data / "renderonline.sqlite")) as connection:
            rows = connection.execute("SELECT task_id, started_us FROM attempts WHERE task_id >= ?", (min(sent),))
            return [(started_us / 1e6 - sent[task_id]) * 1000 for task_id, started_us in rows if started_us is not None]


@contextlib.contextmanager
def starts() -> Iterator[Starts]:
    """A farm that has started a few engines already."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        scene = Path(name) / "scene.txt"
        scene.write_text("nothing\n")
        with RealFarm(Path(name)) as farm:
            farm.client.admin.add_engine(ENGINE)
            farm.client.admin.change_subscription(1, queue_limit=1000)
            farm.add_machine("bench", engines={"nothing": PROGRAM})
            measured = Starts(farm, scene)
            measured.ms(WARM_UP, AFTER_A_PAUSE_S)
            yield measured


def _direct() -> float:
    taken = []
    for _ in range(SUBMISSIONS):
        before = time.perf_counter()
        process = subprocess.Popen([PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        taken.append((time.perf_counter() - before) * 1000)
        process.wait()
    return statistics.median(taken)


def percentile(values: list[float], percent: int) -> float:
    """The value that so many of a hundred don't exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
