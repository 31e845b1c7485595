"""What grows with the number of tasks: lists, searches and sums of a user with 10,000 tasks, a restart with a million
waiting chunks, and why one of their tasks waits.

The rows are written into RenderAPI's SQLite file while it stands still: submitting them would take minutes. One client
asks one question at a time, so a figure is what a person waits on an idle farm; beside it is
RenderAPI's CPU.
"""

import contextlib
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.figures import show
from bench.start_latency import percentile
from bench.throughput import ENGINE
from tests.support.farm import RealFarm

TASKS = 10_000
WAITING = 1_000_000
A_TASK = 100_000
"""Chunks; the most that a task may have."""
ASKED = 200
SIZE = 1_000_000
EVERY = 500
"""Every so many of the ended tasks failed, and another one is called otherwise."""
QUESTIONS = {
    "GET /me": "/me",
    "list": "/tasks?limit=50",
    "failed": "/tasks?limit=50&status=failed",
    "nothing paused": "/tasks?limit=50&status=paused",
    "search, many found": "/tasks?limit=50&search=shot",
    "search, few found": "/tasks?limit=50&search=rare",
    "search of everybody's": "/tasks?limit=50&search=rare&all=1",
    "search, none found": "/tasks?limit=50&search=nothing%20of%20that%20kind",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """How long an answer took, in ms: median, 99th of a hundred, and RenderAPI's CPU."""

    p50: float
    p99: float
    cpu: float


def run() -> None:
    """Print the figures with their goals."""
    answers, restarted, reasons = measured()
    for name, asked in answers.items():
        print(f"{TASKS:,} tasks, {name}: p50 {asked.p50:.1f} ms, CPU {asked.cpu:.1f} ms", flush=True)
        show(f"{TASKS:,} tasks, {name}: p99 ms", asked.p99, most=10)
    print(f"restart with {WAITING:,} waiting chunks: CPU {restarted.cpu / 1000:.1f} s", flush=True)
    show(f"restart with {WAITING:,} waiting chunks: s", restarted.p50 / 1000, most=5)
    print(f"explain with {WAITING:,} waiting chunks: p50 {reasons.p50:.1f} ms, CPU {reasons.cpu:.1f} ms")
    show(f"explain with {WAITING:,} waiting chunks: p99 ms", reasons.p99, most=5)


def measured() -> tuple[dict[str, Asked], Asked, Asked]:
    """Each of `QUESTIONS` asked, a restart until RenderAPI answers, and the reasons of a task asked."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        with RealFarm(Path(name)) as farm:
            farm.client.admin.add_engine(ENGINE)
            farm.client.admin.change_subscription(1, queue_limit=1000)
        fill(farm.data / "renderonline.sqlite", TASKS, WAITING)
        begun = time.monotonic()
        with RealFarm(Path(name)) as farm:  # it answers when its memory is rebuilt
            taken = (time.monotonic() - begun) * 1000
            process = psutil.Process(farm.renderapi.process.pid)
            restarted = Asked(taken, taken, sum(process.cpu_times()[:2]) * 1000)
            ask = farm.client.connection.call
            answers = {
                question: _asked(process, lambda path=path: ask("GET", path).json())  # type: ignore[misc]
                for question, path in QUESTIONS.items()
            }
            return answers, restarted, _asked(process, lambda: farm.client.explain(TASKS + 1))


def fill(database: Path, count: int, waiting: int) -> None:
    """Write `count` ended tasks of the first user, each with a result, and queued ones with `waiting` chunks."""
    kept = (2 * count + -(-waiting // A_TASK)) * SIZE
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        _add(connection, "renders", [_render(number) for number in range(1, count + 1)])
        _add(connection, "tasks", [_task(number) | _ended(number) for number in range(1, count + 1)])
        _add(connection, "chunks", [_chunk(number, number) | _settled(number) for number in range(1, count + 1)])
        _add(connection, "results", [_result(number) for number in range(1, count + 1)])
        chunk, task = count + 1, count + 1
        while waiting:
            size = min(waiting, A_TASK)
            _add(connection, "renders", [_render(task)])
            _add(connection, "tasks", [_task(task) | {"chunks_waiting": size, "frames_total": size}])
            _add(connection, "queue", [{"task_id": task}])
            _add(connection, "chunks", [_chunk(chunk + place, task, place) for place in range(size)])
            chunk, task, waiting = chunk + size, task + 1, waiting - size
        connection.execute("UPDATE farm SET value = ? WHERE key = 'next_chunk_id'", (str(chunk),))
        connection.execute("UPDATE users SET kept_bytes = ?", (kept,))
        connection.commit()


def _add(connection: sqlite3.Connection, table: str, rows: list[dict[str, object]]) -> None:
    names, marks = ", ".join(f'"{name}"' for name in rows[0]), ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", [tuple(row.values()) for row in rows])


def _render(number: int) -> dict[str, object]:
    about = {"file_path": f"/nowhere/1/{number}/scene.txt", "file_size": SIZE, "arguments": "", "engine_id": 1}
    return {"render_id": number, "file_name": "scene.txt", **about, "values": "{}", "template": '["nothing"]'}


def _name(number: int) -> str:
    return f"{'rare' if number % EVERY == 1 else 'shot'} {number}"


def _task(number: int) -> dict[str, object]:
    about = {"is_running": 0, "is_success": 0, "queue_us": number, "frames": f"1-{A_TASK}", "chunk_size": 1}
    searched = f"{_name(number)}\nscene.txt"
    return {"task_id": number, "user_id": 1, "render_id": number, "name": _name(number), "searched": searched, **about}


def _ended(number: int) -> dict[str, object]:
    state = _settled(number)["state"]
    done = {"frames": "1", "frames_total": 1, "frames_done": int(state == "succeeded"), f"chunks_{state}": 1}
    return {**done, "is_success": int(state == "succeeded"), "end_us": number, "end_time": "2026-01-01 00:00:00.000000"}


def _settled(number: int) -> dict[str, object]:
    return {"state": "failed" if number % EVERY == 0 else "succeeded"}


def _chunk(chunk: int, task: int, place: int = 0) -> dict[str, object]:
    frame = {"first_frame": place + 1, "last_frame": place + 1, "frame_step": 1, "place": place}
    return {"chunk_id": chunk, "task_id": task, "kind": "render", "state": "waiting", **frame}


def _result(task: int) -> dict[str, object]:
    file = {"name": "a.png", "name_hash": f"{task:064d}", "size": SIZE, "crc32": 0, "digest": "", "landed_us": 1}
    return {"task_id": task, "chunk_id": task, "attempt_id": 0, "state": "landed", "frame": 1, **file}


def _asked(process: psutil.Process, ask: Callable[[], object]) -> Asked:
    ask()
    taken, before = [], sum(process.cpu_times()[:2])
    for _ in range(ASKED):
        begun = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - begun) * 1000)
    cpu = (sum(process.cpu_times()[:2]) - before) * 1000 / ASKED
    return Asked(statistics.median(taken), percentile(taken, 99), cpu)
