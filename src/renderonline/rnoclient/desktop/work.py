"""What the desktop program does beside its window, in threads that know nothing of Qt: downloads, and watching.

What they have to say lies in a queue that the window empties.
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
"""Of so many of the user's newest tasks an end is told that came while the connection was cut."""
WORDS: Final = {"succeeded": "is finished", "failed": "has failed", "canceled": "was canceled"}


@dataclass(frozen=True, slots=True)
class Note:
    """Something to tell. `loud`: also when the window is not looked at."""

    text: str
    loud: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A download ended before the file was whole; `again` goes on with it."""

    text: str
    again: Callable[[], None]


Said = Note | Failed


class Work:
    """Downloads and watching for one login. `said` is read by the window; `close` ends what it can at once."""

    def __init__(self, login: Login) -> None:
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._login = login
        self._closed = threading.Event()
        self._running = 0
        self._count = threading.Lock()

    @property
    def downloads(self) -> int:
        """How many downloads run."""
        return self._running

    def close(self) -> None:
        """End the downloads; what has come stays and the next one goes on there."""
        self._closed.set()

    def download(self, path: str, target: Path) -> None:
        """Fetch `path` of RenderAPI to `target`, straight to the disk; a part that lies there is not sent again."""
        with self._count:
            self._running += 1
        threading.Thread(target=self._download, args=(path, target), name="download", daemon=True).start()

    def watch(self) -> None:
        """Tell when a task of this user ends."""
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
                self.said.put(Note(f"{target.name}: {percent} %"))

        try:
            with Client(self._login, patience_s=PATIENCE_S) as client:
                fetch(client.connection, path, target, progress=progress)
            self.said.put(Note(f"{target.name} is saved in {target.parent}.", loud=True))
        except RenderOnlineError as error:
            self.said.put(Failed(f"{target.name}: {error.message}", lambda: self.download(path, target)))
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
                    self._tell_ends(client, me)
            except RenderOnlineError:
                continue

    def _tell_ends(self, client: Client, me: int) -> None:
        """Ends that nobody saw while the connection was cut are found by comparing the lists before and after."""
        open_tasks: set[int] = set()
        for event in stream(client.connection):
            if event.type == RESYNC:
                ours = list(client.tasks(limit=LATEST))
                for task in ours:
                    if task["task_id"] in open_tasks and task["status"] in ENDED:
                        self._told(task)
                open_tasks = {task["task_id"] for task in ours if task["status"] not in ENDED}
            elif event.type == "task" and event.data["status"] in ENDED:
                task = client.task(event.data["task_id"])
                if task["user_id"] == me:
                    self._told(task)
                    open_tasks.discard(task["task_id"])

    def _told(self, task: Task) -> None:
        warned = ", with warnings" if task.get("warnings") else ""
        self.said.put(Note(f"{task['name']} {WORDS[task['status']]}{warned}.", loud=True))
