"""What this computer is and how it is doing; and what each engine's process tree uses.

Everything here blocks a little (it reads the process table); the callers use threads.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from renderonline.hpcserver.process_table import mark, mark_of

GPU_PROBE_S: Final = 5.0
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Computer:
    """What does not change while HPCServer runs."""

    cpu_count: int
    memory_mib: int
    gpus: tuple[str, ...]
    platform: str
    boot: str


@dataclass(frozen=True, slots=True)
class Load:
    """How the computer is doing: load average of one minute, free memory and disk in MiB."""

    load: float
    memory_free_mib: int
    disk_free_mib: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree uses: CPU seconds since it began, resident bytes now."""

    cpu_s: float
    memory_bytes: int


def computer() -> Computer:
    """Look at this computer once."""
    return Computer(
        cpu_count=os.cpu_count() or 1,
        memory_mib=int(psutil.virtual_memory().total // MIB),
        gpus=_gpus(),
        platform=f"{platform.system()} {platform.machine()}",
        boot=_boot(),
    )


def _gpus() -> tuple[str, ...]:
    """The graphics cards that NVIDIA's own tool names; () without it."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GPU_PROBE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip()[:200] for line in done.stdout.decode(errors="replace").splitlines() if line.strip())[:64]


def _boot() -> str:
    """An id of this start of the computer."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def load(directory: Path) -> Load:
    """The computer's present state; the disk is the one that holds `directory`."""
    try:
        disk_free = int(psutil.disk_usage(str(directory)).free // MIB)
    except OSError:
        disk_free = 0
    return Load(psutil.getloadavg()[0], int(psutil.virtual_memory().available // MIB), disk_free)


def kernel_oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since the computer started; 0 where it can't say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            words = file.read().split()
        return int(words[words.index(b"oom_kill") + 1])
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
            name = names.get(process.pid) or names.get(process.ppid()) or _marked_name(process.pid, home)
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


def _marked_name(pid: int, home: str) -> str:
    return mark_of(pid).removeprefix(mark(home)).rstrip("/")
