"""What RenderAPI costs by the number of its machines, which do nothing: processor, memory, and the time until all are
linked again after it was away. The machines are simulated (`bench.simulated`), RenderAPI is real, on SQLite."""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.figures import show
from bench.simulated import Simulation, enroll, simulated
from renderonline.cli.local_farm import stop_together
from tests.support.farm import RealFarm

COUNTS = (1, 1000)
MEASURED_S = 30.0
SETTLED_S = 10.0
AWAY_S = 20.0


@dataclass(frozen=True)
class Idle:
    """An idle RenderAPI: per cent of a processor, and its memory in bytes."""

    percent: float
    memory: int


def run() -> None:
    """Print processor and memory with no machine and with many, and how fast they come back."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, RealFarm(Path(name)) as farm:
        enroll(farm.data / "renderonline.sqlite", max(COUNTS))
        none = idle(farm)
        show("RenderAPI with nothing to do: per cent of a processor", none.percent, most=0.1)
        for count in COUNTS:
            with simulated(farm.url, count, slots=4) as machines:
                begun = time.time()
                print(f"{count} machines linked in {machines.wait_for(count) - begun:.1f} s", flush=True)
                found = idle(farm)
                kib = (found.memory - none.memory) / count / 1024
                print(f"{count} machines: {found.percent:.2f} % of a processor, {kib:.0f} KiB each", flush=True)
                if count == max(COUNTS):
                    show(f"{count} machines that beat: per cent of a processor", found.percent, most=2)
                    show(f"{count} machines without TLS: KiB of RenderAPI each", kib, most=40)
                    again = back(farm, machines, count)
                    show(f"{count} machines linked again after {AWAY_S:g} s without RenderAPI: s", again, most=5)


def idle(farm: RealFarm) -> Idle:
    """Measure RenderAPI for half a minute."""
    process = psutil.Process(json.loads((farm.data / "renderapi.json").read_text())["pid"])
    time.sleep(SETTLED_S)  # a fixed time: what is measured is a time in which nothing happens
    before = process.cpu_times()
    time.sleep(MEASURED_S)
    after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    return Idle(seconds / MEASURED_S * 100, process.memory_info().rss)


def back(farm: RealFarm, machines: Simulation, count: int) -> float:
    """Stop RenderAPI for a while; seconds from when it listens again to the last machine's welcome."""
    port = int(farm.url.rpartition(":")[2])
    farm.supervisor.forget(farm.renderapi)
    stop_together([farm.renderapi])
    time.sleep(AWAY_S)  # a fixed time: it is what the figure is about
    farm.start_renderapi(port)
    listening = time.time()
    return machines.wait_for(count, since=listening) - listening
