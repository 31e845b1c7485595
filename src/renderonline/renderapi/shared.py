"""What the parts of the dispatcher share: the database, memory, machines, and how to wake it, doubt it, wait for it."""

import asyncio
import gc
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import structlog

from renderonline.database.door import Connection, Database
from renderonline.database.queue_rows import QueuedTask, load_queue
from renderonline.database.task_rows import Moment
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.machines import AwakeClock
from renderonline.farm.settling import RetryPolicy
from renderonline.renderapi.connected_machines import Machine, Machines
from renderonline.renderapi.downloads import LandedFiles
from renderonline.renderapi.events import Announcer, Publisher
from renderonline.renderapi.memory import Clock, Memory
from renderonline.renderapi.orders import OURS, AttemptFiles, Orders
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.images import PreviewFiles

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

TICK_S: Final = 1.0
"""How often silence is looked at."""
REJECTED_S: Final = 60.0
"""How often the log names a machine whose messages are rejected."""


class Shared:
    """One for each dispatcher. `ready`: memory says what the database says; `newest`: an attempt id of this start."""

    def __init__(
        self,
        database: Database,
        events: Publisher,
        data_directory: Path,
        policy: RetryPolicy,
        pool_sandbox: Mapping[str, str],
        reserve_mib: int,
    ) -> None:
        self.database = database
        self.clock: Clock = time
        self.policy = policy
        self.awake = AwakeClock(self.clock.monotonic(), TICK_S)
        self.woken, self.in_doubt = asyncio.Event(), asyncio.Event()
        self.ready = False
        self.newest = 0
        self.announcer = Announcer(events)
        self.logs = AttemptLogs(data_directory / "logs", reserve_mib << 20)
        self.previews = PreviewFiles(data_directory / "previews")
        self.memory = Memory(self.wake, self.clock, policy)
        self.machines = Machines(self.announcer.machine, lambda: self.now().local, pool_sandbox)
        self.files = AttemptFiles(database, self._kept)
        self.orders = Orders(database)
        self.landed = LandedFiles(database)
        self._background: set[asyncio.Task[Any]] = set()

    def wake(self) -> None:
        self.woken.set()

    def gave_up(self) -> None:
        """A write was given up: memory is in doubt and is rebuilt (R3.2 Repeatable operations)."""
        self.ready = False
        self.in_doubt.set()

    def now(self) -> Moment:
        return Moment.at(self.clock.time())

    def heard(self, machine: Machine) -> None:
        """Something was read from a machine just now."""
        machine.heard = self.awake.now(self.clock.monotonic())

    def moved(self, machine_id: int) -> None:
        """Bytes of an attempt's files move to or from this machine just now. For any thread."""
        if (machine := self.machines.get(machine_id)) is not None:
            machine.moved = self.awake.now(self.clock.monotonic())

    def reject(self, machine: Machine, attempt_id: int) -> None:
        """A machine spoke for an attempt that is not its own, or that is gone: that has no effect
        (R14 Authority first). The log says so once in a while."""
        machine.rejected += 1
        now = self.clock.monotonic()
        if now >= machine.quiet_until:
            machine.quiet_until = now + REJECTED_S
            _log.warning("A machine speaks for attempts that are gone or not its own", machine_id=machine.machine_id,
                         name=machine.name, attempt=attempt_id, messages=machine.rejected)  # fmt: skip

    def is_ours(self, attempt_id: int) -> bool:
        """Whether a number on a v1 machine's wire is one of this farm's attempts (R7.1 Attempt id on the wire)."""
        return attempt_id in self.memory.attempts or abs(self.newest - attempt_id) < OURS

    async def reload(self, task_ids: Collection[int]) -> None:
        """Read tasks again: they were resumed, tried again, or added by hand. In the writer's turn, so that memory does
        not miss what is committed meanwhile."""
        queued = await self.database.write(partial(queue_of, task_ids=task_ids))
        for task_id in set(task_ids) - {task.task_id for task in queued}:
            self.memory.forget_task(task_id)
        for task in queued:
            self.memory.add_task(task)
        self.wake()

    async def guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Await this; an error must not end the dispatcher, but memory is in doubt afterwards."""
        try:
            await work
        except RenderOnlineError as error:
            _log.warning("The dispatcher could not do something", error=error.message)
            self.gave_up()
        except Exception:  # noqa: BLE001 (logged; the dispatcher goes on)
            _log.exception("The dispatcher failed")
            self.gave_up()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something in the background."""
        return self._kept(self.guarded(work))

    async def seen_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that goes on to its end also when the caller is canceled."""
        return await asyncio.shield(self._kept(work))

    def _kept(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def settled(self) -> None:
        """Wait for what goes on in the background."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)


def heavy(work: Callable[P, T]) -> Callable[P, T]:
    """The same, for threads in which hundreds of thousands of objects are made: Python would look for cycles among
    them again and again, and all threads stand still meanwhile."""

    @wraps(work)
    def done(*arguments: P.args, **named: P.kwargs) -> T:
        gc.disable()
        try:
            return work(*arguments, **named)
        finally:
            gc.enable()

    return done


@heavy
def queue_of(connection: Connection, task_ids: Collection[int] | None = None) -> list[QueuedTask]:
    """The queue, or these tasks of it, as memory takes them without much work."""
    return [task.sorted_out() for task in load_queue(connection, task_ids)]
