"""The farm as Python calls: `Client(Login(url, email, token)).submit("scene.blend", frames="1-24")`."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import quote

from renderonline.farm.errors import NotFound
from renderonline.rnoclient.sdk import downloads, events, uploads
from renderonline.rnoclient.sdk.admin import Admin
from renderonline.rnoclient.sdk.connection import Connection, Login
from renderonline.rnoclient.sdk.events import RESYNC, Event
from renderonline.rnoclient.sdk.types import ENDED, Attempt, Item, Result, Task

PAGE: Final = 200
REFRESH_S: Final = 0.25
"""The shortest time between two looks at a watched task."""
WATCH_PATIENCE_S: Final = 60.0


class Client:
    """Everything that a user can do, over `/renderapi/v2`. One thread at a time; `farm.errors` classes are raised.

    `admin` has the calls for operators and administrators.
    """

    def __init__(self, login: Login, *, timeout_s: float = 30.0, patience_s: float = 5.0) -> None:
        self.connection = Connection(login, timeout_s=timeout_s, patience_s=patience_s)
        self.admin = Admin(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the network go."""
        self.connection.close()

    def me(self) -> Item:
        """The account whose e-mail and token are used."""
        return cast("Item", self.connection.call("GET", "/me").json())

    def submit(
        self,
        file: str | Path,
        *,
        engine: str,
        arguments: Mapping[str, str] | None = None,
        frames: str | None = None,
        name: str = "",
        priority: int = 50,
        chunk_size: int = 0,
        paused: bool = False,
        waits_for: Sequence[int] = (),
        key: str | None = None,
        progress: uploads.Progress | None = None,
    ) -> Task:
        """Send a scene and put it into the queue; the task exists once, also when the call is repeated (R4).

        `frames` is a range such as `1-24` or `1-100x5,200`; `chunk_size` 0 leaves the cutting to the farm; `key`
        (made here if not given) is what tells a repeated submission from a second one.
        """
        request = {
            "engine": engine,
            "arguments": dict(arguments or {}),
            "frames": frames,
            "name": name,
            "priority": priority,
            "chunk_size": chunk_size,
            "paused": paused,
            "waits_for": list(waits_for),
        }
        reply = uploads.send_file(
            self.connection,
            "/tasks",
            request=request,
            file=Path(file),
            key=key or str(uuid.uuid4()),
            progress=progress,
        )
        return cast("Task", reply.json())

    def tasks(
        self,
        *,
        status: str | None = None,
        engine: str | None = None,
        search: str | None = None,
        everybody: bool = False,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """Tasks, newest first, page by page; `limit` ends the list, `everybody` needs an operator."""
        query = {"status": status, "engine": engine, "search": search, "all": "1" if everybody else None}
        return cast("Iterator[Task]", self._pages("/tasks", query, limit))

    def task(self, task_id: int) -> Task:
        """One task."""
        return cast("Task", self.connection.call("GET", f"/tasks/{task_id:d}").json())

    def chunks(self, task_id: int) -> Iterator[Item]:
        """The pieces that the task was cut into."""
        return self._pages(f"/tasks/{task_id:d}/chunks")

    def attempts(self, task_id: int) -> Iterator[Attempt]:
        """Every try of every chunk."""
        return cast("Iterator[Attempt]", self._pages(f"/tasks/{task_id:d}/attempts"))

    def results(self, task_id: int) -> Iterator[Result]:
        """The files that have landed."""
        return cast("Iterator[Result]", self._pages(f"/tasks/{task_id:d}/results"))

    def explain(self, task_id: int) -> list[Any]:
        """Why the task is not running (or not faster), in plain words."""
        return list(self.connection.call("GET", f"/tasks/{task_id:d}/explain").json()["reasons"])

    def cancel(self, task_id: int) -> Task:
        """Take the task from the queue and stop what runs of it."""
        return self._act(task_id, "cancel")

    def pause(self, task_id: int) -> Task:
        """Start nothing new of the task."""
        return self._act(task_id, "pause")

    def resume(self, task_id: int) -> Task:
        """Undo `pause`."""
        return self._act(task_id, "resume")

    def retry(self, task_id: int) -> Task:
        """Render again what failed or was canceled."""
        return self._act(task_id, "retry")

    def delete(self, task_id: int) -> None:
        """Stop the task and delete it with all its files."""
        self.connection.call("DELETE", f"/tasks/{task_id:d}")

    def log(self, attempt_id: int, offset: int = 0) -> tuple[str, int]:
        """The log of an attempt from byte `offset`, and the offset to go on from."""
        reply = self.connection.call("GET", f"/attempts/{attempt_id:d}/log", query={"offset": offset})
        size = reply.headers.get("x-log-size", "")
        end = int(size) if size.isdecimal() else offset + len(reply.body)
        return reply.body.decode("utf-8", "replace"), max(end, offset)

    def events(self, last_id: str = "") -> Iterator[Event]:
        """Everything that happens on the farm and may be seen, for ever, resumed after every break."""
        return (event for event in events.stream(self._beside(), last_id=last_id) if event.type)

    def watch(
        self, task_id: int, *, on_event: Callable[[Event], None] | None = None, timeout_s: float | None = None
    ) -> Iterator[Task]:
        """The task now and after each change, ending with the first state in which it has ended.

        `on_event` gets the events of this task as they come (results, progress). Once it has begun, it goes on over
        `WATCH_PATIENCE_S` without RenderAPI (a restart). `TimeoutError` after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        shown, looked = self.task(task_id), time.monotonic()
        yield shown
        if shown["status"] in ENDED:
            return
        for event in events.stream(self._beside(), patience_s=WATCH_PATIENCE_S):
            if event.type not in {RESYNC, ""} and event.data.get("task_id") == task_id and on_event is not None:
                on_event(event)
            now = time.monotonic()
            if deadline is not None and now > deadline:
                raise TimeoutError(f"Task {task_id} has not ended after {timeout_s:g} s.")
            if not _concerns(event, task_id) or (event.type == "progress" and now - looked < REFRESH_S):
                continue
            task, looked = self._look(task_id), now
            if task != shown:
                yield task
            if task["status"] in ENDED:
                return
            shown = task

    def _look(self, task_id: int) -> Task:
        found = self.connection.patiently(lambda: self.task(task_id), patience_s=WATCH_PATIENCE_S)
        return cast("Task", found)

    def download_zip(self, task_id: int, target: str | Path, *, progress: downloads.Progress | None = None) -> Path:
        """The task's scene and results as one ZIP file; resumed where an earlier call was cut."""
        return downloads.fetch(self.connection, f"/tasks/{task_id:d}/download", Path(target), progress=progress)

    def download_results(
        self,
        task_id: int,
        directory: str | Path,
        *,
        progress: Callable[[Result, int, int], None] | None = None,
    ) -> list[Path]:
        """The results as files below `directory`; those that are there already (same digest) are not sent again."""
        paths = []
        found = list(self.results(task_id))
        if not found:
            raise NotFound(f"Task {task_id} has no results yet; watch it with `renderonline watch {task_id}`.")
        for number, result in enumerate(found, 1):
            target = downloads.safe_path(Path(directory), result["name"])
            if not downloads.is_complete(target, result["size"], result["digest"]):
                path = f"/tasks/{task_id:d}/results/{quote(result['name'])}"
                downloads.fetch(self.connection, path, target, digest=result["digest"])
            paths.append(target)
            if progress is not None:
                progress(result, number, len(found))
        return paths

    def _act(self, task_id: int, what: str) -> Task:
        return cast("Task", self.connection.call("POST", f"/tasks/{task_id:d}/{what}").json())

    def _pages(self, path: str, query: Mapping[str, object] | None = None, limit: int | None = None) -> Iterator[Item]:
        cursor: object = None
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = self.connection.call("GET", path, query={**(query or {}), "limit": size, "cursor": cursor}).json()
            items = page["items"] if left is None else page["items"][:left]
            yield from items
            cursor = page.get("next")
            left = None if left is None else left - len(items)
            if not cursor or not items:
                return

    def _beside(self) -> Connection:
        """A connection for what lasts long, so that other calls go on in between."""
        return Connection(self.connection.login, patience_s=self.connection.patience_s)


def _concerns(event: Event, task_id: int) -> bool:
    """Whether the task may have changed; keep-alives are a reason to look as well."""
    return event.type in {RESYNC, ""} or event.data.get("task_id") == task_id
