"""What happens on the farm, told as it happens: who writes events, their ring, and any number of readers (SSE).

Each event has an id `<epoch>-<number>`; the epoch is new at each start. A reader that comes back with the last id it
saw gets everything after it, or one `resync` event when that is no longer known.

Messages to people when a task ends or a machine is benched: mail, webhooks and chat, through Apprise.

The notifier hears what the dispatcher publishes and passes it on. Each channel has a bounded queue and a thread of its
own, so that one that hangs holds up nothing else. The addresses of channels hold passwords: no log or error shows them.
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

import orjson
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
"""The event that says: what you know may be old, ask again for everything."""
QUIET_S: Final = 15.0
"""A reader hears something at least so often, so that both sides notice a dead connection."""
KNOWN_S: Final = 5.0
"""A reader who was let in before that is looked at again before anything more is told."""
MOST_STREAMS: Final = 8
"""Streams of one account at the same time; a client that gets no other asks now and then."""
PAUSE_S: Final = 0.1
PROGRESS_PAUSE_S: Final = 0.25
"""An attempt's progress is told at most so often."""


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One thing that happened; `user_id` is whose task it is about, None when it is about the farm."""

    number: int
    type: str
    data: bytes
    user_id: int | None


class Publisher(Protocol):
    """Where events go."""

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody who may see it."""


class Events:
    """The ring. `publish` is called on the event loop only and never waits for a reader."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._ring: deque[TaskEvent] = deque(maxlen=RING)
        self._last = 0
        self._more = asyncio.Event()
        self._closed = False
        self._streams: Counter[int] = Counter()
        self._looks = 0

    @contextlib.contextmanager
    def seat(self, user_id: int) -> Iterator[None]:
        """A stream of this account is open. `LimitReached` when it has as many as one may have."""
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
        """Tell everybody who may see it: the user `user_id`, or for None those who may see the whole farm."""
        self._last += 1
        self._ring.append(TaskEvent(self._last, type, orjson.dumps(data, default=str), user_id))
        self._wake()

    def look_again(self) -> None:
        """Somebody's account may have changed: ask now whether each reader may stay."""
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
        """How far a reader is; before everything that is kept when that can't be known."""
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
    """Writes events. What changes quickly is told at once and then at most every `PAUSE_S`, with its newest value."""

    def __init__(self, events: Publisher) -> None:
        self._events = events
        self._quiet: dict[tuple[str, int], Callable[[], None] | None] = {}

    def _now_and_then(self, key: tuple[str, int], tell: Callable[[], None]) -> None:
        if key in self._quiet:
            self._quiet[key] = tell
            return
        tell()
        self._quiet[key] = None
        asyncio.get_running_loop().call_later(PAUSE_S, self._pause_over, key)

    def _pause_over(self, key: tuple[str, int]) -> None:
        if (tell := self._quiet.pop(key, None)) is not None:
            self._now_and_then(key, tell)

    def task(self, state: TaskRow) -> None:
        """A task changed; its end is told at once."""
        key = ("task", state.task_id)
        if state.ended:
            self._quiet.pop(key, None)
            self._task(state)
        else:
            self._now_and_then(key, partial(self._task, state))

    def _task(self, state: TaskRow) -> None:
        told = ("task_id", "status", "frames_total", "frames_done", "reason", "unchecked", "warnings")
        data = {name: getattr(state, name) for name in told}
        data["chunks"] = {one.value: getattr(state.counters, one.value) for one in ChunkState}
        self._events.publish("task", data, user_id=state.user_id)

    def task_deleted(self, task_id: int, user_id: int) -> None:
        self._events.publish("task", {"task_id": task_id, "status": "deleted"}, user_id=user_id)

    def result(self, landing: Landing, *, preview: bool) -> None:
        """A result landed; `preview`: it can be shown in a grid."""
        data = {"task_id": landing.task_id, "machine_id": landing.machine_id, "preview": preview}
        told = ("attempt_id", "name", "frame", "size", "digest", "crc32")
        data |= {name: getattr(landing.offer, name) for name in told}
        self._events.publish("result", data, user_id=landing.user_id)

    def progress(self, attempt: LiveAttempt, progress: Progress, now: float) -> None:
        """An attempt came further; not every step is told."""
        if now - attempt.told_at < PROGRESS_PAUSE_S and progress.fraction < 1.0:
            return
        attempt.told_at = now
        data = {name: getattr(attempt, name) for name in ("task_id", "chunk_id", "attempt_id", "machine_id")}
        data |= {name: getattr(progress, name) for name in ("fraction", "frame", "remaining_s", "message")}
        self._events.publish("progress", data, user_id=attempt.user_id)

    def machine(self, machine: Machine) -> None:
        """A machine came, went, or changed its status."""
        self._now_and_then(("machine", machine.machine_id), lambda: self._events.publish("machine", machine.view()))


log = structlog.get_logger(__name__)

