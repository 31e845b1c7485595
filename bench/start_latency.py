"""Submit -> engine process started, on an idle farm: RenderAPI, SQLite and one HPCServer as real processes.

The clock starts before the client sends its request and is read inside the started process (`bench.clock`). In the
same run: HyperQueue with one idle worker, which keeps nothing on disk, and starting the same program directly.
"""

import contextlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.clock import Clock
from bench.figures import show
from bench.peers import hyperqueue_starts
from bench.throughput import BOXES
from renderonline.sandbox.box import Box, Found, NoBox, cards, probe, start
from tests.support.farm import RealFarm

SUBMISSIONS = 200
WARM_UP = 10
PAUSE_S = 0.05
"""Between a start and the next submission: the farm settles, as it does between two people's submissions."""
PROGRAM = shutil.which("true") or "/bin/true"
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".txt"]
template = "nothing $RENDERONLINE:@uploaded_file"
"""


def run() -> None:
    """Print p50 and p99 of 200 submissions, one at a time, and those of HyperQueue."""
    with starts() as measured:
        ours = measured.ms(SUBMISSIONS)
        direct = measured.direct_ms(SUBMISSIONS)
    theirs = hyperqueue_starts(SUBMISSIONS, PAUSE_S)
    print(f"started directly, {spread(direct)}; HyperQueue (in memory), {spread(theirs)}; the farm, {spread(ours)}")
    show("submit -> process started, idle farm: p50 ms", percentile(ours, 50), most=4.5)
    show("submit -> process started, idle farm: p99 ms", percentile(ours, 99), most=10)
    show("submit -> process started: p50 of HyperQueue's", percentile(ours, 50) / percentile(theirs, 50), most=1)
    for kind in BOXES[1:]:
        with starts(sandbox=kind) as measured:
            print(f"  the farm, Sandbox = {kind}, {spread(measured.ms(SUBMISSIONS))}", flush=True)


def spread(values: list[float]) -> str:
    """The median and the slowest of a hundred."""
    return f"p50 {percentile(values, 50):.2f} ms, p99 {percentile(values, 99):.2f} ms"


def run_boxes() -> None:
    """Print how long a program that does nothing takes from its start to its end: without a box, and in each kind that
    this computer makes."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        places = tuple(str(Path(name, part)) for part in ("task", "output", "home", "tmp"))
        for place in places:
            Path(place).mkdir()
        open_box = Box(places[:1], places[1:], (), places[3], devices=cards())
        alone = _ended(Found(), open_box)
        print(f"a program that does nothing, start to end, {SUBMISSIONS} times: p50 {alone:.2f} ms without a box")
        for kind in ("bwrap", "landlock"):
            with contextlib.suppress(NoBox):
                found = probe(kind)
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
    """A farm with one machine, and an engine that says when it was started."""

    def __init__(self, farm: RealFarm, scene: Path, clock: Clock) -> None:
        self.farm = farm
        self._scene = scene
        self._clock = clock

    def ms(self, count: int, pause_s: float = PAUSE_S) -> list[float]:
        """Submit `count` times, one at a time; how long each took to start."""
        taken = []
        for _ in range(count):
            begun = time.time()
            self.farm.client.submit(self._scene, engine="nothing")
            taken.append((self._clock.read() - begun) * 1000)
            time.sleep(pause_s)  # a fixed time: the pause is what is asked for
        return taken

    def direct_ms(self, count: int) -> list[float]:
        """The same program, started by this one."""
        taken = []
        for _ in range(count):
            begun = time.time()
            process = subprocess.Popen([self._clock.program], stdin=subprocess.DEVNULL)
            taken.append((self._clock.read() - begun) * 1000)
            process.wait()
        return taken


@contextlib.contextmanager
def starts(*, sandbox: str = "off") -> Iterator[Starts]:
    """A farm that has started a few engines already."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, Clock(Path(name)) as clock:
        scene = Path(name) / "scene.txt"
        scene.write_text("nothing\n")
        with RealFarm(Path(name)) as farm:
            farm.client.admin.add_engine(ENGINE)
            farm.client.admin.change_subscription(1, queue_limit=1000)
            farm.add_machine("bench", engines={"nothing": clock.program}, environment={"HPCSERVER_SANDBOX": sandbox})
            measured = Starts(farm, scene, clock)
            measured.ms(WARM_UP)
            yield measured


def percentile(values: list[float], percent: int) -> float:
    """The value that `percent` of a hundred don't exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
