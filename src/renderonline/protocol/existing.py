"""The JSON of the existing system: how its values are read and written, the requests and answers of `/renderapi/v1`
(C2 RenderAPI), and those of a v1 render node, `/hpc/status`, `/hpc/start` and `/hpc/stop` (C1 Render node).

Keys are written in PascalCase and read in any letter case; of two keys that differ in letter case only, the last one
counts, as in .NET. Numbers are read as numbers or text; unknown keys are ignored.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest

_WHOLE = re.compile(r"-?\d{1,20}", re.ASCII)


def pascal(value: Any) -> Any:
    """Return a dataclass as JSON values, `task_id` as `TaskId`; times without an offset, in whole seconds."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return {name.title().replace("_", ""): pascal(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [pascal(item) for item in value]
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="seconds")
    return value


def read_object(body: bytes | str, message: str) -> Mapping[str, Any]:
    """Return the members of a JSON object by their case-folded names. Raises `InvalidRequest` with `message`."""
    try:
        # Fractions stay text, so that a value arrives as it was written.
        members = fold(json.loads(body, parse_float=str, parse_constant=no_constant))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(message) from error
    if members is None:
        raise InvalidRequest(message)
    return members


def no_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON; for `json.loads`."""
    raise ValueError(name)


def fold(value: Any) -> dict[str, Any] | None:
    """Return the members of an object by their case-folded names; None if it is not an object."""
    return {key.casefold(): item for key, item in value.items()} if isinstance(value, dict) else None


def text(value: Any) -> str | None:
    """Return a text, or an integer as text; None for anything else and for text that no database can store."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    written = str(value)
    try:
        written.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return None if "\0" in written else written


def whole(value: Any) -> int | None:
    """Return an integer, also one written as text; None for anything else."""
    written = text(value)
    return int(written) if written is not None and _WHOLE.fullmatch(written.strip()) else None


def flag(value: Any) -> bool | None:
    """Return a boolean, also one written as text; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.casefold())
    return value if isinstance(value, bool) else None


BASE_PATH: Final = "/renderapi/v1"
NEWEST_TASKS: Final = 15
"""The number of tasks that `/info` shows."""
LARGEST_TASK_ID: Final = 2**63 - 1
"""The largest task id that our database can store; messages may contain larger ones."""
_LARGEST_SENT_ID: Final = 2**64 - 1

ENQUEUED: Final = "Task successfully enqueued."
DEQUEUED: Final = "Task successfully dequeued."
DELETED: Final = "Task and associated render successfully deleted."
UNAUTHORIZED: Final = "Unauthorized."
NO_FILES: Final = "No files were uploaded."
REQUEST_EMPTY: Final = 'Header "request" is empty.'
INVALID_ENQUEUE: Final = "Invalid enqueue request arguments."
ONE_FILE: Final = "Only 1 file may be uploaded per request."
NOT_JSON: Final = "Request content type must be application/json."
INVALID_FORMAT: Final = "Request content has an invalid format."


def task_not_found(task_id: int) -> str:
    """400: no such task, or somebody else's."""
    return f"Task with identifier {task_id} not found for the current user."


def task_not_queued(task_id: int) -> str:
    """400 of dequeue: it has ended."""
    return f"Task with identifier {task_id} is not in the queue."


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """The part `request` of an enqueue: the engine's id as it was sent, and (argtype id, value) pairs in order.

    `client_key` is our addition (R4.1 Submit once); "" if it was not sent.
    """

    engine_id: str
    arguments: tuple[tuple[str, str], ...]
    client_key: str = ""


def parse_enqueue(part: bytes | str | None) -> EnqueueRequest:
    """Read the part `request` (None or blank: not sent). Raises `InvalidRequest` with the contract's message."""
    if part is None or not part.strip():
        raise InvalidRequest(REQUEST_EMPTY)
    members = read_object(part, INVALID_ENQUEUE)
    engine_id = text(members.get("engineid"))
    given = members.get("arguments")
    if engine_id is None or not isinstance(given, list):
        raise InvalidRequest(INVALID_ENQUEUE)
    arguments = tuple(_argument(item) for item in given)
    if len({argtype_id for argtype_id, _ in arguments}) < len(arguments):
        raise InvalidRequest(INVALID_ENQUEUE)  # nobody knows which of two values was meant
    return EnqueueRequest(engine_id, arguments, text(members.get("clientkey")) or "")


def _argument(item: Any) -> tuple[str, str]:
    """The client's own `Regex` field, if it sends one, is never read (C4 Known faults, fault 1)."""
    members = fold(item) or {}
    argtype_id, value = text(members.get("argtypeid")), text(members.get("value"))
    if argtype_id is None or value is None:
        raise InvalidRequest(INVALID_ENQUEUE)
    return argtype_id, value


def parse_task_id(content_type: str | None, body: bytes) -> int:
    """Read the body of dequeue, download or delete. Raises `InvalidRequest` with the contract's message."""
    media_type = (content_type or "").partition(";")[0].strip().casefold()
    if media_type != "application/json":
        raise InvalidRequest(NOT_JSON)
    task_id = _task_id(read_object(body, INVALID_FORMAT).get("taskid"))
    if task_id is None:
        raise InvalidRequest(INVALID_FORMAT)
    return task_id


def _task_id(value: Any) -> int | None:
    number = whole(value)
    return number if number is not None and 0 <= number <= _LARGEST_SENT_ID else None


def enqueue_answer(message: str, task_id: int | None = None) -> dict[str, Any]:
    """Return the answer to enqueue; with a `task_id` (our addition) the task was added."""
    if task_id is None:
        return {"IsAdded": False, "ErrorMessage": message}
    return {"IsAdded": True, "ErrorMessage": message, "TaskId": task_id}


