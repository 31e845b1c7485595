"""`make bench-curves`: chunks a second by the number of waiting chunks and of machines, drawn into docs/images.

python -m bench.curves [DIRECTORY]
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.simulated import enroll, simulated
from bench.throughput import ENGINE, MACHINES, POLL_S, PROGRAM, SLOTS
from tests.support.farm import RealFarm

WAITING = (1_000, 10_000, 100_000, 1_000_000)
COUNTS = (1, 10, 100, 1_000)
MEASURED_S = 20.0
A_TASK = 100_000
"""Chunks; the most that a task may have."""


def by_waiting_chunks(waiting: int) -> float:
    """Chunks a second of four real machines in front of `waiting` chunks."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, RealFarm(Path(name)) as farm:
        farm.client.admin.add_engine(ENGINE)
        farm.client.admin.change_subscription(1, queue_limit=1000)
        for number in range(MACHINES):
            flags = ("--slots", str(SLOTS))
            environment = {"HPCSERVER_SANDBOX": "off"}
            farm.add_machine(f"m{number}", engines={"nothing": PROGRAM}, flags=flags, environment=environment)
        return _rate(farm, waiting)


def by_machines(count: int) -> float:
    """Chunks a second of `count` simulated machines, which end each chunk at once: RenderAPI's own share."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name, RealFarm(Path(name)) as farm:
        enroll(farm.data / "renderonline.sqlite", count)
        farm.client.admin.add_engine(ENGINE)
        farm.client.admin.change_subscription(1, queue_limit=1000)
        with simulated(farm.url, count, slots=SLOTS) as machines:
            machines.wait_for(count)
            return _rate(farm, A_TASK)


def _rate(farm: RealFarm, waiting: int) -> float:
    scene = farm.directory / "scene.txt"
    scene.write_text("nothing\n")
    tasks = []
    for left in range(waiting, 0, -A_TASK):
        size = min(left, A_TASK)
        tasks.append(farm.client.submit(scene, engine="nothing", frames=f"1-{size}", chunk_size=1)["task_id"])
    before, begun = _ended(farm, tasks), time.monotonic()
    while (ended := _ended(farm, tasks)) < waiting and time.monotonic() - begun < MEASURED_S:
        time.sleep(POLL_S)
    return (ended - before) / (time.monotonic() - begun)


def _ended(farm: RealFarm, tasks: Sequence[int]) -> int:
    return sum(farm.client.task(task)["chunks"]["succeeded"] for task in tasks)


def _draw(path: Path, label: str, points: Sequence[tuple[int, float]]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set(xscale="log", xlabel=label, ylabel="chunks a second", ylim=(0, 1.2 * max(rate for _, rate in points)))
    axes.grid(alpha=0.3)
    for x, y in points:
        axes.annotate(f"{y:,.0f}", (x, y), textcoords="offset points", xytext=(0, 8), ha="center")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure both curves and draw them."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images"
    curves: list[tuple[str, str, Sequence[int], Callable[[int], float]]] = [
        ("waiting-chunks.png", "waiting chunks (four machines with four slots)", WAITING, by_waiting_chunks),
        ("machines.png", "machines (simulated, four slots each)", COUNTS, by_machines),
    ]
    for name, label, values, measure in curves:
        points = []
        for value in values:
            points.append((value, measure(value)))
            print(f"{value:,} {label}: {points[-1][1]:,.0f} chunks a second", flush=True)
        _draw(directory / name, label, points)


if __name__ == "__main__":
    main()
