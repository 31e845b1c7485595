"""How a link begins: the first message is `hello`: who the machine is, what it can do, what it still holds. We answer
what goes on, and send again what never arrived (R5.4 Hello)."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog
from starlette import status
from starlette.websockets import WebSocket, WebSocketDisconnect

from renderonline.database.door import Database
from renderonline.database.machine_rows import MachineRow, disable_machine, get_machine, hello, secret_matches
from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable, NotFound, RenderOnlineError
from renderonline.farm.machines import ALTERNATION_S, Instances, Wish
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol import link
from renderonline.protocol.link import PROTOCOL, Hello, Refused, check_hello, decode_frame, encode, to_wire
from renderonline.renderapi.connected_machines import Machines
from renderonline.renderapi.machine_links import MAX_MESSAGE, LinkedMachine, Socket
from renderonline.renderapi.memory import BackgroundWork, Clocks, LiveAttempt, Memory
from renderonline.renderapi.orders import AttemptFiles
from renderonline.renderapi.reports import Checks, Reports
from renderonline.storage.attempt_logs import AttemptLogs

_log = structlog.get_logger(__name__)

HELLO_S: Final = 10.0
_CLOSING_S: Final = 30.0
_TWO_PROGRAMS: Final = "Two programs use this machine's secret; give each its own join code, then enable it again."


class _Refusal(Exception):
    def __init__(self, code: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.answer = Refused(code, message, final)


class LinkedMachines:
    """The links of all linked machines; `endpoint` serves one."""

    def __init__(
        self,
        connect: partial[LinkedMachine],
        *,
        database: Database,
        memory: Memory,
        machines: Machines,
        files: AttemptFiles,
        reports: Reports,
        checks: Checks,
        background: BackgroundWork,
        clocks: Clocks,
        logs: AttemptLogs,
        take_messages: Callable[[WebSocket, str, LinkedMachine], Socket],
    ) -> None:
        self._connect, self._database, self._memory, self._machines = connect, database, memory, machines
        self._files, self._reports, self._checks, self._logs = files, reports, checks, logs
        self._background, self._clocks, self._take_messages = background, clocks, take_messages
        self._instances: dict[int, Instances] = defaultdict(Instances)
        self._doors: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._open: dict[int, LinkedMachine] = {}
        self._stopping = False

    async def endpoint(self, socket: WebSocket) -> None:
        """Greet one machine; its link goes on without this request."""
        await socket.accept()
        try:
            async with asyncio.timeout(HELLO_S):
                text = await _receive(socket)
            if text is None:
                return
            connection = await self._greet(text)
        except TimeoutError:
            refused = Refused("no_hello", f"No hello within {HELLO_S:.0f} seconds.")
        except _Refusal as refusal:
            refused = refusal.answer
        except InvalidRequest as error:
            refused = Refused("invalid_hello", error.message)
        except RenderOnlineError as error:
            refused = Refused(error.reason_code, error.message)
        else:
            connection.serve(self._take_messages(socket, f"machine {connection.machine.machine_id}", connection))
            return
        _log.warning("A machine was refused", code=refused.code, reason=refused.message)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.send_text(encode(refused))
        await _close_quietly(socket, status.WS_1008_POLICY_VIOLATION, refused.message)

    def restart(self, machine_id: int) -> None:
        """Have the machine's program end after its work. `Conflict` when it is not linked now."""
        if (connection := self._open.get(machine_id)) is None:
            raise Conflict(f"Machine {machine_id} is not linked now. Restart its HPCServer on the machine itself.")
        connection.send(link.Drain(exit=True))

    async def close(self) -> None:
        self._stopping = True
        connections = list(self._open.values())
        for connection in connections:
            connection.close("RenderAPI stops")
        if connections:
            await asyncio.wait([connection.ended for connection in connections], timeout=_CLOSING_S)

    async def _greet(self, text: str) -> LinkedMachine:
        message = _hello_of(text)
        row = await self._authenticated(message)
        _check_protocol(message)
        check_hello(message)
        async with self._doors[row.machine_id]:
            await self._check_alone(row, message)
            earlier = self._open.get(row.machine_id)
            if earlier is not None:
                earlier.close("the machine dialled again")
                await asyncio.wait([earlier.ended], timeout=_CLOSING_S)
                if not earlier.ended.done():  # as it happens while the database does not answer
                    raise NotAvailable("This machine's earlier link has not ended yet. It is tried again.")
            return await self._attach(message)

    async def _authenticated(self, message: Hello) -> MachineRow:
        known = self._machines.get(message.machine_id)
        row = known.row if known is not None else None
        if row is None or not secret_matches(row, message.secret):  # it may have joined just now
            with contextlib.suppress(NotFound):
                row = await self._database.read(partial(get_machine, machine_id=message.machine_id))
        if row is None or not secret_matches(row, message.secret):
            unknown = "This machine is not known here. Join it again with a new code."
            raise _Refusal("not_authenticated", unknown, final=True)
        if self._stopping:
            raise _Refusal("stopping", "RenderAPI stops.")
        return row

    async def _check_alone(self, row: MachineRow, message: Hello) -> None:
        """Two programs with one secret would close each other's links for ever (R5.7 One secret, one program)."""
        instances, now = self._instances[row.machine_id], self._clocks.monotonic()
        latest, linked = instances.latest, self._open.get(row.machine_id)
        another = latest is not None and latest.instance != message.instance and now - latest.at <= ALTERNATION_S
        another = another or (linked is not None and linked.instance != message.instance)
        if row.wish == Wish.DISABLED and another:
            raise _Refusal("disabled", row.wish_reason or "This machine is disabled.")
        if not instances.hello(message.instance, now):
            return
        operation = partial(disable_machine, machine_id=row.machine_id, reason=_TWO_PROGRAMS)
        self._machines.update_row(await self._database.write(operation))
        raise _Refusal("disabled", _TWO_PROGRAMS)

    async def _attach(self, message: Hello) -> LinkedMachine:
        machine_id, hidden = message.machine_id, ("type", "secret", "held", "instance")
        facts = {key: value for key, value in to_wire(message).items() if key not in hidden}
        operation = partial(
            hello, machine_id=machine_id, instance=message.instance, facts=facts, now_us=self._clocks.now().us
        )
        row = await self._database.write(operation)
        machine = self._machines.update_row(row)
        held = {one.attempt for one in await self._reports.genuine(machine, message.held)}
        offsets = await asyncio.to_thread(self._log_sizes, held) if held else {}
        machine.facts, machine.full, machine.load = facts, message.full, {}
        protocol = min(message.protocol, PROTOCOL)
        connection = self._connect(machine, message.instance, protocol=protocol, last_seq=row.last_seq)
        connection.ended.add_done_callback(lambda _: self._detach(connection))
        self._checks.lost(machine_id)
        kept, again, lost = self._reconcile(machine_id, held)
        resumed = {str(number): offsets[number] for number in kept}
        connection.send(link.Welcome(protocol, tuple(kept), row.last_seq, resumed))
        for number in held:
            connection.knows(number)
        machine.offer({offer.name: offer.version for offer in message.engines}, message.slots)
        there = (one for one in self._memory.attempts_on(machine_id) if one.attempt_id not in lost)
        machine.occupied = {one.attempt_id: one.needs for one in there}
        machine.link = self._open[machine_id] = connection
        self._machines.heard(machine)
        self._machines.note(machine)
        self._files.remove_unheld(machine_id, {*held, *machine.occupied})
        _log.info("A machine is linked", machine_id=machine_id, name=machine.name, kept=len(kept), lost=len(lost))
        try:
            await self._reports.end({**lost, **await self._send_again(connection, again)})
        except BaseException:
            connection.close("its greeting failed")
            raise
        self._background.wake()
        return connection

    def _log_sizes(self, attempts: Collection[int]) -> dict[int, int]:
        return {attempt_id: self._logs.size(attempt_id) for attempt_id in attempts}

    def _reconcile(
        self, machine_id: int, held: Collection[int]
    ) -> tuple[list[int], list[LiveAttempt], dict[int, Ending]]:
        """Our live attempts against those that the machine holds: those that go on, those that never
        arrived, and those that it lost."""
        kept, again, lost = [], [], {}
        for attempt in self._memory.attempts_on(machine_id):
            if attempt.attempt_id in held:
                kept.append(attempt.attempt_id)
            elif attempt.running:
                lost[attempt.attempt_id] = Ending(Outcome.LOST, reason="its machine does not know it any more")
            elif attempt.leased:
                again.append(attempt)
        return kept, again, lost

    async def _send_again(self, connection: LinkedMachine, attempts: Sequence[LiveAttempt]) -> dict[int, Ending]:
        """Send what never arrived; gives what can't be sent."""
        broken: dict[int, Ending] = {}
        for attempt in attempts:
            try:
                order = await self._reports.order_of(attempt.attempt_id)
            except InvalidRequest as error:
                broken[attempt.attempt_id] = Ending(Outcome.FAILED, "command", error.message)
                self._machines.release(attempt.machine_id, attempt.attempt_id)
                continue
            if order is not None and attempt.attempt_id in self._memory.attempts:
                connection.assign(order)
        return broken

    def _detach(self, connection: LinkedMachine) -> None:
        machine = connection.machine
        if self._open.get(machine.machine_id) is connection:
            del self._open[machine.machine_id]
        if machine.link is connection:
            machine.link = None
            self._checks.lost(machine.machine_id)
            self._machines.note(machine)


