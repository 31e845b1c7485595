"""Events as they happen, for programs (server-sent events) and for people (mail, webhooks and chat, through Apprise).

The dispatcher writes events through an `Announcer` into the ring of `Events`, which any number of readers follow. The
`Notifier` sees them too, and sends messages when a task ends or a machine is benched. An event's id is
`<epoch>-<number>`; the epoch is new at each start. A reader that reconnects with the last id it received gets all later
events, or one `resync` event when they are not known any more.

Each channel of messages has a bounded queue and a thread of its own, so that a slow one delays nothing else. The
addresses of channels contain passwords: no log or error shows them.
"""

import asyncio
import contextlib
import logging
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from renderonline.database import listing_rows
from renderonline.database.door import Connection, Database
from renderonline.database.listing_rows import ResultView, TaskView
from renderonline.database.task_rows import TaskRow
from renderonline.farm.errors import InvalidRequest, LimitReached, RenderOnlineError
from renderonline.farm.tasks import ChunkState, Landing, TaskStatus
from renderonline.protocol.link import Progress
from renderonline.renderapi.connected_machines import Machine
from renderonline.renderapi.memory import LiveAttempt
from renderonline.storage.archive import Compared, Member, file_pieces
from renderonline.storage.names import task_directory

RING: Final = 10_000
"""Events that are kept."""
RESYNC: Final = "resync"
"""The event after which a reader must ask for everything again: events were lost."""
QUIET_S: Final = 15.0
"""A comment is sent after this time without an event, so that both sides notice a dead connection."""
KNOWN_S: Final = 5.0
"""A reader's rights are checked again after this time, before more events are sent."""
MOST_STREAMS: Final = 8
"""Streams of one account at the same time; further clients must poll."""
SOON_S: Final = 0.02
"""After which a change of a machine is published."""
PAUSE_S: Final = 0.1
PROGRESS_PAUSE_S: Final = 0.25
"""The shortest time between two progress events of an attempt."""
# Not orjson: its bytes keep the 8 KiB that it wrote into, and `RING` of them stay in memory.
_JSON: Final = msgspec.json.Encoder(enc_hook=str)


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One event; `user_id` is the owner of its task, None when it is about the farm."""

    number: int
    type: str
    data: bytes
    user_id: int | None


class Publisher(Protocol):
    """Where events go."""

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Publish an event to all who may see it."""


