"""What travels to and from a v1 render node: `/hpc/status`, `/hpc/start`, `/hpc/stop` (C1 Render node).

Written in PascalCase; read in any letter case, numbers as numbers or text, unknown keys ignored.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.loose import flag, fold, pascal, read_object, text, whole

STATUS_PATH: Final = "/hpc/status"
START_PATH: Final = "/hpc/start"
STOP_PATH: Final = "/hpc/stop"

ACTIVE_RENDER: Final = "There already is an active render!"
INVALID_ARGUMENTS: Final = "Invalid render arguments!"
TERMINATED: Final = "Active render terminated!"
NO_ACTIVE_RENDER: Final = "No active render!"
OTHER_TASK: Final = "No process running with provided task identifier!"

_LARGEST_TASK_ID: Final = 2**64 - 1


def rendering(engine_id: str) -> str:
    """Answer to a start that succeeded."""
    return f"Rendering using engine with identifier: {engine_id}"


def not_configured(engine_id: str) -> str:
    """Answer to a start with an engine that this node doesn't have."""
    return f"Requested rendering engine not configured: {engine_id}"


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Start this engine; `arguments` is one string (`farm.command_line`). `task_id` is what status will say."""

    engine_id: str
    task_id: int
    arguments: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Stop what was started with this id."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to start and stop."""

    is_success: bool
    message: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """The running or the last render. `total_seconds`: whole seconds of run time, frozen at exit."""

    task_id: int
    is_success: bool
    is_running: bool
    total_seconds: int


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to status; `task` is None before the first render."""

    engine_ids: tuple[str, ...]
    task: TaskState | None = None


def encode(message: StartRequest | StopRequest | Answer | Status) -> bytes:
    """The body of a request or an answer."""
    return json.dumps(pascal(message), separators=(",", ":")).encode()


def parse_start(body: bytes) -> StartRequest:
    """`InvalidRequest` (`INVALID_ARGUMENTS`) unless engine and arguments are there; no task id is 0, as in .NET."""
    members = read_object(body, INVALID_ARGUMENTS)
    engine_id, arguments = text(members.get("engineid")), text(members.get("arguments"))
    task_id = _task_id(members.get("taskid", 0))
    if engine_id is None or arguments is None or task_id is None:
        raise InvalidRequest(INVALID_ARGUMENTS)
    return StartRequest(engine_id, task_id, arguments)


def parse_stop(body: bytes) -> StopRequest:
    """`InvalidRequest` (`INVALID_ARGUMENTS`) unless a task id is there."""
    task_id = _task_id(read_object(body, INVALID_ARGUMENTS).get("taskid"))
    if task_id is None:
        raise InvalidRequest(INVALID_ARGUMENTS)
    return StopRequest(task_id)


def _task_id(value: Any) -> int | None:
    number = whole(value)
    return number if number is not None and 0 <= number <= _LARGEST_TASK_ID else None


def parse_answer(body: bytes) -> Answer:
    """`InvalidRequest` when the node's answer can't be understood."""
    message = "The node's answer can't be understood."
    members = read_object(body, message)
    is_success = flag(members.get("issuccess"))
    if is_success is None:
        raise InvalidRequest(message)
    return Answer(is_success, text(members.get("message")) or "")


def parse_status(body: bytes) -> Status:
    """`InvalidRequest` when the node's status can't be understood."""
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
    # The existing node computes seconds from its wall clock; nothing of ours depends on them.
    return Status(engine_ids, TaskState(task_id, is_success, is_running, whole(task.get("totalseconds")) or 0))
