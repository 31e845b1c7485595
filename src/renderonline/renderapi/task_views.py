"""What v2 answers: rows and memory as JSON, and the shapes that document it. Times are ISO 8601 in UTC.

The use cases that only look: tasks, their parts, their files, logs. Everybody sees what their role allows.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, get_type_hints

import structlog

from renderonline.database import administration_rows, listing_rows
from renderonline.database.door import Connection, Database
from renderonline.database.listing_rows import AttemptView, ChunkView, Page, ResultView, SceneFile, TaskFilter, TaskView
from renderonline.database.machine_rows import JoinCode, MachineRow
from renderonline.database.schema import frames_of
from renderonline.database.submission_rows import EngineRow
from renderonline.engines.definition import Argument, FrameArguments, parse_definition
from renderonline.farm import result_names
from renderonline.farm.accounts import Permission, Role, Subscription, User
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.needs import Needs
from renderonline.farm.result_names import FORMATS
from renderonline.farm.tasks import AttemptState, ChunkKind, ChunkState, Landed, Outcome, TaskStatus
from renderonline.protocol.existing import Info, UserInfo
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.connected_machines import Machine, Machines
from renderonline.renderapi.control import Explanations
from renderonline.renderapi.downloads import ALTERED, COMPARED, NOT_COMPARED, Content, LandedFiles, has_directory
from renderonline.renderapi.memory import Memory
from renderonline.renderapi.requests import SubmitRequest, UploadRequest
from renderonline.storage.archive import Member, members_of, results_first
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.confined import NewUpload
from renderonline.storage.images import SIZES, PreviewFiles
from renderonline.storage.names import task_directory

log = structlog.get_logger(__name__)

_TIMES: Final = {"queue_us": "queued", "start_us": "started", "end_us": "ended", "delete_us": "deletes_at"}
_OF_DEFINITION: Final = ("label", "extensions", "split", "frames", "arguments", "facts")
_HIDDEN: Final = frozenset({"file_path", "folder", "first_frame", "last_frame", "frame_step"})


def moment(us: int | None) -> str | None:
    """Microseconds since 1970 UTC as ISO 8601 with Z; None and 0 are None."""
    if not us:
        return None
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name(field: str) -> str:
    return _TIMES.get(field, field.removesuffix("_us"))


def shown_row(row: Any, **more: Any) -> dict[str, Any]:
    """A row as it is shown: every field but those that are nobody's business, a chunk's frames, and `more`."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    if "first_frame" in values:
        frames = frames_of(row.first_frame, row.last_frame, row.frame_step)
        more["frames"] = None if frames is None else str(frames)
    plain = {name: value for name, value in values.items() if name not in _HIDDEN}
    return {_name(name): moment(value) if name.endswith("_us") else value for name, value in plain.items()} | more


def _progress(view: TaskView, rendering: float) -> float:
    """`rendering`: how many frames' worth (or which part) of its chunks that run now is done."""
    if view.status is TaskStatus.SUCCEEDED:
        return 1.0
    count = view.frames_total or sum(asdict(view.chunks).values())
    done = view.frames_done if view.frames_total else view.chunks.succeeded
    return min((done + rendering) / count, 1.0) if count else 0.0


def me(principal: Principal) -> dict[str, Any]:
    return shown_row(principal.user, permissions=[one.value for one in Permission if principal.may(one)])


def engine(row: EngineRow) -> dict[str, Any]:
    """An engine, with what its definition says of files and arguments: forms are drawn from it."""
    plain = {"label": row.name, "extensions": [row.extension], "split": "none", "frames": None, "arguments": []}
    return plain | {"facts": ""} | asdict(row) | _of_definition(row)


def _of_definition(row: EngineRow) -> dict[str, Any]:
    if row.definition is None:
        return {}
    try:
        definition = parse_definition(row.definition)
    except RenderOnlineError as error:  # changed by hand
        log.warning("engine's definition can't be read", engine=row.name, reason=error.message)
        return {"problem": error.message}
    return {name: getattr(definition, name) for name in _OF_DEFINITION}