MOST_WAITING: Final = 200
"""So many messages wait for a channel, and so many tasks for the database; more are dropped."""
TRIES: Final = 3
SEND_S: Final = 30.0
CLOSE_S: Final = 3.0
"""How long what waits may still be sent when RenderAPI stops."""
LARGEST_PICTURE: Final = 2 << 20
PICTURES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
MOST_WARNINGS: Final = 5
"""Of a task that a message names."""
TOLD: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED})
ADVICE: Final = "try it with: apprise -v -b test ADDRESS"


class Message(NamedTuple):
    """What people are told; `picture` goes with it if it is a small PNG or JPEG."""

    title: str
    text: str
    good: bool
    picture: Member | None = None


class Channel:
    """One way to people: an Apprise address and a thread that sends. `InvalidRequest` when the address is none. Blocks:
    Apprise is loaded here, where it is wanted. `pause_s`: before the second try; it doubles."""

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
        """Have it sent, to the `recipient` instead of the address's own. Never waits."""
        try:
            self._waiting.put_nowait((message, recipient))
        except queue.Full:
            log.warning("message is dropped: too many wait for its channel", channel=self.name, title=message.title)

    @property
    def idle(self) -> bool:
        """Whether everything is sent, or given up."""
        return not self._waiting.unfinished_tasks

    def _run(self) -> None:
        while True:
            message, recipient = self._waiting.get()
            for number in range(TRIES):
                try:  # the last time without the picture: perhaps that is what it refuses
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
        """One try; why it failed, or ""."""
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
    """A publisher before another one: passes every event on, and tells people what matters to them. `url`: the farm's
    address as people reach it."""

    def __init__(self, events: Publisher, database: Database, *, url: str = "", pause_s: float = 5.0) -> None:
        self._events, self._database, self._url, self._pause_s = events, database, url, pause_s
        self._channels: list[Channel] = []
        self._mail: Channel | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self._told: dict[int, object] = {}
        self._benched: set[int] = set()

    async def open(self, addresses: Sequence[str], mail: str) -> None:
        """Open channels: `addresses` hear of every task and machine, `mail` is for owners of tasks that ask for it.
        `InvalidRequest` names the setting that is wrong."""
        channel = partial(Channel, pause_s=self._pause_s)
        named = [(f"Notify[{place}]", url) for place, url in enumerate(addresses)]
        self._channels = [await asyncio.to_thread(channel, *one) for one in named]
        self._mail = await asyncio.to_thread(channel, "NotifyMail", mail) if mail else None

    async def close(self) -> None:
        """Give what waits a moment to be sent."""
        deadline, channels = time.monotonic() + CLOSE_S, [*self._channels, *filter(None, [self._mail])]
        while time.monotonic() < deadline:
            if not self._at_work and all(one.idle for one in channels):
                break
            await asyncio.sleep(0.02)  # threads empty the queues: there is no event to wait for

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Pass an event on, and tell of it what is to be told."""
        self._events.publish(type, data, user_id=user_id)
        if type == "machine":
            self._of_machine(data["machine_id"], data)
        elif type == "task" and data["status"] in TOLD and (self._channels or self._mail):
            if len(self._at_work) >= MOST_WAITING:
                log.warning("nobody is told of a task: too many end at once", task=data["task_id"])
                return
            work = asyncio.create_task(self._of_task(data["task_id"]))
            self._at_work.add(work)
            work.add_done_callback(self._at_work.discard)

    def _tell(self, message: Message) -> None:
        for channel in self._channels:
            channel.tell(message)

    def _of_machine(self, machine_id: int, data: dict[str, Any]) -> None:
        """Tell once that a machine is benched."""
        if not data.get("benched"):
            self._benched.discard(machine_id)
        elif machine_id not in self._benched:
            self._benched.add(machine_id)
            name, hint = tame(data["name"]), "It gets no work for a while. To end that: renderonline machine enable "
            lines = [tame(data["reason"]), hint + name, self._url]
            self._tell(Message(f"Machine {name} is benched", "\n".join(lines).strip(), good=False))

    async def _of_task(self, task_id: int) -> None:
        """Tell that a task ended, once for each end."""
        try:
            view, latest = await self._database.read(partial(_ended, task_id=task_id, everyone=bool(self._channels)))
        except RenderOnlineError as error:  # deleted meanwhile, or the database does not answer
            log.warning("nobody is told of a task", task=task_id, reason=error.message)
            return
        end = (view.status, view.end_us)
        wanted = self._channels or view.notify
        if not wanted or view.status not in TOLD or self._told.get(task_id) == end:
            return
        if len(self._told) > MOST_WAITING * 50:
            self._told.clear()
        self._told[task_id] = end
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
    """A task, and what landed last of it if `everyone`, or its owner, is told."""
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
    """A text of users and renderers: short, on one line, without what a chat takes for a call of everybody."""
    plain = "".join(one if one.isprintable() else " " for one in text[:500])
    return re.sub(r"@(?=everyone|here|channel|all\b)|<(?=[!@])", "\\g<0>\u200b", plain)