async def _receive(socket: WebSocket) -> str | None:
    """The next message as text; None when the other side has gone or sends what nobody may send."""
    try:
        message = await socket.receive()
    except (WebSocketDisconnect, RuntimeError):
        return None
    text = message.get("text")
    if message["type"] != "websocket.receive" or text is None:
        return None
    if len(text) > MAX_MESSAGE:
        await _close_quietly(socket, status.WS_1009_MESSAGE_TOO_BIG, "the message is too large")
        return None
    return str(text)


async def _close_quietly(socket: WebSocket, code: int, reason: str) -> None:
    """Close; a socket that is gone already is closed enough."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.close(code, reason[:100])


def _hello_of(text: str) -> Hello:
    messages = decode_frame(text, Hello)
    if len(messages) > 1:
        raise InvalidRequest("A hello is a frame of its own.")
    hello: Hello = messages[0]
    return hello


def _check_protocol(message: Hello) -> None:
    """N and N-1 understand each other; others get an error that says what to install (R5.6 Protocol versions)."""
    if message.protocol in (PROTOCOL, PROTOCOL - 1) and message.protocol > 0:
        return
    side = "this machine's" if message.protocol < PROTOCOL else "the farm's"
    speaks = f"The machine speaks protocol {message.protocol}, the farm {PROTOCOL}."
    advice = f"Update {side} RenderOnline: pip install --upgrade renderonline."
    raise _Refusal("protocol", f"{speaks} {advice}", final=True)
