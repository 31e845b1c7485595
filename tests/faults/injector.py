"""Faults at seeded instants, aimed at what was hit least: a process while a chunk is in a state.

The engines say when they begin, save and are done, the database says the rest; just before a strike the state is read
once more, and only what was seen counts as a hit.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.checker import LIVE, Reader, Unavailable
from tests.faults.farm import SILENCE_S, FaultFarm, Kept, Machine
from tests.faults.report import Report

PROCESSES: Final = ("renderapi", "hpcserver", "spawner", "engine", "mariadb")
STATES: Final = ("waiting", "assigned", "running", "landing", "settling")
AIM_S: Final = 6.0
PROCESS_SHARE: Final = 0.75
"""So many of the faults strike a process; the others network, disk and clock."""
JUMPS_S: Final = (-86_400, -3_600, -45, 45, 3_600, 86_400 * 400)


@dataclass(frozen=True)
class Aim:
    """An attempt whose chunk is in the wanted state, and where it is (None: a chunk waits, nobody has it)."""

    attempt: int
    machine: Machine


class Injector:
    """Does one fault after the other; `inject` comes back when everything runs again, if perhaps not yet linked."""

    def __init__(self, farm: FaultFarm, seed: str, report: Report) -> None:
        self._farm = farm
        self._chance = random.Random(seed)
        self._report = report
        self._reader = Reader(farm.url)
        self._processes = PROCESSES if farm.mariadb is not None else PROCESSES[:-1]
        names = {
            str(name): machine_id for machine_id, name in self._reader.rows("SELECT machine_id, name FROM machines")
        }
        self._machines = {names[machine.name]: machine for machine in farm.machines}

    def close(self) -> None:
        self._reader.close()

    def inject(self) -> None:
        """One fault, sometimes a second one into it, and whatever brings back what it took away."""
        if self._chance.random() < PROCESS_SHARE:
            self._strike(*self._least_hit())
        else:
            self._chance.choice((self._network, self._network, self._disk, self._clock))()

    @property
    def least(self) -> int:
        """How often the least hit pair of process and state was hit."""
        return min(self._report.hits[process, state] for process in self._processes for state in STATES)

    def _least_hit(self) -> tuple[str, str]:
        pairs = [(process, state) for process in self._processes for state in STATES]
        least = min(self._report.hits[pair] for pair in pairs)
        return self._chance.choice([pair for pair in pairs if self._report.hits[pair] <= least])

    # -- processes

    def _strike(self, process: str, state: str) -> None:
        delay_s = self._chance.uniform(0.05, 0.15) if state == "assigned" else 0.0
        for machine in self._farm.machines:
            machine.proxy.delay_s = delay_s
        try:
            aim = self._take_aim(process, state)
            pid = self._pid_of(process, aim)
            if aim is None or not pid:
                self._report.missed += 1
                return
            stop = self._chance.random() < 0.3
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if stop else signal.SIGKILL)
                self._report.hit(process, state, "SIGSTOP" if stop else "SIGKILL")
        finally:
            for machine in self._farm.machines:
                machine.proxy.heal()
        if self._chance.random() < 0.15:
            self._second()
        if stop:
            long = self._chance.random() < 0.15
            time.sleep(SILENCE_S + 1.5 if long else self._chance.uniform(0.1, 2.0))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        else:
            self._bring_back(process, aim.machine)

    def _second(self) -> None:
        """Another program is killed before the first one is back."""
        time.sleep(self._chance.uniform(0.0, 0.5))
        program = self._chance.choice([self._farm.renderapi, *(machine.program for machine in self._farm.machines)])
        if program.is_running:
            os.kill(program.pid, signal.SIGKILL)
            program.reap()
            self._report.other("a second SIGKILL at the same time")

    def _bring_back(self, process: str, machine: Machine) -> None:
        """After a SIGKILL: what was hit is gone for a while, and is started again."""
        programs = {"renderapi": self._farm.renderapi, "hpcserver": machine.program}
        if process in programs:
            programs[process].reap()
        elif process == "mariadb":
            assert self._farm.mariadb is not None
            self._farm.mariadb.kill()
        time.sleep(self._chance.uniform(0.0, 0.7))
        if process == "mariadb":
            assert self._farm.mariadb is not None
            self._farm.mariadb.start()
        self._farm.start_all()

    def _take_aim(self, process: str, state: str) -> Aim | None:
        """Wait until some chunk is in the state, and can be hit by way of this process."""
        deadline = time.monotonic() + AIM_S
        look: Callable[[str], Aim | None] = getattr(self, f"_{state}")
        while time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                if (aim := look(process)) is not None:
                    return aim
        return None

    def _waiting(self, process: str) -> Aim | None:
        time.sleep(self._chance.uniform(0.0, 0.3))
        waiting = "SELECT c.task_id FROM chunks c JOIN tasks t ON t.task_id = c.task_id WHERE c.state = 'waiting'"
        return self._live(process, f"AND task_id IN ({waiting} AND t.paused = 0 AND t.canceled = 0)")

    def _assigned(self, process: str) -> Aim | None:
        time.sleep(0.001)
        return self._live(process, "AND state = 'assigned'")

    def _running(self, process: str) -> Aim | None:
        time.sleep(self._chance.uniform(0.0, 0.3))
        return self._live(process, "AND state = 'running'")

    def _landing(self, process: str) -> Aim | None:
        said = self._farm.listener.next("saved", 1.0)
        if said is None:
            return None
        time.sleep(self._chance.uniform(0.0, 0.015))
        landed = "SELECT 1 FROM results r WHERE r.attempt_id = {0} AND r.frame = {1} AND r.state = 'landed'"
        if self._reader.rows(landed.format(said.attempt, said.frame)):
            return None
        return self._live(process, f"AND attempt_id = {said.attempt}")

    def _settling(self, process: str) -> Aim | None:
        said = self._farm.listener.next("done", 1.0)
        if said is None:
            return None
        time.sleep(self._chance.uniform(0.0, 0.025))
        return self._live(process, f"AND attempt_id = {said.attempt}")

    def _live(self, process: str, condition: str) -> Aim | None:
        """One of the live attempts of which this is true; for an engine one whose process is there."""
        rows = self._reader.rows(f"SELECT attempt_id, machine_id FROM attempts WHERE state IN {LIVE} {condition}")
        aims = [Aim(attempt, self._machines[machine_id]) for attempt, machine_id in rows]
        if process == "engine":
            aims = [aim for aim in aims if self._pid_of("engine", aim)]
        return self._chance.choice(aims) if aims else None

    def _pid_of(self, process: str, aim: Aim | None) -> int:
        """The process to hit; 0 when it is not there."""
        if aim is None:
            return 0
        if process == "renderapi":
            return self._farm.renderapi.pid
        if process == "mariadb":
            assert self._farm.mariadb is not None
            return self._farm.mariadb.pid
        if process == "hpcserver":
            return aim.machine.program.pid
        if process == "spawner":
            return next((pid for pid in _children(aim.machine.program.pid) if b"hpcserver.spawner" in _words(pid)), 0)
        pid = self._farm.listener.pids.get(aim.attempt, 0)
        return pid if pid and f"/{aim.attempt}/".encode() in _environment(pid) else 0

    # -- everything else

    def _network(self) -> None:
        """Something between RenderAPI and a machine, or the client."""
        proxies = [machine.proxy for machine in self._farm.machines]
        proxy = self._chance.choice([*proxies, self._farm.client_proxy])
        kind = self._chance.choice(("cut", "refused", "slow", "stalled", "half-open"))
        self._report.other(f"network {kind}")
        if kind == "cut":
            proxy.cut()
        elif kind == "refused":
            proxy.refusing = True
            proxy.cut()
        elif kind == "slow":
            proxy.delay_s = self._chance.uniform(0.1, 0.5)
        elif kind == "stalled":
            proxy.stalled = True
        else:
            proxy.swallowing = True
        long = self._chance.random() < 0.2
        time.sleep(SILENCE_S + 1.5 if long else self._chance.uniform(0.3, 2.0))
        proxy.heal()

    def _disk(self) -> None:
        """No file of a program may be written for a while."""
        programs = [machine.program for machine in self._farm.machines]
        program: Kept = self._chance.choice([self._farm.renderapi, *programs])
        where = "RenderAPI" if program is self._farm.renderapi else "HPCServer"
        self._report.other(f"disk of {where} full")
        program.fill_disk(full=True)
        time.sleep(self._chance.uniform(0.3, 2.0))
        program.fill_disk(full=False)

    def _clock(self) -> None:
        """A wall clock jumps, and stays there."""
        programs = [machine.program for machine in self._farm.machines]
        program = self._chance.choice([self._farm.renderapi, *programs])
        where = "RenderAPI" if program is self._farm.renderapi else "HPCServer"
        self._report.other(f"clock of {where} jumps")
        program.set_clock(self._chance.choice(JUMPS_S))
        time.sleep(self._chance.uniform(0.1, 1.0))


def _children(pid: int) -> tuple[int, ...]:
    with contextlib.suppress(OSError):
        return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return ()


def _words(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""
