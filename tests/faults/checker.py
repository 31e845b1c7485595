"""What must hold after every fault, seen from outside: database, files and process table.

Nothing of `renderonline` is imported: whoever checks must not share the mistakes of what is checked. Each function
gives sentences that say what is wrong; none is good.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pymysql

from tests.faults.engine import MARK, picture

Row = tuple[Any, ...]
Check = Callable[[], list[str]]
STATES: Final = ("waiting", "assigned", "running", "succeeded", "failed", "canceled")
LIVE: Final = "('assigned', 'running')"
WATCH_S: Final = 0.05


class Unavailable(Exception):
    """The database does not answer."""


class Reader:
    """A connection to the farm's database that only reads. `url` as RenderAPI is given it."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._connection: Any = None

    def rows(self, query: str) -> list[Row]:
        """What a query gives. `Unavailable` when the database is down; the next call tries again."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            with closing(self._connection.cursor()) as cursor:
                cursor.execute(query)
                return list(cursor.fetchall())
        except (sqlite3.Error, pymysql.Error, OSError) as error:
            self.close()
            raise Unavailable(str(error)) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything that is read in here is of one moment."""
        mysql = self._url.scheme == "mysql"
        self.rows("START TRANSACTION WITH CONSISTENT SNAPSHOT" if mysql else "BEGIN")
        try:
            yield
        finally:
            if self._connection is not None:
                self.rows("COMMIT")

    def close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error, pymysql.Error, OSError):
                self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        if self._url.scheme == "sqlite":
            path = self._url.path.removeprefix("/")
            connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA query_only=1")
            return connection
        socket = parse_qs(self._url.query)["unix_socket"][0]
        name = self._url.path.removeprefix("/")
        limits = {"connect_timeout": 2, "read_timeout": 10, "write_timeout": 10}
        return pymysql.connect(unix_socket=socket, user="root", database=name, autocommit=True, **limits)


def leases(reader: Reader) -> list[str]:
    """No chunk has two live attempts; it has one exactly while it is assigned or running."""
    states = dict(reader.rows(f"SELECT chunk_id, state FROM chunks WHERE state IN {LIVE}"))
    live = Counter(row[0] for row in reader.rows(f"SELECT chunk_id FROM attempts WHERE state IN {LIVE}"))
    wrong = [chunk for chunk in states.keys() | live.keys() if live[chunk] != int(chunk in states)]
    return [f"Chunk {one} is {states.get(one, 'not live')} and has {live[one]} live attempts." for one in wrong]


def limits(reader: Reader) -> list[str]:
    """Limits of tasks and of users."""
    queries = {
        "task {0} runs {1} chunks, its limit is {2}": f"""
            SELECT t.task_id, COUNT(*), MAX(t.running_limit) FROM attempts a JOIN tasks t ON t.task_id = a.task_id
            WHERE a.state IN {LIVE} AND t.running_limit > 0
            GROUP BY t.task_id HAVING COUNT(*) > MAX(t.running_limit)""",
        "user {0} runs {1} chunks, the limit is {2}": f"""
            SELECT u.user_id, COUNT(*), MAX(s.running_limit) FROM attempts a JOIN tasks t ON t.task_id = a.task_id
            JOIN users u ON u.user_id = t.user_id JOIN subscriptions s ON s.subscription_id = u.subscription_id
            WHERE a.state IN {LIVE} AND s.running_limit > 0
            GROUP BY u.user_id HAVING COUNT(*) > MAX(s.running_limit)""",
        "user {0} has {1} tasks in the queue, the limit is {2}": """
            SELECT u.user_id, COUNT(*), MAX(s.queue_limit) FROM queue q JOIN tasks t ON t.task_id = q.task_id
            JOIN users u ON u.user_id = t.user_id JOIN subscriptions s ON s.subscription_id = u.subscription_id
            GROUP BY u.user_id HAVING COUNT(*) > MAX(s.queue_limit)""",
    }
    return [f"Limit: {words.format(*row)}." for words, query in queries.items() for row in reader.rows(query)]


