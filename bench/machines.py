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
from renderonline.protocol.link import HEARTBEAT_S
from renderonline.serving.admission import most_connections, raise_descriptors
from tests.support.certificates import self_signed
from tests.support.farm import RealFarm

COUNTS = (1, 1000)
WITH_TLS = 200
VERY_MANY = 10_000
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
    print(f"{WITH_TLS} machines with TLS: {with_tls():.0f} KiB of RenderAPI each", flush=True)


def run_very_many() -> None:
    """Print what as many machines as this system's descriptors allow cost, up to `VERY_MANY`."""
    raise_descriptors()
    count = min(VERY_MANY, most_connections() * 15 // 16)
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, RealFarm(Path(name)) as farm:
        enroll(farm.data / "renderonline.sqlite", count)
        none = idle(farm)
        with simulated(farm.url, count, slots=4) as machines:
            begun = time.time()
            print(f"{count} machines linked in {machines.wait_for(count) - begun:.1f} s", flush=True)
            found = idle(farm)
            kib, beats_s = (found.memory - none.memory) / count / 1024, count / HEARTBEAT_S
            print(f"{count} machines: {beats_s:.0f} heartbeats/s in {found.percent:.1f} % of a processor,"
                  f" {kib:.0f} KiB each", flush=True)  # fmt: skip


def with_tls() -> float:
    """KiB of RenderAPI for a machine that is linked by TLS."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        files, _ = self_signed(Path(name))
        flags = ("--certificate", str(files.fullchain_pem_path), "--key", str(files.priv_pem_path))
        with RealFarm(Path(name), flags=flags) as farm:
            enroll(farm.data / "renderonline.sqlite", WITH_TLS)
            none = memory_of(farm)
            with simulated(farm.url, WITH_TLS, slots=4) as machines:
                machines.wait_for(WITH_TLS)
                return (memory_of(farm) - none) / WITH_TLS / 1024


def process_of(farm: RealFarm) -> psutil.Process:
    """RenderAPI."""
    return psutil.Process(json.loads((farm.data / "renderapi.json").read_text())["pid"])


def memory_of(farm: RealFarm) -> int:
    """Bytes of RenderAPI in memory, after a while."""
    time.sleep(SETTLED_S)  # a fixed time: what is measured is a time in which nothing happens
    return int(process_of(farm).memory_info().rss)


def idle(farm: RealFarm) -> Idle:
    """Measure RenderAPI for half a minute."""
    process = process_of(farm)
    time.sleep(SETTLED_S)  # fixed times: what is measured is a time in which nothing happens
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
