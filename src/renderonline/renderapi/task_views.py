"""What v2 answers: rows and memory as JSON. Times are ISO 8601 in UTC.

The use cases that only look: tasks, their parts, their files, logs, and why nothing happens. Everybody sees what their
role allows.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.database import administration_rows, control_rows, listing_rows
from renderonline.database.door import Connection, Database
from renderonline.database.listing_rows import AttemptView, Page, ResultView, SceneFile, TaskFilter, TaskView
from renderonline.database.machine_rows import MachineRow
from renderonline.database.queue_rows import QueuedTask
from renderonline.database.submission_rows import EngineRow
from renderonline.engines.definition import parse_definition
from renderonline.farm import result_names
from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.needs import Needs, unmet
from renderonline.farm.ready import Signature
from renderonline.farm.result_names import FORMATS
from renderonline.farm.scheduling import Allowance
from renderonline.farm.settling import advice
from renderonline.farm.tasks import Landed, Outcome, TaskStatus
from renderonline.protocol.existing import Info, UserInfo
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.connected_machines import Machine, Machines, offered
from renderonline.renderapi.downloads import ALTERED, COMPARED, NOT_COMPARED, Content, LandedFiles, has_directory
from renderonline.renderapi.memory import Clocks, Memory
from renderonline.storage.archive import Member, members_of, results_first
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.images import SIZES, PreviewFiles
from renderonline.storage.names import task_directory

log = structlog.get_logger(__name__)

_TIMES: Final = {"queue_us": "queued", "start_us": "started", "end_us": "ended", "delete_us": "deletes_at"}
_OF_DEFINITION: Final = ("label", "extensions", "split", "frames", "arguments", "facts")
HIDDEN: Final = frozenset({"file_path", "folder"})


def moment(us: int | None) -> str | None:
    """Microseconds since 1970 UTC as ISO 8601 with Z; None and 0 are None."""
    if not us:
        return None
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown_name(field: str) -> str:
    """What a row's field is called in answers."""
    return _TIMES.get(field, field.removesuffix("_us"))


def shown_row(row: Any, **more: Any) -> dict[str, Any]:
    """A row as it is shown: every field but those that are nobody's business, and `more`."""
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.name not in HIDDEN}
    return {shown_name(name): moment(value) if name.endswith("_us") else value for name, value in values.items()} | more


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


_ENDED: Final = {
    TaskStatus.SUCCEEDED: "It succeeded.",
    TaskStatus.FAILED: "It failed.",
    TaskStatus.CANCELED: "It was canceled.",
}
_BUSY: Final = "it is busy"
_NAMED: Final = 5
"""The number of machines that are named at most for one reason."""

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


