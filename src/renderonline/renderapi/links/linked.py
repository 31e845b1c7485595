"""Linked machines: each dials us with one WebSocket (R5, `docs/reference/link.md`).

The first message is `hello`: who it is, what it can do, what it still holds. We answer what goes on, and send again
what never arrived.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Final

import structlog
from starlette.websockets import WebSocket

from renderonline.database import Database
from renderonline.database.machines import MachineRow, change_machine, get_machine, hello, secret_matches
from renderonline.farm.errors import InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.machines import ALTERNATION_S, Instances, Wish
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol.codec import decode, encode
from renderonline.protocol.link import PROTOCOL, Heartbeat, Hello, Progress, Refused, Report, Welcome
from renderonline.renderapi.announcing import Announcer
from renderonline.renderapi.attempt_files import AttemptFiles
from renderonline.renderapi.clock import Clock, moment
from renderonline.renderapi.links.connection import Connection, clean_progress, receive
from renderonline.renderapi.machines import Machine, Machines
from renderonline.renderapi.memory import Attempt, Memory
from renderonline.renderapi.reports import Reports
from renderonline.storage.logs import AttemptLogs

_log = structlog.get_logger(__name__)

HELLO_S: Final = 10.0
_CLOSING_S: Final = 30.0
_MOST_HELD: Final = 10_000
_MOST_OFFERS: Final = 256
_LONGEST_TEXT: Final = 500
_LONGEST_INSTANCE: Final = 64
_TWO_PROGRAMS: Final = "Two programs use this machine's secret; give each its own join code, then enable it again."


class _Refusal(Exception):
    def __init__(self, code: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.answer = Refused(code, message, final)


class LinkedMachines:
    """The links of all linked machines; `endpoint` serves one. `gave_up`: a write failed, memory is to be rebuilt."""

    def __init__(
        self,
        database: Database,
        *,
        memory: Memory,
        machines: Machines,
        reports: Reports,
        files: AttemptFiles,
        logs: AttemptLogs,
        announcer: Announcer,
        clock: Clock,
        heard: Callable[[Machine], None],
        wake: Callable[[], None],
        gave_up: Callable[[], None],
    ) -> None:
        self._database = database
        self._memory = memory
        self._machines = machines
        self._reports = reports
        self._files = files
        self._logs = logs
        self._announcer = announcer
        self._clock = clock
        self._heard = heard
        self._wake = wake
        self._gave_up = gave_up
        self._instances: dict[int, Instances] = defaultdict(Instances)
        self._doors: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._open: dict[int, Connection] = {}
        self._stopping = False

    async def endpoint(self, socket: WebSocket) -> None:
        """Serve one machine until its link ends."""
        await socket.accept()
        try:
            async with asyncio.timeout(HELLO_S):
                text = await receive(socket)
            if text is None:
                return
            connection = await self._greet(socket, text)
        except TimeoutError:
            await _refuse(socket, Refused("no_hello", f"No hello within {HELLO_S:.0f} seconds."))
        except _Refusal as refusal:
            _log.warning("A machine was refused", code=refusal.answer.code, reason=refusal.answer.message)
            await _refuse(socket, refusal.answer)
        except InvalidRequest as error:
            await _refuse(socket, Refused("invalid_hello", error.message))
        except RenderOnlineError as error:
            await _refuse(socket, Refused(error.reason_code, error.message))
        else:
            try:
                await connection.run()
            finally:
                self._detach(connection)

    async def close(self) -> None:
        """End all links; RenderAPI stops."""
        self._stopping = True
        connections = list(self._open.values())
        for connection in connections:
            connection.close("RenderAPI stops")
        if connections:
            await asyncio.wait([asyncio.create_task(one.ended.wait()) for one in connections], timeout=_CLOSING_S)

    # -- hello

    async def _greet(self, socket: WebSocket, text: str) -> Connection:
        message = decode(text, (Hello,))
        assert isinstance(message, Hello)
        row = await self._authenticated(message)
        _check_protocol(message)
        _check_sizes(message)
        async with self._doors[row.machine_id]:
            await self._check_alone(row, message)
            earlier = self._open.get(row.machine_id)
            if earlier is not None:
                earlier.close("the machine dialled again")
                await asyncio.wait_for(earlier.ended.wait(), _CLOSING_S)
            return await self._attach(socket, message)

    async def _authenticated(self, message: Hello) -> MachineRow:
        wrong = _Refusal(
            "not_authenticated", "This machine is not known here. Join it again with a new code.", final=True
        )
        try:
            row = await self._database.read(partial(get_machine, machine_id=message.machine_id))
        except NotFound:
            raise wrong from None
        if not secret_matches(row, message.secret):
            raise wrong
        if self._stopping:
            raise _Refusal("stopping", "RenderAPI stops.")
        return row

    async def _check_alone(self, row: MachineRow, message: Hello) -> None:
        """Two programs with one secret would close each other's links for ever (R5.4)."""
        instances = self._instances[row.machine_id]
        now = self._clock.monotonic()
        latest = instances.latest
        another = latest is not None and latest.instance != message.instance and now - latest.at <= ALTERNATION_S
        if row.wish == Wish.DISABLED and (another or self._linked_as_other(row.machine_id, message.instance)):
            raise _Refusal("disabled", row.wish_reason or "This machine is disabled.")
        if not instances.hello(message.instance, now):
            return
        changes = {"wish": Wish.DISABLED.value, "wish_reason": _TWO_PROGRAMS}
        changed = await self._database.write(partial(change_machine, machine_id=row.machine_id, changes=changes))
        machine = self._machines.get(row.machine_id)
        if machine is not None:
            machine.row = changed
            self._machines.note(machine)
        raise _Refusal("disabled", _TWO_PROGRAMS)

    def _linked_as_other(self, machine_id: int, instance: str) -> bool:
        connection = self._open.get(machine_id)
        return connection is not None and connection.instance != instance

    async def _attach(self, socket: WebSocket, message: Hello) -> Connection:
        machine_id = message.machine_id
        facts = {key: value for key, value in asdict(message).items() if key not in ("secret", "held", "instance")}
        row = await self._database.write(
            partial(
                hello,
                machine_id=machine_id,
                instance=message.instance,
                facts=facts,
                now_us=moment(self._clock).us,
            )
        )
        held = [one.attempt for one in message.held]
        offsets = await asyncio.to_thread(lambda: {number: self._logs.size(number) for number in held})
        machine = self._machines.get(machine_id) or self._machines.add(row)
        machine.row, machine.facts, machine.full = row, facts, message.full
        connection = Connection(socket, machine, message.instance, self, self._logs, last_seq=row.last_seq)
        kept, again, lost = self._reconcile(message)
        welcome = Welcome(
            min(message.protocol, PROTOCOL),
            tuple(attempt.attempt_id for attempt in kept),
            row.last_seq,
            {str(attempt.attempt_id): offsets[attempt.attempt_id] for attempt in kept},
        )
        connection.send(welcome)
        for number in held:
            connection.knows(number)
        machine.offer({offer.name: offer.version for offer in message.engines}, message.slots)
        machine.occupied = {one.attempt_id for one in self._memory.attempts_on(machine_id)} - {
            one.attempt_id for one in lost
        }
        machine.link = self._open[machine_id] = connection
        self._heard(machine)
        self._machines.note(machine)
        self._files.remove_unheld(machine_id, {*held, *machine.occupied})
        _log.info("A machine is linked", machine_id=machine_id, name=machine.name, kept=len(kept), lost=len(lost))
        try:
            await self._send_again(connection, again)
            await self._reports.end(
                {one.attempt_id: Ending(Outcome.LOST, reason="its machine does not know it any more") for one in lost}
            )
        except BaseException:
            connection.ended.set()
            self._detach(connection)
            raise
        self._wake()
        return connection

    def _reconcile(self, message: Hello) -> tuple[Sequence[Attempt], Sequence[Attempt], Sequence[Attempt]]:
        """Our live attempts against what the machine names: those that go on, those that never arrived, and those
        that it lost."""
        named = {one.attempt: one.token for one in message.held}
        kept, again, lost = [], [], []
        for attempt in self._memory.attempts_on(message.machine_id):
            if named.get(attempt.attempt_id) == attempt.token:
                kept.append(attempt)
            elif attempt.running:
                lost.append(attempt)
            elif attempt.leased:
                again.append(attempt)
        return kept, again, lost

    async def _send_again(self, connection: Connection, attempts: Sequence[Attempt]) -> None:
        broken: dict[int, Ending] = {}
        for attempt in attempts:
            try:
                order = await self._reports.order_of(attempt.attempt_id)
            except InvalidRequest as error:
                broken[attempt.attempt_id] = Ending(Outcome.FAILED, "command", error.message)
                continue
            if order is not None and attempt.attempt_id in self._memory.attempts:
                connection.assign(order)
        for attempt_id in broken:
            self._machines.release(connection.machine, attempt_id)
        await self._reports.end(broken)

    def _detach(self, connection: Connection) -> None:
        machine = connection.machine
        if self._open.get(machine.machine_id) is connection:
            del self._open[machine.machine_id]
        if machine.link is connection:
            machine.link = None
            self._machines.note(machine)

    # -- what open links tell

    async def reported(self, machine: Machine, instance: str, reports: list[Report]) -> None:
        """Apply reports; a write that was given up leaves memory in doubt."""
        try:
            await self._reports.apply(machine, instance, reports)
        except Exception:
            self._gave_up()
            raise

    def heard(self, machine: Machine) -> None:
        """The machine is alive."""
        self._heard(machine)

    def progressed(self, machine: Machine, progress: Progress) -> None:
        """Keep the newest progress of a live attempt of this machine (R5.3)."""
        attempt = self._memory.attempts.get(progress.attempt)
        if attempt is not None and attempt.machine_id == machine.machine_id:
            attempt.progress = clean_progress(progress)
            self._announcer.progress(attempt, attempt.progress, self._clock.monotonic())

    def beat(self, machine: Machine, heartbeat: Heartbeat) -> None:
        """Note load and whether the machine can still write."""
        machine.load = asdict(heartbeat)
        if machine.full != heartbeat.full:
            machine.full = heartbeat.full[:255]
            self._machines.note(machine)
            self._wake()


