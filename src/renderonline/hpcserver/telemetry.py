"""What this computer is, how busy it is, what each engine's process tree uses, and whether somebody else uses it.

All of it blocks: call it in threads.
"""

import glob
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from renderonline.farm.machines import CardLoad
from renderonline.hpcserver.process_table import key_of
from renderonline.hpcserver.processes import ProcessUsage
from renderonline.protocol.link import Heartbeat

MIB: Final = 1 << 20
MEASURE_S: Final = 2.0
"""The load of other programs is measured over at least so long."""


def computer() -> dict[str, Any]:
    """What does not change while HPCServer runs: fields of `Hello`."""
    return {
        "cpu_count": os.cpu_count() or 1,
        "memory_mib": psutil.virtual_memory().total // MIB,
        "platform": f"{platform.system()} {platform.machine()}",
        "boot": _boot(),
    }


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def load(directory: Path, full: str = "", cards: tuple[CardLoad, ...] = ()) -> Heartbeat:
    """How this computer is doing; the disk is the one that holds `directory`."""
    try:
        disk_free = psutil.disk_usage(str(directory)).free // MIB
    except OSError:
        disk_free = 0
    return Heartbeat(psutil.getloadavg()[0], psutil.virtual_memory().available // MIB, disk_free, full, cards)


def usage(spawner: int, roots: Mapping[int, str], keys: Mapping[str, str]) -> dict[str, ProcessUsage]:
    """What each engine's tree uses: `roots` maps the engines' process ids to their names, `keys` their keys. An
    orphan (its parent is the spawner again) belongs to the engine whose key it carries."""
    totals = dict.fromkeys(roots.values(), ProcessUsage(0.0, 0))
    names = dict(roots)
    try:
        descendants = psutil.Process(spawner).children(recursive=True)  # parents come before their children
    except psutil.Error:
        return totals
    for process in descendants:
        try:
            marked = names.get(process.pid) or names.get(process.ppid())
            name = marked or keys.get(key_of(process.pid), "")
            if name not in totals:
                continue
            names[process.pid] = name
            with process.oneshot():
                times, memory, threads = process.cpu_times(), process.memory_info().rss, process.num_threads()
        except psutil.Error:
            continue
        spent = times.user + times.system + times.children_user + times.children_system
        before = totals[name]
        totals[name] = ProcessUsage(before.cpu_s + spent, before.memory_bytes + memory, before.threads + threads)
    return totals


def last_input() -> float | None:
    """When a keyboard, a mouse or a terminal was last used (seconds since 1970); None where nobody can tell."""
    newest = 0.0
    patterns = ("/dev/input/event*", "/dev/tty[0-9]*", "/dev/pts/[0-9]*") if sys.platform == "linux" else ()
    for path in (path for pattern in patterns for path in glob.glob(pattern)):
        with suppress(OSError):
            found = os.stat(path)
            # A terminal's atime is its last input; its mtime is what programs print.
            newest = max(newest, found.st_atime, found.st_mtime if path.startswith("/dev/input") else 0.0)
    return newest or None


def cpu_of_others() -> float:
    """CPU seconds that this computer has spent on all programs but HPCServer and what it started."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with suppress(psutil.Error):
            spent = process.cpu_times()
            busy -= spent.user + spent.system + spent.children_user + spent.children_system
    return float(busy)


class OwnersUse:
    """Whether people or other programs use this computer. `idle_minutes`: take work after nobody has used it for this
    long; `max_load`: take work while others keep at most this many processors busy; 0: without regard to them."""

    def __init__(self, idle_minutes: float, max_load: float) -> None:
        self._idle_minutes, self._max_load = idle_minutes, max_load
        self._load, self._measured = 0.0, (time.monotonic(), cpu_of_others() if max_load else 0.0)

    def why(self) -> str:
        """Why no work is taken now, in plain words; "" when it is. Blocks a few milliseconds."""
        used_at = last_input() if self._idle_minutes else None
        if used_at is not None and 0 <= time.time() - used_at < self._idle_minutes * 60:
            return f"somebody is at the desk; it takes work when nobody was for {self._idle_minutes:g} minutes"
        passed = time.monotonic() - self._measured[0]
        if self._max_load and passed >= MEASURE_S:
            before, self._measured = self._measured, (time.monotonic(), cpu_of_others())
            self._load = (self._measured[1] - before[1]) / passed
        if self._load > self._max_load:
            return f"other programs keep {self._load:.1f} of its processors busy, more than {self._max_load:g}"
        return ""