class Explanations:
    """Says why tasks are where they are, from what memory knows now: the plan's twin, which says what the plan does not
    see in a task (R9 Scheduling)."""

    def __init__(self, memory: Memory, machines: Machines, clocks: Clocks) -> None:
        self._memory, self._machines, self._clocks = memory, machines, clocks

    def reasons(self, story: control_rows.Story) -> Iterable[str]:
        """The reasons why a task is where it is, the most important first."""
        state = story.state
        yield from state.warnings
        if state.ended:
            again = "" if state.status is TaskStatus.SUCCEEDED else f" {advice(story.failure, state.task_id)}"
            yield f"{_ENDED[state.status]}{again}"
            if state.status is TaskStatus.FAILED:
                yield from dict.fromkeys(filter(None, (state.reason, *story.reasons)))
            if state.unchecked:
                yield f"No machine checked its scene first: {state.unchecked}."
            return
        if state.counters.live:
            yield from self._where(state.task_id, state.counters.live)
        if state.counters.waiting:
            yield from self._why_waiting(story)
        for reason in story.reasons:
            yield f"A part failed before: {reason}."

    def _where(self, task_id: int, live: int) -> Iterable[str]:
        machine_ids = {attempt.machine_id for attempt in self._memory.attempts_of(task_id)}
        held = [
            attempt.task_id
            for machine_id in machine_ids
            if (machine := self._machines.get(machine_id)) is not None
            for attempt in machine.held_ahead(self._memory.attempts_on(machine_id))
        ].count(task_id)
        where = ", ".join(sorted(map(self._machine_name, machine_ids))) or "a machine"
        yield f"{live - held} of its parts {'is' if live - held == 1 else 'are'} being rendered on {where}."
        if held:
            yield f"{held} more {'waits' if held == 1 else 'wait'} there for a slot."

    def _why_waiting(self, story: control_rows.Story) -> Iterable[str]:
        memory, task_id = self._memory, story.state.task_id
        task = memory.tasks.get(task_id)
        if task is not None and task.is_checked_first:
            yield "A machine looks at its scene first, for it is strict."
        if story.state.paused:
            yield f"It is paused. Go on with: renderonline resume {task_id}."
        elif story.blocked_by:
            yield f"It waits for task {', '.join(map(str, story.blocked_by))} to succeed."
        elif held := memory.held_machines(task_id):
            names = ", ".join(self._machine_name(machine_id) for machine_id in held)
            yield f"Machine {names} was lost and may still write; it must answer first."
            yield f"Is it really off? Then: renderonline retry {task_id}."
        elif (due := memory.next_try(task_id)) is not None:
            yield f"A part is tried again in {max(0.0, due - self._clocks.monotonic()):.0f} s."
        if task is not None and (task.may_start or memory.waits(task_id)):
            yield from self._why_not_now(task)

    def _why_not_now(self, task: QueuedTask) -> Iterable[str]:
        users = self._machines.policy.users
        limit, running = users.get(task.user_id, Allowance()).running_limit, len(self._memory.attempts_of(task.task_id))
        if task.running_limit and running >= task.running_limit:
            more = f"Allow more: renderonline change {task.task_id} --limit NUMBER"
            yield f"The number of its parts that may run at once: {task.running_limit}. {more}"
        elif limit and self._memory.usage.users.get(task.user_id, 0) >= limit:
            yield f"{limit} parts of its user's tasks are being rendered; the subscription allows no more at once."
        else:
            yield from self._why_no_machine(task)

    def _why_no_machine(self, task: QueuedTask) -> Iterable[str]:
        if hopeless := self.stuck(task.task_id, {}):
            yield hopeless
        signatures = self._memory.index.signatures_of(task.task_id) or (task.signature(),)
        hindered: dict[str, list[str]] = defaultdict(list)
        for machine in self._machines:
            able = [one for one in signatures if not machine.ability.lacks(one.engine, one.needs)]
            if able or (hopeless and task.engine.casefold() in offered(machine)):  # of the others nobody needs to hear
                hindered[min(self._hindrance(machine, one) for one in able or signatures)].append(machine.name)
        hindered.pop("", None)
        if busy := hindered.pop(_BUSY, None):
            yield f"All machines that can take it are busy ({len(busy)}); {self._place(task)}."
        for reason, names in sorted(hindered.items(), key=lambda item: -len(item[1])):
            yield f"Not on {_listed(names)}: {reason}."

    def stuck(self, task_id: int, known: dict[tuple[str, Needs], str]) -> str:
        """Why nothing of a waiting task can start, whatever becomes free, and what helps; "" when something can.
        `known` caches the answers by engine and needs, for several tasks."""
        task, signatures = self._memory.tasks.get(task_id), self._memory.index.signatures_of(task_id)
        if task is None or not signatures:
            return ""
        found = ""
        for one in signatures:
            key = (one.engine, one.needs)
            if key not in known:
                known[key] = self._nobody(*key)
            if not (found := known[key]):
                return ""
        return found

    def _nobody(self, engine: str, needs: Needs) -> str:
        machines = list(self._machines)
        if not any(machine.reachable for machine in machines):
            return "No machine is connected. Add one: renderonline machine invite."
        able = [machine for machine in machines if not machine.known_ability.lacks(engine, needs)]
        if able and not any(machine.reachable for machine in able):
            return f"What can take it is not connected: {_listed([machine.name for machine in able])}."
        return unmet([machine.known_ability for machine in machines], engine, needs)

    def _place(self, task: QueuedTask) -> str:
        """Where a task stands in the queue by priority and age; who has used less of the farm may still come first."""
        memory, own = self._memory, (-task.priority, task.queued_us, task.task_id)
        before = sum(
            (-one.priority, one.queued_us, one.task_id) < own and bool(memory.index.signatures_of(one.task_id))
            for one in memory.tasks.values()
        )
        if not before:
            return "it is the first in the queue"
        return f"{before} {'task is' if before == 1 else 'tasks are'} before it in the queue"

    def _hindrance(self, machine: Machine, signature: Signature) -> str:
        """What keeps a machine from taking a chunk now; "" when nothing does."""
        ability, policy = machine.ability, self._machines.policy
        kept_for = self._memory.reserved.get(machine.machine_id, signature)
        gpus, memory_mib = machine.room.missing(signature.needs)
        hindrances = {
            ability.lacks(signature.engine, signature.needs): True,
            "it has no graphics card, and another machine has one": policy.lacks_card(ability, signature),
            machine.refuses: True,
            "it takes whole tasks only, and this one is cut": not policy.fits(ability, signature),
            "a part failed there, and other machines can take it": not policy.takes(ability, signature),
            _BUSY: not machine.free,
            f"what runs there leaves {memory_mib} MiB of memory and {gpus} graphics cards too little": memory_mib
            or gpus,
            "it is kept for a larger task that has waited for long": kept_for != signature,
        }
        return next((reason for reason, holds in hindrances.items() if reason and holds), "")

    def _machine_name(self, machine_id: int) -> str:
        machine = self._machines.get(machine_id)
        return machine.name if machine is not None else f"machine {machine_id}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


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

    async def archive(
        self, task_id: int, user_id: int | None, name: str, chosen: Chosen | None = None, *, only_results: bool = False
    ) -> Content:
        """The directory of a task as a ZIP called `name`, with the results as they are called (`results_first`); an
        adopted file that lies elsewhere is alone in it.

        `user_id`: whose task it must be, None: anybody's. `chosen`: which files (name, frame), None: all.
        `only_results`: not the scene's files.
        """

        def read(connection: Connection) -> tuple[SceneFile, dict[str, Landed], dict[str, int | None]]:
            scene = listing_rows.scene_file(connection, task_id, user_id=user_id)
            landed = listing_rows.landed_files(connection, task_id) if has_directory(scene) else {}
            wanted = chosen is not None or only_results or scene.names
            return scene, landed, listing_rows.frame_numbers(connection, task_id) if wanted else {}

        scene, landed, frames = await self.database.read(read)
        called = await asyncio.to_thread(_called, task_id, scene.names, frames)

        def find() -> Sequence[Member]:
            if not has_directory(scene):
                path = Path(scene.file_path)
                return (Member.of(path.name, path),)
            members = members_of(task_directory(scene.file_path, scene.file_name), landed)
            members = results_first(members, scene.results_in, called)
            if chosen is None and not only_results:
                return members
            names = [(one, one.landed_as) for one in members if not only_results or one.landed_as in frames]
            picked = chosen or (lambda _name, _frame: True)
            found = [one for one, its in names if picked(one.name, frames.get(its)) or picked(its, frames.get(its))]
            if not found:
                raise NotFound(f"Task {task_id} has no such files yet.")
            return found

        return await self.landed.archive(task_id, find, name)

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

    async def explain(self, task_id: int, *, user_id: int | None) -> tuple[str, ...]:
        """Why a task is where it is, the most important first. `user_id`: whose task it must be, None: anybody's."""
        story = await self.database.read(partial(control_rows.task_story, task_id=task_id, user_id=user_id))
        return tuple(self.explanations.reasons(story))

    async def preview(self, principal: Principal, task_id: int, name: str, size: str) -> tuple[bytes, str]:
        """The preview of a result, and an ETag that changes when another takes its place. `NotFound` when there is
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