def _check_protocol(message: Hello) -> None:
    """N and N-1 understand each other; others are told what to install (R5.4)."""
    if message.protocol in (PROTOCOL, PROTOCOL - 1) and message.protocol > 0:
        return
    side = "this machine's" if message.protocol < PROTOCOL else "the farm's"
    raise _Refusal(
        "protocol",
        f"The machine speaks protocol {message.protocol}, the farm {PROTOCOL}. "
        f"Update {side} RenderOnline: pip install --upgrade renderonline.",
        final=True,
    )


def _check_sizes(message: Hello) -> None:
    """What a machine says of itself is stored and shown: it has bounds."""
    texts = (message.instance, message.boot, message.version, message.name, message.platform, message.full)
    many = (message.engines, message.gpus, message.tags)
    if not message.instance or len(message.instance) > _LONGEST_INSTANCE or not message.instance.isascii():
        raise InvalidRequest(f"A hello's instance has 1 to {_LONGEST_INSTANCE} ASCII characters.")
    if len(message.held) > _MOST_HELD:
        raise InvalidRequest(f"A machine holds at most {_MOST_HELD} attempts.")
    inner = (*message.gpus, *message.tags, *(f"{one.name}{one.version}" for one in message.engines))
    if any(len(one) > _MOST_OFFERS for one in many) or any(len(one) > _LONGEST_TEXT for one in (*texts, *inner)):
        raise InvalidRequest("A hello is longer than any machine needs.")


async def _refuse(socket: WebSocket, answer: Refused) -> None:
    try:
        await socket.send_text(encode(answer))
        await socket.close(1008, answer.message[:100])
    except (RuntimeError, OSError):
        return