def machine(row: MachineRow, machines: Machines) -> dict[str, Any]:
    """A machine; one that the dispatcher does not know yet is away."""
    known = machines.get(row.machine_id) or Machine(row)
    return known.view() | {"created": moment(row.created_us), "seen": moment(row.seen_us)}


def shapes() -> dict[str, Any]:
    """The shapes of all answers as JSON schemas by name: made when somebody asks for the documentation."""
    from pydantic import TypeAdapter, create_model
    from pydantic.json_schema import models_json_schema

    def shape(called: str, row: type | None = None, /, **more: Any) -> Any:
        hints = {key: hint for key, hint in get_type_hints(row).items() if key not in _HIDDEN} if row else {}
        members = {_name(key): str | None if key.endswith("_us") else hint for key, hint in hints.items()} | more
        given: dict[str, Any] = {key: hint if isinstance(hint, tuple) else (hint, ...) for key, hint in members.items()}
        return create_model(called, **given)

    text, texts = str | None, list[str]
    offer: Any = shape("EngineOffer", name=str, version=str, renderers=texts)
    of_definition = {"label": str, "extensions": texts, "split": str, "frames": FrameArguments | None, "facts": str}
    slots = {"slots": int, "slots_claimed": int, "slots_allowed": int, "tags": texts, "own_tags": texts}
    at_work = {"engines": tuple[offer, ...], "attempts": list[int], **slots}
    result: Any = shape("Result", ResultView, preview=bool, integrity=str, called=str)
    part: Any = shape("UploadFile", name=str, size=int, offset=int, missing=(list[tuple[int, int]], []))
    of_scene = {"size": int, "version": str, "scenes": list[dict[str, Any]], "external": list[dict[str, Any]]}
    of_scene |= {"external_count": int, "unbaked": list[str]}
    limits = {"queue_limit": int, "keep_mib": int, "kept_bytes": int}
    address = {"kind": str, "ip_address": str, "port": int, "sandbox": str, "sandbox_advice": str}
    one = [
        shape("User", User),
        shape("Subscription", Subscription),
        shape("Engine", EngineRow, **of_definition, arguments=list[Argument]),
        shape("ArgType", ArgType),
        shape("Machine", None, machine_id=int, name=str, **address, status=str, wish=str, reason=str, **at_work),
        shape(
            "Task",
            TaskView,
            frames=text,
            progress=float,
            latest=result | None,
            integrity=text,
            missing_inputs=texts,
            stuck=text,
        ),
        shape("Chunk", ChunkView, kind=ChunkKind, state=ChunkState, frames=text),
        shape("Attempt", AttemptView, state=AttemptState, outcome=Outcome | None, frames=text, progress=float | None),
        result,
    ]
    others = [
        *(
            shape(f"{kind.__name__}s", items=list[kind], next=text)  # type: ignore[valid-type]  # a shape made here
            for kind in one
        ),
        shape("Upload", None, upload_id=str, files=list[part], complete=bool),
        shape("Me", User, role=Role, permissions=texts),
        shape("Account", User, role=Role, permissions=texts, sends_mail=bool, **limits),
        shape("UserWithToken", User, token=str),
        shape("Token", token=str),
        shape("Ticket", url=str),
        shape("Login", me=dict[str, Any] | None),
        shape("Invited", JoinCode, command=str, first=text, install=text),
        shape("SceneFacts", **of_scene, warnings=texts, missing_inputs=texts),
        shape("Inputs", scene=str, files=list[dict[str, Any]]),
        shape("Enrolled", machine_id=int, secret=str),
        shape("Reasons", reasons=texts),
        shape("Problem", type=str, title=str, status=int, detail=str, code=str),
    ]
    everything = [(kind, "serialization") for kind in (*one, *others)]
    place = "#/components/schemas/{model}"
    # Pydantic takes any type that it can describe; its signature says: models only.
    found = models_json_schema(everything, ref_template=place)[1]  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for kind in (SubmitRequest, UploadRequest, NewUpload):
        schema = TypeAdapter(kind).json_schema(ref_template=place)
        taken |= schema.pop("$defs", {}) | {kind.__name__: schema}
    return {**found["$defs"], **taken}


