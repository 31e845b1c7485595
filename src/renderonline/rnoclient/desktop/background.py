"""Background work of the desktop program, in threads without Qt: downloads, and watching for tasks that end.

Their messages are put into a queue that the window empties.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from renderonline.farm.errors import RenderOnlineError
from renderonline.rnoclient.sdk import Client, Login
from renderonline.rnoclient.sdk.events import RESYNC, stream
from renderonline.rnoclient.sdk.transfers import fetch
from renderonline.rnoclient.sdk.types import ENDED, Task

PATIENCE_S: Final = 60.0
LATEST: Final = 500
"""How many of the user's newest tasks are checked for ends that came while the connection was down."""
WORDS: Final = {"succeeded": "is finished", "failed": "has failed", "canceled": "was canceled"}


@dataclass(frozen=True, slots=True)
class Message:
    """A message for the user. `loud`: it is also shown while the window is hidden."""

    text: str
    loud: bool = False


@dataclass(frozen=True, slots=True)
class FailedDownload:
    """A download that ended before the file was complete; `again` resumes it."""

    text: str
    again: Callable[[], None]


class Background:
    """Downloads and watching for one login. The window reads `messages`."""

    def __init__(self, login: Login) -> None:
        self.messages: queue.SimpleQueue[Message | FailedDownload] = queue.SimpleQueue()
        self._login = login
        self._closed = threading.Event()
        self._running = 0
        self._count = threading.Lock()

    @property
    def downloads(self) -> int:
        """The number of running downloads."""
        return self._running

    def close(self) -> None:
        """Stop the downloads; the parts stay, and a later download resumes them."""
        self._closed.set()

    def download(self, path: str, target: Path) -> None:
        """Fetch `path` of RenderAPI to `target`; a part that is there already is not sent again."""
        with self._count:
            self._running += 1
        threading.Thread(target=self._download, args=(path, target), name="download", daemon=True).start()

    def watch(self) -> None:
        """Report when a task of this user ends."""
        threading.Thread(target=self._watch, name="events", daemon=True).start()

    def _download(self, path: str, target: Path) -> None:
        shown = -1

        def progress(done: int, size: int) -> None:
            nonlocal shown
            if self._closed.is_set():
                raise KeyboardInterrupt
            percent = done * 100 // size if size > 0 else 0
            if percent != shown:
                shown = percent
                self.messages.put(Message(f"{target.name}: {percent} %"))

        try:
            with Client(self._login, patience_s=PATIENCE_S) as client:
                fetch(client.connection, path, target, progress=progress)
            self.messages.put(Message(f"{target.name} is saved in {target.parent}.", loud=True))
        except RenderOnlineError as error:
            self.messages.put(FailedDownload(f"{target.name}: {error.message}", lambda: self.download(path, target)))
        except KeyboardInterrupt:
            return
        finally:
            with self._count:
                self._running -= 1

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            try:
                with Client(self._login, patience_s=PATIENCE_S) as client:
                    me = int(client.me()["user_id"])
                    self._report_ends(client, me)
            except RenderOnlineError:
                continue

    def _report_ends(self, client: Client, me: int) -> None:
        """Ends that were missed while the connection was down are found by comparing the lists before and after."""
        open_tasks: set[int] = set()
        for event in stream(client.connection):
            if event.type == RESYNC:
                ours = list(client.tasks(limit=LATEST))
                for task in ours:
                    if task["task_id"] in open_tasks and task["status"] in ENDED:
                        self._report(task)
                open_tasks = {task["task_id"] for task in ours if task["status"] not in ENDED}
            elif event.type == "task" and event.data["status"] in ENDED:
                task = client.task(event.data["task_id"])
                if task["user_id"] == me:
                    self._report(task)
                    open_tasks.discard(task["task_id"])

    def _report(self, task: Task) -> None:
        warned = ", with warnings" if task.get("warnings") else ""
        self.messages.put(Message(f"{task['name']} {WORDS[task['status']]}{warned}.", loud=True))
