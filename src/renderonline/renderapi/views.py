"""What v2 answers: rows and memory as JSON, and the shapes that document it. Times are ISO 8601 in UTC."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Final, get_type_hints

import structlog

from renderonline.database.engines import EngineRow
from renderonline.database.machines import JoinCode, MachineRow
from renderonline.database.rows import frames_of
from renderonline.database.tasks import AttemptView, ChunkView, ResultView, TaskView
from renderonline.engines.definition import Argument, FrameArguments
from renderonline.engines.loading import parse_definition
from renderonline.farm.accounts import Permission, Role, Subscription, User
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.tasks import AttemptState, ChunkKind, ChunkState, Outcome, TaskStatus
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.machines import Machine, Machines
from renderonline.renderapi.task_requests import SubmitRequest, UploadRequest
from renderonline.storage.announcing import NewUpload

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


def shown(row: Any, **more: Any) -> dict[str, Any]:
    """A row as it is shown: every field but those that are nobody's business, a chunk's frames, and `more`."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    if "first_frame" in values:
        frames = frames_of(row.first_frame, row.last_frame, row.frame_step)
        more["frames"] = None if frames is None else str(frames)
    plain = {name: value for name, value in values.items() if name not in _HIDDEN}
    return {_name(name): moment(value) if name.endswith("_us") else value for name, value in plain.items()} | more


def task(
    view: TaskView, rendering: Iterable[float] = (), latest: dict[str, Any] | None = None, stuck: str = ""
) -> dict[str, Any]:
    """A task, of whose files `integrity` is not known here. `rendering`: of each chunk that runs now, how many frames'
    worth (or which part) of it is done; `latest`: the file that landed last, where it was looked for; `stuck`: why
    nothing of it can start."""
    progress = round(_progress(view, sum(rendering)), 4)
    missing = view.facts.get("missing_inputs", [])
    more = {"latest": latest, "integrity": None, "missing_inputs": missing, "stuck": stuck or None}
    return shown(view, frames=view.frames or None, progress=progress, **more)


def _progress(view: TaskView, rendering: float) -> float:
    if view.status is TaskStatus.SUCCEEDED:
        return 1.0
    count = view.frames_total or sum(asdict(view.chunks).values())
    done = view.frames_done if view.frames_total else view.chunks.succeeded
    return min((done + rendering) / count, 1.0) if count else 0.0


def attempt(view: AttemptView, fraction: float | None) -> dict[str, Any]:
    """An attempt; `fraction` is how far it is, None when that is not known."""
    return shown(view, progress=1.0 if view.outcome == Outcome.SUCCEEDED else fraction)


def me(principal: Principal) -> dict[str, Any]:
    return shown(principal.user, permissions=[one.value for one in Permission if principal.may(one)])


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