MAX_LOG_BYTES: Final = 16 * 1024 * 1024
_OWNERS: Final = 4096

_FILMS: Final = {f".{kind}": f"video/{kind}" for kind in FORMATS}

Show = Callable[[Any], dict[str, Any]]
Chosen = Callable[[str, int | None], bool]
_PARTS: Final[dict[str, Callable[..., Page[Any]]]] = {
    "chunks": listing_rows.list_chunks,
    "attempts": listing_rows.list_attempts,
    "results": listing_rows.list_results,
}


@dataclass(frozen=True, slots=True)
class TaskViews:
    """Answers questions about tasks; what runs now it asks the dispatcher."""

    database: Database
    memory: Memory
    explanations: Explanations
    logs: AttemptLogs
    previews: PreviewFiles
    landed: LandedFiles
    leased: Callable[[], Awaitable[None]]
    """Waits until what was submitted just now is leased and sent."""
    owners: OrderedDict[int, int] = field(default_factory=OrderedDict, init=False)

    async def healthy(self) -> bool:
        try:
            async with asyncio.timeout(3.0):
                await self.database.read(administration_rows.has_admin)
        except (RenderOnlineError, TimeoutError):
            return False
        return True

    async def info(self, principal: Principal) -> Info:
        """v1's answer: the user and their newest tasks."""
        user = principal.user
        entries = await self.database.read(partial(listing_rows.v1_newest, user_id=user.user_id))
        about = (user.user_id, user.first_name, user.last_name, user.email, user.subscription_id, user.is_active)
        return Info(UserInfo(*about), entries)

    async def tasks(
        self, principal: Principal, page: dict[str, Any], *, everybody: bool, status: str, engine: str, search: str
    ) -> dict[str, Any]:
        """A page (limit, cursor) of tasks, newest first. `everybody`: all that the role may see, not one's own only."""
        if status and status not in set(TaskStatus):
            raise InvalidRequest(f"There is no status {status}; there are {', '.join(TaskStatus)}.")
        whose = principal.tasks_of if everybody else principal.user_id
        wanted = TaskFilter(whose, TaskStatus(status) if status else None, engine, search)
        rows = await self.database.read(partial(listing_rows.list_tasks, wanted=wanted, **page))
        known: dict[tuple[str, Needs], str] = {}
        return _page(rows, lambda view: self._task(view, stuck=self.explanations.stuck(view.task_id, known)))

    async def task(self, principal: Principal, task_id: int) -> dict[str, Any]:
        """One task, with the file that landed last."""
        view = await self._view(principal, task_id)
        found = None
        if view.frames_done or view.chunks.succeeded:
            found = await self.database.read(partial(listing_rows.latest_result, task_id=task_id))
        latest = None if found is None else (await self._results(view, (found,)))[0]
        nothing_known = latest is None and view.chunks.succeeded
        integrity = NOT_COMPARED if nothing_known else ALTERED if self.landed.altered(task_id) else COMPARED
        return self._task(view, latest, self.explanations.stuck(task_id, {})) | {"integrity": integrity}

    async def submitted(self, principal: Principal, task_id: int) -> dict[str, Any]:
        """A task that was just submitted, read when its first leases are on their way: they go before the answer."""
        await self.leased()
        return await self.task(principal, task_id)

    async def parts(
        self, principal: Principal, task_id: int, what: str, limit: int, cursor: str | None, ids: Sequence[int]
    ) -> dict[str, Any]:
        """A page of a task's `chunks`, `attempts` (newest first) or `results`; `ids`: only these, () for all."""
        view = await self._view(principal, task_id)
        page = partial(_PARTS[what], task_id=task_id, limit=limit, cursor=cursor, ids=ids)
        rows = await self.database.read(page)
        if what == "results":
            return {"items": await self._results(view, rows.items), "next": rows.next}
        return _page(rows, self._attempt if what == "attempts" else shown_row)

    async def attempts(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of the whole farm's attempts, newest first: what its machines did."""
        rows = await self.database.read(partial(listing_rows.list_attempts, task_id=None, limit=limit, cursor=cursor))
        return _page(rows, self._attempt)

    async def archive(self, task_id: int, user_id: int | None, name: str, chosen: Chosen | None = None) -> Content:
        """The directory of a task as a ZIP called `name`, with the results as they are called (`results_first`); an
        adopted file that lies elsewhere is alone in it.

        `user_id`: whose task it must be, None: anybody's. `chosen`: which files (name, frame), None: all.
        """

        def read(connection: Connection) -> tuple[SceneFile, dict[str, Landed], dict[str, int | None]]:
            scene = listing_rows.scene_file(connection, task_id, user_id=user_id)
            landed = listing_rows.landed_files(connection, task_id) if has_directory(scene) else {}
            wanted = chosen is not None or scene.names
            return scene, landed, listing_rows.frame_numbers(connection, task_id) if wanted else {}

        scene, landed, frames = await self.database.read(read)
        called = await asyncio.to_thread(_called, task_id, scene.names, frames)
        own = {shown: name for name, shown in called.items()}

        def find() -> Sequence[Member]:
            if not has_directory(scene):
                path = Path(scene.file_path)
                return (Member.of(path.name, path),)
            members = members_of(task_directory(scene.file_path, scene.file_name), landed)
            members = results_first(members, scene.results_in, called)
            if chosen is None:
                return members
            names = ((one, own.get(one.name, one.name)) for one in members)
            found = [one for one, its in names if chosen(one.name, frames.get(its)) or chosen(its, frames.get(its))]
            if not found:
                raise NotFound(f"Task {task_id} has no such files yet.")
            return found

        return await self.landed.archive(task_id, find, name, own)

    async def result_file(self, principal: Principal, task_id: int, name: str) -> Content:
        scene = await self._scene_file(principal, task_id)
        place, known = await self.database.read(partial(listing_rows.landed_file, task_id=task_id, name=name))
        path = task_directory(scene.file_path, scene.file_name) / place
        content = await self.landed.file(task_id, path, name, known)
        if scene.names:
            frames = await self.database.read(partial(listing_rows.frame_numbers, task_id=task_id, name=name))
            shown = result_names.called(scene.names, task_id, name, frames.get(name))
            content = replace(content, file_name=shown.rpartition("/")[2])
        return replace(content, media_type=_FILMS.get(path.suffix, content.media_type))  # players ask for nothing else

    async def accept(self, principal: Principal, task_id: int, names: Collection[str] = ()) -> None:
        """`LandedFiles.accept`, for a task that they may see."""
        await self._scene_file(principal, task_id)
        await self.landed.accept(task_id, names)

    async def preview(self, principal: Principal, task_id: int, name: str, size: str) -> tuple[bytes, str]:
        """The preview of a result, and what tells it from one that takes its place (an ETag). `NotFound` when there is
        none, or the task is not theirs."""
        if task_id not in self.owners:  # a grid asks for hundreds of a task, whose owner never changes
            self.owners[task_id] = (await self._scene_file(principal, task_id)).user_id
            if len(self.owners) > _OWNERS:
                self.owners.popitem(last=False)
        if principal.tasks_of not in (None, self.owners[task_id]):
            raise NotFound(f"Task {task_id} does not exist.")
        path = self.previews.path(task_id, name, checked_size(size))
        try:
            return await asyncio.to_thread(_read_preview, path)
        except OSError:
            raise NotFound(f"There is no preview of {name[:200]}.") from None

    async def log(self, principal: Principal, attempt_id: int, offset: int) -> tuple[bytes, int]:
        """An attempt's log from byte `offset`, and where it ends now."""
        view = await self.database.read(partial(listing_rows.get_attempt, attempt_id=attempt_id))
        if principal.tasks_of not in (None, view.user_id):
            raise NotFound(f"There is no attempt {attempt_id}.")
        return await asyncio.to_thread(_read_log, self.logs, attempt_id, offset)

    async def _view(self, principal: Principal, task_id: int) -> TaskView:
        return await self.database.read(partial(listing_rows.get_task, task_id=task_id, user_id=principal.tasks_of))

    async def _scene_file(self, principal: Principal, task_id: int) -> SceneFile:
        return await self.database.read(partial(listing_rows.scene_file, task_id=task_id, user_id=principal.tasks_of))

    def _task(self, view: TaskView, latest: dict[str, Any] | None = None, stuck: str = "") -> dict[str, Any]:
        """A task, of whose files `integrity` is not known here. `latest`: the file that landed last, where it was
        looked for; `stuck`: why nothing of it can start."""
        # Of each live attempt the frame that is being rendered: whole frames are counted when they have landed.
        live = [(one.progress, one.frames) for one in self.memory.attempts_of(view.task_id)]
        rendering = sum(now.fraction * len(frames) % 1.0 if frames else now.fraction for now, frames in live if now)
        progress, missing = round(_progress(view, rendering), 4), view.facts.get("missing_inputs", [])
        more = {"latest": latest, "integrity": None, "missing_inputs": missing, "stuck": stuck or None}
        return shown_row(view, frames=view.frames or None, progress=progress, **more)

    async def _results(self, task: TaskView, found: Sequence[ResultView]) -> list[dict[str, Any]]:
        task_id = task.task_id
        previews = self.previews
        previewed = await asyncio.to_thread(previews.there, [(task_id, view.name) for view in found])

        def shown(view: ResultView) -> dict[str, Any]:
            frame = view.of_frame if view.frame is None else view.frame
            return shown_row(
                view,
                preview=(task_id, view.name) in previewed,
                integrity=self.landed.integrity(task_id, view.name, view.digest),
                called=result_names.called(task.names, task_id, view.name, frame),
            )

        return [shown(view) for view in found]

    def _attempt(self, view: AttemptView) -> dict[str, Any]:
        live = self.memory.attempts.get(view.attempt_id)
        known = live.progress.fraction if live is not None and live.progress else None
        return shown_row(view, progress=1.0 if view.outcome == Outcome.SUCCEEDED else known)


def _called(task_id: int, template: str | None, frames: Mapping[str, int | None]) -> dict[str, str]:
    """What each result of a task is called when it leaves the farm, by its own name; {} where all keep theirs."""
    if not template:
        return {}
    ordered = sorted(frames, key=lambda name: (frames[name] is None, name))
    return result_names.distinct((name, result_names.called(template, task_id, name, frames[name])) for name in ordered)


def _page(rows: Page[Any], show: Show) -> dict[str, Any]:
    return {"items": [show(row) for row in rows.items], "next": rows.next}


def checked_size(size: str) -> str:
    if size not in SIZES:
        raise InvalidRequest(f"size is one of {', '.join(SIZES)}.")
    return size


def _read_preview(path: Path) -> tuple[bytes, str]:
    with open(path, "rb") as file:
        about = path.stat()
        return file.read(), f'"{about.st_mtime_ns:x}-{about.st_size:x}"'


def _read_log(logs: AttemptLogs, attempt_id: int, offset: int) -> tuple[bytes, int]:
    found = bytearray()
    while len(found) < MAX_LOG_BYTES:
        part = logs.read(attempt_id, offset)
        if not part.data:
            return bytes(found), max(part.size, offset)
        if part.offset > offset:
            found += f"\n[… {part.offset - offset} bytes are not kept …]\n".encode()
        found += part.data
        offset = part.next
    return bytes(found), offset
