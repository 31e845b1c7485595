"""Messages to people when a task ends or a machine is benched: mail, webhooks and chat, through Apprise.

The notifier hears what the dispatcher publishes and passes it on. Each channel has a bounded queue and a thread of its
own, so that one that hangs holds up nothing else. The addresses of channels hold passwords: no log or error shows them.
"""

import asyncio
import logging
import queue
import re
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from renderonline.database import tasks
from renderonline.database.door import Connection, Database
from renderonline.database.tasks import ResultView, TaskView
from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.farm.tasks import TaskStatus
from renderonline.renderapi.events import Publisher
from renderonline.storage.landed import Compared, Member, file_pieces
from renderonline.storage.names import task_directory

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
    view = tasks.get_task(connection, task_id)
    return view, tasks.latest_result(connection, task_id) if everyone or view.notify else None


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