def tasks(reader: Reader) -> list[str]:
    """Counters, v1's columns and the queue row say what the chunks say; no queue row outlives its task."""
    counts: dict[int, Counter[str]] = {}
    for task_id, state, count in reader.rows("SELECT task_id, state, COUNT(*) FROM chunks GROUP BY task_id, state"):
        counts.setdefault(task_id, Counter())[state] = int(count)
    queued = Counter(row[0] for row in reader.rows("SELECT task_id FROM queue"))
    landed = Counter(
        row[0] for row in reader.rows("SELECT task_id FROM results WHERE state = 'landed' AND frame IS NOT NULL")
    )
    columns = ", ".join(f"chunks_{state}" for state in STATES)
    query = f"SELECT task_id, canceled, is_running, is_success, end_us, frames_done, {columns} FROM tasks"
    wrong, known = [], set()
    for task_id, canceled, is_running, is_success, end_us, frames_done, *stored in reader.rows(query):
        known.add(task_id)
        real = counts.get(task_id, Counter())
        if (counted := [real[state] for state in STATES]) != [int(value) for value in stored]:
            wrong.append(f"Task {task_id} counts {stored}, its chunks are {counted}.")
        settled = not (real["waiting"] or real["assigned"] or real["running"])
        ended = bool(canceled) or settled
        if queued[task_id] != int(not ended):
            wrong.append(f"Task {task_id} has {queued[task_id]} queue rows and has {'' if ended else 'not '}ended.")
        if (end_us is not None) is not ended:
            wrong.append(f"Task {task_id} has end {end_us} and has {'' if ended else 'not '}ended.")
        succeeded = settled and not canceled and not real["failed"] and not real["canceled"]
        running = not ended and bool(real["assigned"] or real["running"])
        if (bool(is_running), bool(is_success)) != (running, succeeded):
            wrong.append(f"Task {task_id}: is_running {is_running}, is_success {is_success}; chunks {dict(real)}.")
        if frames_done != landed[task_id]:
            wrong.append(f"Task {task_id} has {frames_done} frames done, {landed[task_id]} have landed.")
    wrong += [f"A queue row names task {task_id}, which is gone." for task_id in queued if task_id not in known]
    wrong += [f"Chunks of task {task_id} are there, which is gone." for task_id in counts if task_id not in known]
    return wrong


@dataclass
class Results:
    """Every landed frame has the right bytes, once. Keeps in mind which were found right."""

    reader: Reader
    seen: set[int] = field(default_factory=set)
    keys: dict[int, str] = field(default_factory=dict)

    def check(self, *, everything: bool = False) -> list[str]:
        """Look at what was not found right before, or at all."""
        if everything:
            self.seen.clear()
        wrong = []
        twice = "SELECT task_id, frame, COUNT(*) FROM results WHERE state <> 'stale' GROUP BY task_id, frame"
        for task_id, frame, count in self.reader.rows(f"{twice} HAVING COUNT(*) > 1"):
            wrong.append(f"Frame {frame} of task {task_id} has {count} results.")
        query = """
            SELECT r.result_id, r.task_id, r.folder, r.name, r.frame, r.digest, r.size, n.file_path FROM results r
            JOIN tasks t ON t.task_id = r.task_id JOIN renders n ON n.render_id = t.render_id
            WHERE r.state = 'landed'"""
        for result_id, task_id, folder, name, frame, digest, size, scene in self.reader.rows(query):
            if result_id not in self.seen:
                found = self._look(task_id, name, frame, (digest, size), Path(scene), folder)
                wrong += found
                if not found:
                    self.seen.add(result_id)
        return [sentence for sentence in wrong if not self._deleted(sentence)]

    def _deleted(self, sentence: str) -> bool:
        """Whether the task that a sentence is about was deleted meanwhile."""
        found = re.search(r"task (\d+)", sentence)
        return found is not None and not self.reader.rows(f"SELECT 1 FROM tasks WHERE task_id = {found[1]}")

    def _look(self, task_id: int, name: str, frame: int, said: tuple[str, int], scene: Path, folder: str) -> list[str]:
        what = f"Frame {frame} of task {task_id}"
        try:
            key = self.keys.get(task_id) or str(json.loads(scene.read_text())["key"])
            self.keys[task_id] = key
            data = (scene.parent / folder / name).read_bytes()
        except OSError as error:
            return [f"{what} can't be read: {error}."]
        wrong = []
        if name != f"frame_{frame:04d}.png":
            wrong.append(f"{what} is called {name}.")
        if (hashlib.blake2b(data, digest_size=32).hexdigest(), len(data)) != said:
            wrong.append(f"{what} is not what its row says: digest or size.")
        if data != picture(key, frame):
            wrong.append(f"{what} has wrong bytes.")
        return wrong


def complete(reader: Reader, frames: Mapping[str, int], free: Collection[str] = ()) -> list[str]:
    """At rest: every submitted file (`frames`: name -> number of frames) is exactly one task, which succeeded with
    every frame. Those in `free` were canceled or deleted: they need not have succeeded, or may be gone."""
    query = "SELECT t.task_id, n.file_name, t.is_success FROM tasks t JOIN renders n ON n.render_id = t.render_id"
    landed: dict[int, set[int]] = {}
    for task_id, frame in reader.rows("SELECT task_id, frame FROM results WHERE state = 'landed'"):
        landed.setdefault(task_id, set()).add(frame)
    found: Counter[str] = Counter()
    wrong = []
    for task_id, name, is_success in reader.rows(query):
        found[name] += 1
        if name in free:
            continue
        if not is_success:
            wrong.append(f"Task {task_id} ({name}) has not succeeded.")
        elif landed.get(task_id, set()) != set(range(1, frames.get(name, 0) + 1)):
            wrong.append(f"Task {task_id} ({name}) has frames {sorted(landed.get(task_id, set()))}.")
    odd = [name for name in frames if found[name] != 1 and (name not in free or found[name])]
    wrong += [f"{name} was submitted once and is {found[name]} tasks." for name in odd]
    wrong += [f"Nobody submitted {name}." for name in found if name not in frames]
    live = reader.rows(f"SELECT attempt_id FROM attempts WHERE state IN {LIVE}")
    landing = reader.rows("SELECT result_id FROM results WHERE state = 'landing'")
    return [
        *wrong,
        *(f"At rest attempt {row[0]} lives." for row in live),
        *(f"Result {row[0]} lands." for row in landing),
    ]