def dequeue_answer(message: str, *, done: bool) -> dict[str, Any]:
    """Return the answer to dequeue."""
    return {"IsRemoved": done, "ErrorMessage": message}


def download_refusal(message: str) -> dict[str, Any]:
    """Return the answer to a refused download."""
    return {"DownloadProvided": False, "ErrorMessage": message}


def delete_answer(message: str, *, done: bool) -> dict[str, Any]:
    """Return the answer to delete."""
    return {"IsDeleted": done, "ErrorMessage": message}


@dataclass(frozen=True, slots=True)
class UserInfo:
    """The calling user."""

    user_id: int
    first_name: str
    last_name: str
    email: str
    subscription_id: int
    is_active: bool


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task; times are the server's local time without an offset (R1.2 Stored times)."""

    task_id: int
    user_id: int
    queue_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    is_running: bool
    is_success: bool
    render_id: int
    machine_id: int | None

    def __post_init__(self) -> None:
        if self.machine_id is not None and self.machine_id > 255:
            object.__setattr__(self, "machine_id", None)  # the existing client reads a byte (R1.1 Unique ids)


@dataclass(frozen=True, slots=True)
class RenderInfo:
    """A render; `file_path` is always empty, because paths of the server are not disclosed."""

    render_id: int
    file_name: str
    file_path: str = field(default="", init=False)
    file_size: int
    arguments: str
    engine_id: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine, as in its row."""

    engine_id: int
    name: str
    extension: str
    download_path: str
    render_argument: str


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One of `Info.tasks`."""

    task: TaskInfo
    render: RenderInfo
    engine: EngineInfo


@dataclass(frozen=True, slots=True)
class Info:
    """The answer to info: the user and their `NEWEST_TASKS` newest tasks, by task id descending."""

    user: UserInfo
    tasks: tuple[TaskEntry, ...]


STATUS_PATH: Final = "/hpc/status"
START_PATH: Final = "/hpc/start"
STOP_PATH: Final = "/hpc/stop"

ACTIVE_RENDER: Final = "There already is an active render!"
INVALID_ARGUMENTS: Final = "Invalid render arguments!"
TERMINATED: Final = "Active render terminated!"
NO_ACTIVE_RENDER: Final = "No active render!"
OTHER_TASK: Final = "No process running with provided task identifier!"


def rendering(engine_id: str) -> str:
    """Return the message of a start that succeeded."""
    return f"Rendering using engine with identifier: {engine_id}"


def not_configured(engine_id: str) -> str:
    """Return the message of a start with an engine that this node doesn't have."""
    return f"Requested rendering engine not configured: {engine_id}"


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Start this engine; `arguments` is one string (`farm.arguments.join`). `task_id` is reported by status."""

    engine_id: str
    task_id: int
    arguments: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Stop the render that was started with this id."""

    task_id: int


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """The answer to start and stop."""

    is_success: bool
    message: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """The running or the latest render. `total_seconds`: whole seconds of run time until now or its exit."""

    task_id: int
    is_success: bool
    is_running: bool
    total_seconds: int


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to status; `task` is None before the first render."""

    engine_ids: tuple[str, ...]
    task: TaskState | None = None


def encode(message: StartRequest | StopRequest | NodeAnswer | Status) -> bytes:
    """Return the body of a request or an answer."""
    return json.dumps(pascal(message), separators=(",", ":")).encode()


def parse_start(body: bytes) -> StartRequest:
    """Read the body of a start; a missing task id is 0, as in .NET. Raises `InvalidRequest` (`INVALID_ARGUMENTS`)."""
    members = read_object(body, INVALID_ARGUMENTS)
    engine_id, arguments = text(members.get("engineid")), text(members.get("arguments"))
    task_id = _task_id(members.get("taskid", 0))
    if engine_id is None or arguments is None or task_id is None:
        raise InvalidRequest(INVALID_ARGUMENTS)
    return StartRequest(engine_id, task_id, arguments)


def parse_stop(body: bytes) -> StopRequest:
    """Read the body of a stop. Raises `InvalidRequest` (`INVALID_ARGUMENTS`)."""
    task_id = _task_id(read_object(body, INVALID_ARGUMENTS).get("taskid"))
    if task_id is None:
        raise InvalidRequest(INVALID_ARGUMENTS)
    return StopRequest(task_id)


def parse_answer(body: bytes) -> NodeAnswer:
    """Read a node's answer. Raises `InvalidRequest` when it can't be understood."""
    message = "The node's answer can't be understood."
    members = read_object(body, message)
    is_success = flag(members.get("issuccess"))
    if is_success is None:
        raise InvalidRequest(message)
    return NodeAnswer(is_success, text(members.get("message")) or "")


def parse_status(body: bytes) -> Status:
    """Read a node's status. Raises `InvalidRequest` when it can't be understood."""
    message = "The node's status can't be understood."
    members = read_object(body, message)
    names = members.get("engineids")
    engine_ids = tuple(name for each in (names if isinstance(names, list) else ()) if (name := text(each)) is not None)
    if members.get("task") is None:
        return Status(engine_ids)
    task = fold(members["task"]) or {}
    task_id = _task_id(task.get("taskid"))
    is_success, is_running = flag(task.get("issuccess")), flag(task.get("isrunning"))
    if task_id is None or is_success is None or is_running is None:
        raise InvalidRequest(message)
    # The existing node computes seconds from its wall clock, so we only display them.
    return Status(engine_ids, TaskState(task_id, is_success, is_running, whole(task.get("totalseconds")) or 0))
