"""The farm as Python calls: `Client(Login(url, email, token)).submit("scene.blend", frames="1-24")`.

The calls for operators and administrators: users, subscriptions, engines, argtypes, machines.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import quote, urlencode

from renderonline.farm import result_names
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.rnoclient.sdk import connection, unpacking, uploading
from renderonline.rnoclient.sdk.connection import ENDED, Connection, Item, Login, Owners, Progress, Task

PAGE: Final = 500
MANY: Final = 16
"""From this many missing results on they arrive as one ZIP, if they are most of a task's bytes."""
REFRESH_S: Final = 0.25
"""The shortest time between two looks at a watched task."""
WATCH_PATIENCE_S: Final = 60.0
LARGE: Final = 4 * 1024 * 1024
"""Bytes; smaller single files go with the submission, in one request."""


class Client:
    """Everything that a user can do, over `/renderapi/v2`. One thread at a time; raises `RenderOnlineError`s.

    `admin` has the calls for operators and administrators. What only reads is tried again for `patience_s`.
    `upload` says how files are sent; by default in the best way for this computer.
    """

    def __init__(self, login: Login, *, patience_s: float = 5.0, upload: uploading.UploadOptions | None = None) -> None:
        self.connection = Connection(login, patience_s=patience_s)
        self._upload = upload
        self.admin = Admin(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()

    def me(self) -> Item:
        """The account whose e-mail and token are used."""
        return cast("Item", self.connection.call("GET", "/me").json())

    def submit(
        self,
        file: str | Path,
        *,
        engine: str,
        scene: str = "",
        inputs: Mapping[str, str | Path] | None = None,
        unpack: bool = False,
        arguments: Mapping[str, str] | None = None,
        frames: str | None = None,
        name: str = "",
        priority: int = 50,
        chunk_size: int = 0,
        paused: bool = False,
        waits_for: Sequence[int] = (),
        notify: bool = False,
        needs: Mapping[str, object] | None = None,
        running_limit: int = 0,
        film: str = "",
        strict: bool = False,
        names: str = "",
        deliver: str = "",
        progress: Progress | None = None,
    ) -> Task:
        """Send a scene and put it into the queue; the task exists once, however often the network fails
        (R4.1 Submit once).

        The keys of `inputs` are names on the farm, its values paths here. `scene` is the scene's name on the farm,
        perhaps in folders (`shots/a.blend`; default: the file's name). `unpack`: the farm unpacks the file, a ZIP, and
        `scene` is the scene's name in it ("" when only one file can be it).

        `frames` is a range such as `1-24` or `1-100x5,200`; with `chunk_size` 0 the farm cuts it. `notify`: send a mail
        when the task ends. `needs`: what machines must have besides the engine (engine_version, tags, pool, memory_mib,
        gpus, gpu_memory_mib, sandbox). `running_limit`: how many chunks run at once (0: any number). `film`: make one
        of the frames at the end, such as `mp4` or `webm@25`. `strict`: raise `InvalidRequest` (`strict`) when a file
        that the scene needs is missing, or for anything else that would be a warning; what turns out later is a
        failure. `names`: what results are called when they leave the farm, such as `{scene}/{name}_{frame:04}`.
        `deliver`: a directory that the farm's administrator named, and folders in it, to which results are copied
        (`nas/sh010`). The first call of `progress` has the bytes that the farm has already.
        """
        request: dict[str, object] = {"engine": engine, "arguments": dict(arguments or {}), "frames": frames}
        request |= {"name": name, "priority": priority, "chunk_size": chunk_size, "paused": paused, "notify": notify}
        request |= {"waits_for": list(waits_for), "needs": dict(needs or {}), "running_limit": running_limit}
        others = {"film": film, "strict": strict, "names": names, "deliver": deliver, "unpack": unpack}
        request |= {key: value for key, value in others.items() if value}
        path = Path(file)
        main = scene or ("" if unpack else path.name)
        files = {path.name if unpack else main: path, **{place: Path(other) for place, other in (inputs or {}).items()}}
        alone = len(files) == 1 and main == path.name
        if not alone or connection.size_of(path) >= LARGE:
            try:
                self._upload = self._upload or uploading.default_options()
                sent = uploading.submit(self.connection, {**request, "scene": main}, files, self._upload, progress)
                return cast("Task", sent.json())
            except InvalidRequest as error:
                if error.reason_code != "bad_name" or not alone:
                    raise  # the name of a single file is made fit by the farm
        return cast("Task", uploading.submit_file(self.connection, request, path, progress).json())

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
        found = self._pages("/tasks", query, min(PAGE, limit or PAGE))
        return cast("Iterator[Task]", islice(found, limit))

    def task(self, task_id: int) -> Task:
        """One task."""
        return cast("Task", self.connection.call("GET", f"/tasks/{task_id:d}").json())

    def attempts(self, task_id: int) -> Iterator[Item]:
        """Every try of every chunk."""
        return self._pages(f"/tasks/{task_id:d}/attempts")

    def results(self, task_id: int) -> Iterator[Item]:
        """The files that have landed, each with its `digest` (BLAKE2b-256 in hex)."""
        return self._pages(f"/tasks/{task_id:d}/results")

    def explain(self, task_id: int) -> list[Any]:
        """Why the task is not running (or not faster), in plain words."""
        return list(self.connection.call("GET", f"/tasks/{task_id:d}/explain").json()["reasons"])

    def cancel(self, task_id: int) -> Task:
        """Take the task from the queue and stop what runs of it."""
        return self._act(task_id, "cancel")

    def pause(self, task_id: int, *, now: bool = False) -> Task:
        """Start nothing new of the task; what runs goes on, or with `now` is stopped and waits."""
        return self._act(task_id, "pause?now=1" if now else "pause")

    def resume(self, task_id: int) -> Task:
        """Undo `pause`."""
        return self._act(task_id, "resume")

    def retry(self, task_id: int) -> Task:
        """Render again what failed or was canceled."""
        return self._act(task_id, "retry")

    def requeue(self, task_id: int, *, frames: str = "", chunks: Sequence[int] = ()) -> Task:
        """Render the task again, or only some frames (a range) and chunks; old results stay until they are replaced."""
        return self._act(task_id, "requeue", {"frames": frames, "chunks": list(chunks)})

    def accept(self, task_id: int, names: Sequence[str] = ()) -> Task:
        """Take files that somebody changed on the server, or that have no digest, as they are: these, or all
        (operators)."""
        return self._act(task_id, "accept", {"names": list(names)})

    def film(self, task_id: int, film: str = "mp4") -> Task:
        """Have a film (`mp4`, `webm@25`) made of the frames that are there, and another one when the task has ended."""
        return self._act(task_id, "film", {"film": film})

    def change(self, task_id: int, **changes: str | int | None) -> Task:
        """Change `name` ("": the file's), `priority` or `running_limit` (chunks at once; 0: no limit)."""
        data = {name: value for name, value in changes.items() if value is not None}
        return cast("Task", self.connection.call("PATCH", f"/tasks/{task_id:d}", data=data).json())

    def delete(self, task_id: int) -> None:
        """Stop the task and delete it with all its files."""
        self.connection.call("DELETE", f"/tasks/{task_id:d}")

    def log(self, attempt_id: int, offset: int = 0) -> tuple[str, int]:
        """The log of an attempt from byte `offset`, and the offset to go on from."""
        reply = self.connection.call("GET", f"/attempts/{attempt_id:d}/log", query={"offset": offset})
        size = reply.headers.get("x-log-size", "")
        end = int(size) if size.isdecimal() else offset + len(reply.body)
        return reply.body.decode("utf-8", "replace"), max(end, offset)

    def watch(self, task_id: int) -> Iterator[Task]:
        """The task now and after each change, ending with the first state in which it has ended.

        Once it has begun, it goes on over `WATCH_PATIENCE_S` without RenderAPI (a restart).
        """
        shown, looked = self.task(task_id), time.monotonic()
        yield shown
        if shown["status"] in ENDED:
            return
        for event in connection.stream(self.connection, patience_s=WATCH_PATIENCE_S):
            now = time.monotonic()
            concerns = event.type == connection.RESYNC or event.data.get("task_id") == task_id
            if not concerns or (event.type == "progress" and now - looked < REFRESH_S):
                continue
            looked = now
            task = self.connection.patiently(lambda: self.task(task_id), patience_s=WATCH_PATIENCE_S)
            if task != shown:
                yield task
            if task["status"] in ENDED:
                return
            shown = task

    def download_zip(
        self,
        task_id: int,
        target: str | Path,
        *,
        frames: str = "",
        names: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Path:
        """The task's scene and results as one ZIP file; resumed where an earlier call was cut.

        With `frames` (a range) or `names` (* and ? stand for anything) only the files that are one of these.
        """
        query = urlencode([("frames", frames)] * bool(frames) + [("name", name) for name in names])
        path = f"/tasks/{task_id:d}/download" + (f"?{query}" if query else "")
        return connection.fetch(self.connection, path, Path(target), progress=progress)

    def download_results(
        self,
        task_id: int,
        directory: str | Path,
        *,
        wanted: Callable[[Item], bool] = lambda _result: True,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Path]:
        """The results as files below `directory`; those that are there already (same digest) are not sent again.

        Only those that are `wanted`. `progress` is called with the files done and the files in all. `Conflict` when
        files are there that were not downloaded from this task; nothing is fetched then, unless `overwrite` is set.
        """
        everything = list(self.results(task_id))
        if not everything:
            raise NotFound(f"Task {task_id} has no results yet; watch it with `renderonline watch {task_id}`.")
        found = [result for result in everything if wanted(result)]
        if not found:
            raise NotFound(f"None of the {len(everything)} results of task {task_id} is among the wanted ones.")
        root, called = Path(directory), _called(everything)
        targets = {result["name"]: connection.safe_path(root, called[result["name"]]) for result in found}
        digests = {name: connection.digest_of(target) for name, target in targets.items()}
        left = {result["name"] for result in found if digests[result["name"]] != result["digest"]}
        owners, owner = Owners(root), f"task {task_id} of {self.connection.login.url}"
        if not overwrite:
            owners.refuse_others([(called[name], digests[name]) for name in left if digests[name]], owner)
        missing = {called[one["name"]]: one for one in found if one["name"] in left}
        fetched = []

        def landed(shown: str) -> None:
            fetched.append((shown, missing.pop(shown)["digest"]))
            if progress is not None:
                progress(len(found) - len(missing), len(found))

        try:
            if len(missing) >= MANY and 2 * _bytes(missing.values()) >= _bytes(everything):
                files = {
                    shown: unpacking.Wanted(targets[one["name"]], one["size"], one["digest"])
                    for shown, one in missing.items()
                }
                unpacking.unpack(self.connection, f"/tasks/{task_id:d}/download?results=1", files, landed)
            for shown, result in list(missing.items()):
                path = f"/tasks/{task_id:d}/results/{quote(result['name'])}"
                connection.fetch(self.connection, path, targets[result["name"]], digest=result["digest"])
                landed(shown)
        finally:
            owners.remember(fetched, owner)
        return list(targets.values())

    def _act(self, task_id: int, what: str, data: object = None) -> Task:
        return cast("Task", self.connection.call("POST", f"/tasks/{task_id:d}/{what}", data=data).json())

    def _pages(self, path: str, query: Mapping[str, object] | None = None, size: int = PAGE) -> Iterator[Item]:
        cursor: object = None
        while True:
            page = self.connection.call("GET", path, query={**(query or {}), "limit": size, "cursor": cursor}).json()
            yield from page["items"]
            cursor = page.get("next")
            if not cursor or not page["items"]:
                return


def _bytes(results: Iterable[Item]) -> int:
    return sum(result["size"] for result in results)


def _called(results: Sequence[Item]) -> dict[str, str]:
    """What each result is called here, by its name on the farm; no two alike."""

    def order(result: Item) -> tuple[bool, str]:
        frame = result.get("of_frame") if result.get("frame") is None else result["frame"]
        return frame is None, result["name"]

    ordered = sorted(results, key=order)
    return result_names.distinct((result["name"], result.get("called") or result["name"]) for result in ordered)


class Admin:
    """Administration over `/renderapi/v2`; `NotAllowed` for those who may not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def users(self) -> list[Item]:
        """All accounts."""
        return self._list("/users")

    def add_user(self, **fields: object) -> Item:
        """A new account: email, first_name, last_name, subscription_id, role. The answer may carry its token."""
        return self._send("POST", "/users", fields)

    def change_user(self, user_id: int, **fields: object) -> Item:
        """Change some fields of an account."""
        return self._send("PATCH", f"/users/{user_id:d}", fields)

    def new_token(self, user_id: int) -> str:
        """A new token for the account; the old one ends. It is shown once and stored as a hash (R12 Tokens)."""
        return str(self._send("POST", f"/users/{user_id:d}/token")["token"])

    def log_out(self, user_id: int) -> None:
        """End the account's token, sessions and event streams; it can do nothing until it gets a new token."""
        self._connection.call("POST", f"/users/{user_id:d}/logout")

    def subscriptions(self) -> list[Item]:
        """All subscriptions."""
        return self._list("/subscriptions")

    def add_subscription(self, **fields: object) -> Item:
        """A new subscription: name, queue_limit, share, running_limit, keep_days, keep_mib, names."""
        return self._send("POST", "/subscriptions", fields)

    def change_subscription(self, subscription_id: int, **fields: object) -> Item:
        """Change some fields of a subscription."""
        return self._send("PATCH", f"/subscriptions/{subscription_id:d}", fields)

    def engines(self) -> list[Item]:
        """All engines of the farm."""
        return self._list("/engines")

    def add_engine(self, definition: str, download_path: str | None = None) -> Item:
        """A new engine from the text of its TOML definition."""
        return self._send("POST", "/engines", {"definition": definition, "download_path": download_path})

    def change_engine(self, engine_id: int, **fields: object) -> Item:
        """Change an engine: definition, download_path, is_enabled."""
        return self._send("PATCH", f"/engines/{engine_id:d}", fields)

    def remove_engine(self, engine_id: int) -> None:
        """Remove an engine that no task uses."""
        self._connection.call("DELETE", f"/engines/{engine_id:d}")

    def argtypes(self) -> list[Item]:
        """All types of arguments."""
        return self._list("/argtypes")

    def put_argtype(self, argtype_id: str, argtype: str, regex: str | None = None) -> Item:
        """Make or replace an argtype."""
        return self._send("PUT", f"/argtypes/{quote(argtype_id, safe='')}", {"type": argtype, "regex": regex})

    def remove_argtype(self, argtype_id: str) -> None:
        """Remove an argtype."""
        self._connection.call("DELETE", f"/argtypes/{quote(argtype_id, safe='')}")

    def machines(self) -> list[Item]:
        """All machines and what they do now."""
        return self._list("/machines")

    def add_machine(self, ip_address: str, port: int) -> Item:
        """A machine that speaks v1, by its address; linked machines join by themselves (`invite`)."""
        return self._send("POST", "/machines", {"ip_address": ip_address, "port": port})

    def change_machine(self, machine_id: int, **fields: object) -> Item:
        """Change a machine: wish (active, draining, disabled), name, reason, tags (list), pool, hours, slots_allowed
        (0: four, or its cores if fewer)."""
        return self._send("PATCH", f"/machines/{machine_id:d}", fields)

    def remove_machine(self, machine_id: int) -> None:
        """Forget a machine; its secret is worth nothing afterwards."""
        self._connection.call("DELETE", f"/machines/{machine_id:d}")

    def restart_machine(self, machine_id: int) -> None:
        """Have a linked machine's program end after its work; its service starts it again, perhaps a newer one."""
        self._connection.call("POST", f"/machines/{machine_id:d}/restart")

    def invite(self, uses: int = 1, hours: float = 24, slots: int = 0) -> Item:
        """A code with which machines join: {code, expires, command, first, install}. `slots`: how many each of them may
        have; 0: four, or its cores if fewer. `first`: what must be changed before others reach the farm; `install`:
        where pip finds this version of the program; both null for nothing."""
        about = {"uses": uses, "hours": hours, **({"slots": slots} if slots else {})}
        return self._send("POST", "/machines/invite", about)

    def _list(self, path: str) -> list[Item]:
        return cast("list[Item]", self._connection.call("GET", path).json()["items"])

    def _send(self, method: str, path: str, data: object = None) -> Item:
        return cast("Item", self._connection.call(method, path, data=data).json())
