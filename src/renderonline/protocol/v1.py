"""What travels at `/renderapi/v1` (C2 RenderAPI): requests, answers, and every message of it.

Written in PascalCase; read in any letter case, numbers as numbers or text, unknown keys ignored.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.loose import fold, pascal, read_object, text, whole

BASE_PATH: Final = "/renderapi/v1"
NEWEST_TASKS: Final = 15
"""How many tasks `/info` shows."""
LARGEST_TASK_ID: Final = 2**63 - 1
"""No database of ours can hold a larger one, although the wire can carry it."""

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


def engine_not_found(engine_id: str | int) -> str:
    """400 of enqueue; the id as it was sent."""
    return f"Engine with identifier {engine_id} not found."


def extension_mismatch(engine_extension: str, file_extension: str) -> str:
    """400 of enqueue; both with their dot, the second "" for a file without one."""
    return f"Engine extension {engine_extension} not matching with files extension {file_extension}."


def argtype_missing(argtype_id: str) -> str:
    """400 of enqueue."""
    return f"Argument type identifier {argtype_id} must be present in database."


def task_not_found(task_id: int) -> str:
    """400: no such task, or somebody else's."""
    return f"Task with identifier {task_id} not found for the current user."


def task_not_queued(task_id: int) -> str:
    """400 of dequeue: it has ended."""
    return f"Task with identifier {task_id} is not in the queue."


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """The part `request` of an enqueue: the engine's id as it was sent, (argtype id, value) pairs in order.

    `client_key` is ours (R4.1 Submit once), "" when not sent.
    """

    engine_id: str
    arguments: tuple[tuple[str, str], ...]
    client_key: str = ""


def parse_enqueue(part: bytes | str | None) -> EnqueueRequest:
    """Read the part `request` (None or blank: it was not sent). `InvalidRequest` with the contract's message."""
    if part is None or not part.strip():
        raise InvalidRequest(REQUEST_EMPTY)
    members = read_object(part, INVALID_ENQUEUE)
    engine_id = text(members.get("engineid"))
    given = members.get("arguments")
    if engine_id is None or not isinstance(given, list):
        raise InvalidRequest(INVALID_ENQUEUE)
    arguments = tuple(_argument(item) for item in given)
    if len({argtype_id for argtype_id, _ in arguments}) < len(arguments):
        raise InvalidRequest(INVALID_ENQUEUE)  # which of two values is meant can't be known
    return EnqueueRequest(engine_id, arguments, text(members.get("clientkey")) or "")


def _argument(item: Any) -> tuple[str, str]:
    """The client's own `Regex` field, if it sends one, is never read (C4 Known faults, fault 1)."""
    members = fold(item) or {}
    argtype_id, value = text(members.get("argtypeid")), text(members.get("value"))
    if argtype_id is None or value is None:
        raise InvalidRequest(INVALID_ENQUEUE)
    return argtype_id, value


def parse_task_id(content_type: str | None, body: bytes) -> int:
    """Read the body of dequeue, download or delete. `InvalidRequest` with the contract's message."""
    media_type = (content_type or "").partition(";")[0].strip().casefold()
    if media_type != "application/json":
        raise InvalidRequest(NOT_JSON)
    task_id = whole(read_object(body, INVALID_FORMAT).get("taskid"))
    if task_id is None or not 0 <= task_id < 2**64:
        raise InvalidRequest(INVALID_FORMAT)
    return task_id


def enqueue_answer(message: str, task_id: int | None = None) -> dict[str, Any]:
    """Answer to enqueue; with `task_id` (our addition) it was added."""
    if task_id is None:
        return {"IsAdded": False, "ErrorMessage": message}
    return {"IsAdded": True, "ErrorMessage": message, "TaskId": task_id}


def dequeue_answer(message: str, *, done: bool) -> dict[str, Any]:
    """Answer to dequeue."""
    return {"IsRemoved": done, "ErrorMessage": message}


def download_refusal(message: str) -> dict[str, Any]:
    """Answer to a download that can't be given."""
    return {"DownloadProvided": False, "ErrorMessage": message}


def delete_answer(message: str, *, done: bool) -> dict[str, Any]:
    """Answer to delete."""
    return {"IsDeleted": done, "ErrorMessage": message}


@dataclass(frozen=True, slots=True)
class UserInfo:
    """The user who asks."""

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
    """A render; where its file lies is nobody's business."""

    render_id: int
    file_name: str
    file_path: str = field(default="", init=False)
    file_size: int
    arguments: str
    engine_id: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine as its row has it."""

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
    """Answer to info: the user and their `NEWEST_TASKS` newest tasks, by task id descending."""

    user: UserInfo
    tasks: tuple[TaskEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """What the wire carries."""
        return dict(pascal(self))
