"""Whether somebody works at this computer: then it takes nothing new (settings `idle_minutes`, `max_load`)."""

import glob
import os
import sys
import time
from contextlib import suppress

import psutil

MEASURE_S = 2.0
"""The load is measured over at least so long."""


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


class Desk:
    """Says whether work would disturb somebody. `idle_minutes`: take work when nobody has used the computer for so
    long; `max_load`: while others keep at most so many processors busy; 0: whatever they do."""

    def __init__(self, idle_minutes: float, max_load: float) -> None:
        self._idle_minutes, self._max_load = idle_minutes, max_load
        self._load, self._measured = 0.0, (time.monotonic(), cpu_of_others() if max_load else 0.0)

    def why(self) -> str:
        """Why nothing should be taken now, in plain words; "" when nobody would mind. Blocks a few milliseconds."""
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
