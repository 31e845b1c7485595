"""What this computer is and how it is doing; and what each engine's process tree uses. Blocking: for threads."""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from renderonline.hpcserver.process_table import mark, mark_of
from renderonline.protocol.link import Heartbeat

GPU_PROBE_S: Final = 5.0
MIB: Final = 1 << 20


class Usage(NamedTuple):
    """What a process tree uses: CPU seconds since it began, resident bytes now."""

    cpu_s: float
    memory_bytes: int


def computer() -> dict[str, Any]:
    """What does not change while HPCServer runs: fields of `Hello`."""
    return {
        "cpu_count": os.cpu_count() or 1,
        "memory_mib": psutil.virtual_memory().total // MIB,
        "gpus": _gpus(),
        "platform": f"{platform.system()} {platform.machine()}",
        "boot": _boot(),
    }


def _gpus() -> tuple[str, ...]:
    """The graphics cards that NVIDIA's own tool names; () without it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPU_PROBE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip()[:200] for line in done.stdout.decode(errors="replace").splitlines() if line.strip())[:64]


def _boot() -> str:
    """An id of this start of the computer."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def load(directory: Path, full: str = "") -> Heartbeat:
    """How this computer is doing; the disk is the one that holds `directory`."""
    try:
        disk_free = psutil.disk_usage(str(directory)).free // MIB
    except OSError:
        disk_free = 0
    return Heartbeat(psutil.getloadavg()[0], psutil.virtual_memory().available // MIB, disk_free, full)


def kernel_oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since the computer started; 0 where it can't say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return int(file.read().partition(b"\noom_kill ")[2].split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return 0


def usage(spawner: int, roots: Mapping[int, str], home: str) -> dict[str, Usage]:
    """What each engine's tree uses: `roots` maps the engines' process ids to their names.

    An orphan (its parent is the spawner again) belongs to the engine whose mark it carries.
    """
    totals = dict.fromkeys(roots.values(), Usage(0.0, 0))
    names = dict(roots)
    try:
        descendants = psutil.Process(spawner).children(recursive=True)  # parents come before their children
    except psutil.Error:
        return totals
    for process in descendants:
        try:
            marked = names.get(process.pid) or names.get(process.ppid())
            name = marked or mark_of(process.pid).removeprefix(mark(home)).rstrip("/")
            if name not in totals:
                continue
            names[process.pid] = name
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.Error:
            continue
        spent = times.user + times.system + times.children_user + times.children_system
        totals[name] = Usage(totals[name].cpu_s + spent, totals[name].memory_bytes + memory)
    return totals