def marked() -> dict[int, str]:
    """Every process that carries the mark of an attempt (`<machine>/<attempt>/`); zombies are none."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            state = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[0]
            environment = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        mark = next((one for one in environment if one.startswith(MARK.encode() + b"=")), None)
        if mark is not None and state not in (b"Z", b"X"):
            found[int(entry)] = mark.partition(b"=")[2].decode()
    return found


def processes(reader: Reader, marks: Collection[str], slots: int) -> list[str]:
    """No process outlives its attempt, and no machine runs more attempts than it has slots. `marks`: what the marks of
    this farm's machines begin with."""
    ours = {pid: mark for pid, mark in marked().items() if mark.startswith(tuple(marks))}
    live = {row[0] for row in reader.rows(f"SELECT attempt_id FROM attempts WHERE state IN {LIVE}")}
    outliving = {pid: mark for pid, mark in ours.items() if int(mark.split("/")[1]) not in live}
    crowded = {mark: sorted({one for one in ours.values() if one.startswith(mark)}) for mark in marks}
    return [
        *(f"Process {pid} outlives its attempt {mark}." for pid, mark in outliving.items()),
        *(f"A machine of {slots} slots runs {runs}." for runs in crowded.values() if len(runs) > slots),
    ]


def leftovers(reader: Reader, files: Path, homes: Collection[Path]) -> list[str]:
    """At rest nothing is left in temporary places, and every task's directory holds its scene and its results only."""
    places = [files / ".attempts", files / ".incoming", *(home / "scratch" for home in homes)]
    wrong = [f"{path} is left." for place in places if place.exists() for path in place.iterdir()]
    wanted: dict[Path, set[str]] = {}
    query = "SELECT t.task_id, n.file_path, n.file_name FROM tasks t JOIN renders n ON n.render_id = t.render_id"
    directories = {task_id: Path(path).parent for task_id, path, _ in reader.rows(query)}
    for _, path, _name in reader.rows(query):
        wanted.setdefault(Path(path).parent, set()).add(Path(path).name)
    for task_id, folder, name in reader.rows("SELECT task_id, folder, name FROM results"):
        if task_id in directories:
            wanted[directories[task_id]].add(f"{folder}/{name}" if folder else name)
    there = {
        task: {path.relative_to(task).as_posix() for path in task.rglob("*") if not path.is_dir()}
        for user in files.iterdir()
        if not user.name.startswith(".")
        for task in user.iterdir()
    }
    for directory in wanted.keys() | there.keys():
        extra = there.get(directory, set()) - wanted.get(directory, set())
        lacking = wanted.get(directory, set()) - there.get(directory, set())
        wrong += [f"{directory / name} belongs to nobody." for name in extra]
        wrong += [f"{directory / name} is missing." for name in lacking]
        if directory not in wanted and not extra:
            wrong.append(f"{directory} belongs to nobody.")
    return wrong


def outboxes(homes: Collection[Path]) -> list[str]:
    """When the farm has stopped at rest, no machine holds an attempt or an unacknowledged report."""
    wrong = []
    for home in homes:
        with closing(sqlite3.connect(home / "outbox.db")) as connection:
            for table in ("attempts", "reports"):
                (count,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
                if count:
                    wrong.append(f"{home / 'outbox.db'} still has {count} {table}.")
    return wrong


def lasting(check: Check, timeout_s: float) -> list[str]:
    """What a check says again and again for so long; it comes back as soon as nothing is left of what it first said."""
    deadline = time.monotonic() + timeout_s
    wrong = check()
    while wrong and time.monotonic() < deadline:
        time.sleep(0.1)
        again = set(check())
        wrong = [sentence for sentence in wrong if sentence in again]
    return wrong


class Watch:
    """Looks at leases and limits all the time, in a thread: what was exceeded for a moment counts too. `ahead`: how
    often a machine had more attempts than its `slots`."""

    def __init__(self, url: str, slots: int) -> None:
        self._reader = Reader(url)
        self._crowded = f"SELECT machine_id FROM attempts WHERE state IN {LIVE} GROUP BY 1 HAVING COUNT(*) > {slots}"
        self._wrong: list[str] = []
        self._stop = threading.Event()
        self.looks = self.ahead = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            with suppress(Unavailable), self._reader.snapshot():
                self._wrong += [*leases(self._reader), *limits(self._reader)]
                self.ahead += bool(self._reader.rows(self._crowded))
                self.looks += 1
        self._reader.close()

    def check(self) -> list[str]:
        """What was seen so far."""
        return sorted(set(self._wrong))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