class Events:
    """The ring. `publish` is called on the event loop only and never waits for a reader. `followers` get every event
    right after it is in the ring."""

    def __init__(self, epoch: str) -> None:
        self.followers: list[Publisher] = []
        self._epoch = epoch
        self._ring: deque[TaskEvent] = deque(maxlen=RING)
        self._last = 0
        self._more = asyncio.Event()
        self._closed = False
        self._streams: Counter[int] = Counter()
        self._looks = 0

    @contextlib.contextmanager
    def seat(self, user_id: int) -> Iterator[None]:
        """A context with a stream of this account open. Raises `LimitReached` when it has `MOST_STREAMS` already."""
        if self._streams[user_id] >= MOST_STREAMS:
            raise LimitReached(
                f"This account has {MOST_STREAMS} event streams open. Close one, or ask for the tasks now and then.",
                code="too_many_streams",
            )
        self._streams[user_id] += 1
        try:
            yield
        finally:
            self._streams[user_id] -= 1
            if not self._streams[user_id]:
                del self._streams[user_id]

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Publish an event to the user `user_id`, or for None to those who may see the whole farm."""
        self._last += 1
        self._ring.append(TaskEvent(self._last, type, _JSON.encode(data), user_id))
        self._wake()
        for follower in self.followers:
            follower.publish(type, data, user_id=user_id)

    def look_again(self) -> None:
        """Check every reader's rights again now, because an account may have changed."""
        self._looks += 1
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def stream(
        self, last_event_id: str | None, may_see: Callable[[TaskEvent], bool], may_stay: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The events after `last_event_id` (None: from now on) as server-sent events, for as long as the reader may
        stay: a stream must not outlive a session, an account or a role."""
        position, clock = self._position(last_event_id), asyncio.get_running_loop().time
        known_at, looks = clock(), self._looks
        yield b"retry: 2000\n\n"
        while not self._closed:
            if looks != self._looks or clock() - known_at >= KNOWN_S:
                known_at, looks = clock(), self._looks
                if not await may_stay():
                    return
            missed = self._last - position
            if missed > len(self._ring):  # unknown, or the reader is slower than the farm
                new = [TaskEvent(self._last, RESYNC, b"{}", None)]
            else:
                new = [self._ring[index] for index in range(-missed, 0)]
            position, more = self._last, self._more
            if batch := b"".join(self._line(event) for event in new if event.type == RESYNC or may_see(event)):
                yield batch
            elif not new:
                try:
                    await asyncio.wait_for(more.wait(), QUIET_S)
                except TimeoutError:
                    yield b": quiet\n\n"

    def _position(self, last_event_id: str | None) -> int:
        """The number of the last event that a reader received; -1 when that is unknown."""
        if not last_event_id:
            return self._last
        epoch, _, number = last_event_id.rpartition("-")
        known = epoch == self._epoch and number.isascii() and number.isdigit()
        seen = int(number[:20]) if known else -1
        return seen if seen <= self._last else -1

    def _line(self, event: TaskEvent) -> bytes:
        head = f"id: {self._epoch}-{event.number}\nevent: {event.type}\ndata: ".encode()
        return head + event.data + b"\n\n"


class Announcer:
    """Writes events. A change of a task is published at once, one of a machine after `SOON_S`; further ones at most
    every `PAUSE_S`, with the newest value."""

    def __init__(self, events: Publisher) -> None:
        self._events = events
        self._pending: dict[tuple[str, int], Callable[[], None] | None] = {}

    def _throttled(self, key: tuple[str, int], publish: Callable[[], None]) -> None:
        if key in self._pending:
            self._pending[key] = publish
            return
        publish()
        self._pending[key] = None
        asyncio.get_running_loop().call_later(PAUSE_S, self._pause_over, key)

    def _pause_over(self, key: tuple[str, int]) -> None:
        if (publish := self._pending.pop(key, None)) is not None:
            self._throttled(key, publish)

    def task(self, state: TaskRow) -> None:
        """A task changed; its end is published at once."""
        key = ("task", state.task_id)
        if state.ended:
            self._pending.pop(key, None)
            self._task(state)
        else:
            self._throttled(key, partial(self._task, state))

    def _task(self, state: TaskRow) -> None:
        names = ("task_id", "status", "frames_total", "frames_done", "reason", "unchecked", "warnings")
        data = {name: getattr(state, name) for name in names}
        data["chunks"] = {chunk.value: getattr(state.counters, chunk.value) for chunk in ChunkState}
        self._events.publish("task", data, user_id=state.user_id)

    def task_deleted(self, task_id: int, user_id: int) -> None:
        self._events.publish("task", {"task_id": task_id, "status": "deleted"}, user_id=user_id)

    def result(self, landing: Landing, *, preview: bool) -> None:
        """A result landed; `preview`: it can be shown in a grid."""
        data = {"task_id": landing.task_id, "machine_id": landing.machine_id, "preview": preview}
        names = ("attempt_id", "name", "frame", "size", "digest", "crc32")
        data |= {name: getattr(landing.offer, name) for name in names}
        self._events.publish("result", data, user_id=landing.user_id)

    def progress(self, attempt: LiveAttempt, progress: Progress, now: float) -> None:
        """An attempt made progress; not every step is published."""
        if now - attempt.told_at < PROGRESS_PAUSE_S and progress.fraction < 1.0:
            return
        attempt.told_at = now
        data = {name: getattr(attempt, name) for name in ("task_id", "chunk_id", "attempt_id", "machine_id")}
        data |= {name: getattr(progress, name) for name in ("fraction", "frame", "remaining_s", "message")}
        self._events.publish("progress", data, user_id=attempt.user_id)

    def machine(self, machine: Machine) -> None:
        """A machine came, went, or changed its status. It is published a moment later, because it changes with each
        chunk that it gets, whose start must not wait for it."""
        key = ("machine", machine.machine_id)
        if key not in self._pending:
            asyncio.get_running_loop().call_later(SOON_S, self._pause_over, key)
        self._pending[key] = lambda: self._events.publish("machine", machine.view())


log = structlog.get_logger(__name__)

MOST_WAITING: Final = 200
"""Messages that wait for a channel, and ended tasks that wait for the database; more are dropped."""
TRIES: Final = 3
SEND_S: Final = 30.0
CLOSE_S: Final = 3.0
"""How long messages that wait may still be sent when RenderAPI stops."""
LARGEST_PICTURE: Final = 2 << 20
PICTURES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
MOST_WARNINGS: Final = 5
"""Of a task that a message names."""
_ANNOUNCED: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED})
ADVICE: Final = "try it with: apprise -v -b test ADDRESS"


class Message(NamedTuple):
    """A message to people; `picture` is attached if it is a small PNG or JPEG."""

    title: str
    text: str
    good: bool
    picture: Member | None = None


class Channel:
    """An Apprise address and a thread that sends to it. Raises `InvalidRequest` for a wrong address. Blocks: Apprise
    is imported only here, because most farms don't need it. `pause_s`: before the second try; it doubles."""

    def __init__(self, setting: str, url: str, *, pause_s: float) -> None:
        import apprise
        from apprise.plugins import url_to_dict

        for library in ("apprise", "urllib3"):  # what they log can hold passwords
            logging.getLogger(library).handlers = [logging.NullHandler()]
            logging.getLogger(library).propagate = False
        self._apprise, self._pause_s = apprise, pause_s
        self._asset = apprise.AppriseAsset(app_id="RenderOnline", app_url="", storage_mode="memory", async_mode=False)
        self._parts: dict[str, Any] = url_to_dict(url) or {}  # type: ignore[no-untyped-call]  # Apprise has no types
        self.name = f"{setting} ({self._parts.get('schema', '?')})"
        if self._service("") is None:
            example = "It looks like mailto://user:password@example.org; all kinds: https://appriseit.com"
            raise InvalidRequest(f"The setting {self.name} is no address that Apprise can use; {ADVICE}. {example}")
        self._waiting: queue.Queue[tuple[Message, str]] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def tell(self, message: Message, recipient: str = "") -> None:
        """Queue a message, for `recipient` instead of the address's own. Never waits."""
        try:
            self._waiting.put_nowait((message, recipient))
        except queue.Full:
            log.warning("message is dropped: too many wait for its channel", channel=self.name, title=message.title)

    @property
    def idle(self) -> bool:
        """Whether every message was sent or given up."""
        return not self._waiting.unfinished_tasks

    def _run(self) -> None:
        while True:
            message, recipient = self._waiting.get()
            for number in range(TRIES):
                try:  # the last time without the picture, which may be the reason for a refusal
                    why = self._send(message, recipient, message.picture if number < TRIES - 1 else None)
                except Exception as error:  # noqa: BLE001 (its text could hold a password)
                    why = type(error).__name__
                if not why:
                    break
                if number < TRIES - 1:
                    time.sleep(self._pause_s * 2**number)  # this channel's own thread: nobody else waits
                else:
                    log.warning(
                        "message can't be sent", channel=self.name, title=message.title, reason=why, hint=ADVICE
                    )
            self._waiting.task_done()

    def _send(self, message: Message, recipient: str, picture: Member | None) -> str:
        """Try once; returns why it failed, or ""."""
        service, sender = self._service(recipient), self._apprise.Apprise(asset=self._asset)
        sender.add(service)
        result = sender.notify(
            message.text,
            message.title,
            notify_type="success" if message.good else "failure",
            body_format="text",
            attach=_attachment(picture) if picture is not None and service.attachment_support else None,
            timeout=SEND_S,
        )
        codes = re.findall(r"error=(\d{3})\b", " ".join(entry.message for entry in result.logs()))
        return "" if result else f"it answered {codes[-1]}" if codes else "it could not be reached, or refused"

    def _service(self, recipient: str) -> Any:
        parts = self._parts | ({"targets": [recipient]} if recipient else {})
        return self._apprise.Apprise.instantiate(parts, asset=self._asset)


def _attachment(picture: Member) -> Any:
    from apprise.attachment.memory import AttachMemory

    if picture.size > LARGEST_PICTURE:
        return None
    try:
        content = b"".join(file_pieces(picture, 0, picture.size, Compared()))
    except RenderOnlineError:  # deleted meanwhile, or not what landed (R15 Served as landed)
        return None
    kinds = [kind for magic, kind in PICTURES.items() if content.startswith(magic)]
    return AttachMemory(content, Path(picture.path).name, kinds[0]) if kinds else None  # type: ignore[no-untyped-call]  # Apprise


class Notifier:
    """Sends messages about some events. `url`: the farm's address for people."""

    def __init__(self, database: Database, *, url: str = "", pause_s: float = 5.0) -> None:
        self._database, self._url, self._pause_s = database, url, pause_s
        self._channels: list[Channel] = []
        self._mail: Channel | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self._announced: dict[int, object] = {}
        self._benched: set[int] = set()

    async def open(self, addresses: Sequence[str], mail: str) -> None:
        """Open channels: `addresses` receive messages about every task and machine, `mail` is for owners of tasks that
        ask for it. Raises `InvalidRequest`, which names the wrong setting."""
        channel = partial(Channel, pause_s=self._pause_s)
        named = [(f"Notify[{place}]", url) for place, url in enumerate(addresses)]
        self._channels = [await asyncio.to_thread(channel, *one) for one in named]
        self._mail = await asyncio.to_thread(channel, "NotifyMail", mail) if mail else None

    async def close(self) -> None:
        """Wait up to `CLOSE_S` for messages that are being sent."""
        deadline, channels = time.monotonic() + CLOSE_S, [*self._channels, *filter(None, [self._mail])]
        while time.monotonic() < deadline:
            if not self._at_work and all(one.idle for one in channels):
                break
            await asyncio.sleep(0.02)  # threads empty the queues: there is no event to wait for

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Send the messages that an event calls for."""
        if type == "machine":
            self._of_machine(data["machine_id"], data)
        elif type == "task" and data["status"] in _ANNOUNCED and (self._channels or self._mail):
            if len(self._at_work) >= MOST_WAITING:
                log.warning("no message about a task is sent: too many end at once", task=data["task_id"])
                return
            work = asyncio.create_task(self._of_task(data["task_id"]))
            self._at_work.add(work)
            work.add_done_callback(self._at_work.discard)

    def _tell(self, message: Message) -> None:
        for channel in self._channels:
            channel.tell(message)

    def _of_machine(self, machine_id: int, data: dict[str, Any]) -> None:
        """Send one message when a machine is benched."""
        if not data.get("benched"):
            self._benched.discard(machine_id)
        elif machine_id not in self._benched:
            self._benched.add(machine_id)
            name, hint = tame(data["name"]), "It gets no work for a while. To end that: renderonline machine enable "
            lines = [tame(data["reason"]), hint + name, self._url]
            self._tell(Message(f"Machine {name} is benched", "\n".join(lines).strip(), good=False))

    async def _of_task(self, task_id: int) -> None:
        """Send one message each time that a task ends."""
        try:
            view, latest = await self._database.read(partial(_ended, task_id=task_id, everyone=bool(self._channels)))
        except RenderOnlineError as error:  # deleted meanwhile, or the database does not answer
            log.warning("no message about a task is sent", task=task_id, reason=error.message)
            return
        end = (view.status, view.end_us)
        wanted = self._channels or view.notify
        if not wanted or view.status not in _ANNOUNCED or self._announced.get(task_id) == end:
            return
        if len(self._announced) > MOST_WAITING * 50:
            self._announced.clear()
        self._announced[task_id] = end
        directory = task_directory(view.file_path, view.file_name)
        picture = None
        if latest is not None:
            place = directory / latest.folder / latest.name
            picture = Member(latest.name, place, latest.size, 0, latest.crc32, latest.digest)
        message = _of(view, self._url, picture)
        self._tell(message)
        if view.notify and self._mail is not None:
            self._mail.tell(message, view.email)


def _ended(connection: Connection, *, task_id: int, everyone: bool) -> tuple[TaskView, ResultView | None]:
    """A task, and its last result if a message about it goes to `everyone` or to its owner."""
    view = listing_rows.get_task(connection, task_id)
    return view, listing_rows.latest_result(connection, task_id) if everyone or view.notify else None


def _of(view: TaskView, url: str, picture: Member | None) -> Message:
    number, good = view.task_id, view.status is TaskStatus.SUCCEEDED
    lines = (
        f"{tame(view.file_name)} ({tame(view.engine)}), submitted by {tame(view.email)}",
        f"Frames: {view.frames_done} of {view.frames_total} ({view.frames[:100]})" if view.frames_total else "",
        f"Reason: {tame(view.reason)}" if view.reason else "",
        *(f"Warning: {tame(text)}" for text in view.warnings[:MOST_WARNINGS]),
        f"and {len(view.warnings) - MOST_WARNINGS} more warnings" if len(view.warnings) > MOST_WARNINGS else "",
        f"Not checked first: {tame(view.unchecked)}" if view.unchecked else "",
        f"Fetch it: renderonline download {number}" if good else f"See why: renderonline logs {number}",
        url,
    )
    title = f"Task {number} {tame(view.name)[:100]}: {view.status.value}{', with warnings' if view.warnings else ''}"
    return Message(title, "\n".join(filter(None, lines)), good, picture)


def tame(text: str) -> str:
    """Make a text of users or renderers safe for chats: short, on one line, without mentions of everybody."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:500])
    return re.sub(r"@(?=everyone|here|channel|all\b)|<(?=[!@])", "\\g<0>\u200b", plain)
