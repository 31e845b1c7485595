"""Linked machines: each dials us with one WebSocket (R5, `docs/reference/link.md`).

The first message is `hello`: who it is, what it can do, what it still holds. We answer what goes on, and send again
what never arrived.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Final

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from renderonline.database.machines import MachineRow, change_machine, get_machine, hello, secret_matches
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.machines import ALTERNATION_S, Instances, Wish
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol.codec import decode, encode
from renderonline.protocol.link import PROTOCOL, Drain, Hello, Refused, Welcome
from renderonline.renderapi.links.connection import Connection, close_quietly, receive
from renderonline.renderapi.memory import LiveAttempt
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.shared import Shared

_log = structlog.get_logger(__name__)

HELLO_S: Final = 10.0
_CLOSING_S: Final = 30.0
_MOST_HELD: Final = 10_000
_MOST_OFFERS: Final = 256
_LONGEST_TEXT: Final = 500
_LONGEST_INSTANCE: Final = 64
_REFUSED: Final = 1008
_TWO_PROGRAMS: Final = "Two programs use this machine's secret; give each its own join code, then enable it again."


class _Refusal(Exception):
    def __init__(self, code: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.answer = Refused(code, message, final)


class LinkedMachines:
    """The links of all linked machines; `endpoint` serves one."""

    def __init__(self, shared: Shared, reports: Reports) -> None:
        self._shared = shared
        self._reports = reports
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
            refused = Refused("no_hello", f"No hello within {HELLO_S:.0f} seconds.")
        except _Refusal as refusal:
            refused = refusal.answer
        except InvalidRequest as error:
            refused = Refused("invalid_hello", error.message)
        except RenderOnlineError as error:
            refused = Refused(error.reason_code, error.message)
        else:
            try:
                await connection.run()
            finally:
                self._detach(connection)
            return
        _log.warning("A machine was refused", code=refused.code, reason=refused.message)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.send_text(encode(refused))
        await close_quietly(socket, _REFUSED, refused.message)

    def restart(self, machine_id: int) -> None:
        """Have the machine's program end after its work. `Conflict` when it is not linked now."""
        if (connection := self._open.get(machine_id)) is None:
            raise Conflict(f"Machine {machine_id} is not linked now. Restart its HPCServer on the machine itself.")
        connection.send(Drain(exit=True))

    async def close(self) -> None:
        """End all links; RenderAPI stops."""
        self._stopping = True
        connections = list(self._open.values())
        for connection in connections:
            connection.close("RenderAPI stops")
        if connections:
            await asyncio.wait([asyncio.create_task(one.ended.wait()) for one in connections], timeout=_CLOSING_S)

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
        unknown = "This machine is not known here. Join it again with a new code."
        row: MachineRow | None = None
        with contextlib.suppress(NotFound):
            row = await self._shared.database.read(partial(get_machine, machine_id=message.machine_id))
        if row is None or not secret_matches(row, message.secret):
            raise _Refusal("not_authenticated", unknown, final=True)
        if self._stopping:
            raise _Refusal("stopping", "RenderAPI stops.")
        return row

    async def _check_alone(self, row: MachineRow, message: Hello) -> None:
        """Two programs with one secret would close each other's links for ever (R5.4)."""
        instances, now = self._instances[row.machine_id], self._shared.clock.monotonic()
        latest, linked = instances.latest, self._open.get(row.machine_id)
        another = latest is not None and latest.instance != message.instance and now - latest.at <= ALTERNATION_S
        another = another or (linked is not None and linked.instance != message.instance)
        if row.wish == Wish.DISABLED and another:
            raise _Refusal("disabled", row.wish_reason or "This machine is disabled.")
        if not instances.hello(message.instance, now):
            return
        changes = {"wish": Wish.DISABLED.value, "wish_reason": _TWO_PROGRAMS}
        operation = partial(change_machine, machine_id=row.machine_id, changes=changes)
        self._shared.machines.update_row(await self._shared.database.write(operation))
        raise _Refusal("disabled", _TWO_PROGRAMS)

    async def _attach(self, socket: WebSocket, message: Hello) -> Connection:
        shared, machine_id = self._shared, message.machine_id
        facts = {key: value for key, value in asdict(message).items() if key not in ("secret", "held", "instance")}
        operation = partial(
            hello, machine_id=machine_id, instance=message.instance, facts=facts, now_us=shared.now().us
        )
        row = await shared.database.write(operation)
        held = [one.attempt for one in message.held]
        offsets = await asyncio.to_thread(lambda: {number: shared.logs.size(number) for number in held})
        machine = shared.machines.update_row(row)
        machine.facts, machine.full = facts, message.full
        connection = Connection(shared, self._reports, socket, machine, message.instance, last_seq=row.last_seq)
        kept, again, lost = self._reconcile(message)
        resumed = {str(number): offsets[number] for number in kept}
        connection.send(Welcome(min(message.protocol, PROTOCOL), tuple(kept), row.last_seq, resumed))
        for number in held:
            connection.knows(number)
        machine.offer({offer.name: offer.version for offer in message.engines}, message.slots)
        there = (one for one in shared.memory.attempts_on(machine_id) if one.attempt_id not in lost)
        machine.occupied = {one.attempt_id: one.needs for one in there}
        machine.link = self._open[machine_id] = connection
        shared.heard(machine)
        shared.machines.note(machine)
        shared.files.remove_unheld(machine_id, {*held, *machine.occupied})
        _log.info("A machine is linked", machine_id=machine_id, name=machine.name, kept=len(kept), lost=len(lost))
        try:
            await self._reports.end({**lost, **await self._send_again(connection, again)})
        except BaseException:
            connection.ended.set()
            self._detach(connection)
            raise
        shared.wake()
        return connection

    def _reconcile(self, message: Hello) -> tuple[list[int], list[LiveAttempt], dict[int, Ending]]:
        """Our live attempts against what the machine names: those that go on, those that never arrived, and those
        that it lost."""
        named = {one.attempt: one.token for one in message.held}
        kept, again, lost = [], [], {}
        for attempt in self._shared.memory.attempts_on(message.machine_id):
            if named.get(attempt.attempt_id) == attempt.token:
                kept.append(attempt.attempt_id)
            elif attempt.running:
                lost[attempt.attempt_id] = Ending(Outcome.LOST, reason="its machine does not know it any more")
            elif attempt.leased:
                again.append(attempt)
        return kept, again, lost

    async def _send_again(self, connection: Connection, attempts: Sequence[LiveAttempt]) -> dict[int, Ending]:
        """Send what never arrived; gives what can't be sent."""
        broken: dict[int, Ending] = {}
        for attempt in attempts:
            try:
                order = await self._reports.order_of(attempt.attempt_id)
            except InvalidRequest as error:
                broken[attempt.attempt_id] = Ending(Outcome.FAILED, "command", error.message)
                self._shared.machines.release(attempt.machine_id, attempt.attempt_id)
                continue
            if order is not None and attempt.attempt_id in self._shared.memory.attempts:
                connection.assign(order)
        return broken

    def _detach(self, connection: Connection) -> None:
        machine = connection.machine
        if self._open.get(machine.machine_id) is connection:
            del self._open[machine.machine_id]
        if machine.link is connection:
            machine.link = None
            self._shared.machines.note(machine)


def _check_protocol(message: Hello) -> None:
    """N and N-1 understand each other; others are told what to install (R5.4)."""
    if message.protocol in (PROTOCOL, PROTOCOL - 1) and message.protocol > 0:
        return
    side = "this machine's" if message.protocol < PROTOCOL else "the farm's"
    speaks = f"The machine speaks protocol {message.protocol}, the farm {PROTOCOL}."
    advice = f"Update {side} RenderOnline: pip install --upgrade renderonline."
    raise _Refusal("protocol", f"{speaks} {advice}", final=True)


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
