"""What v2 answers: rows and memory as JSON. Times are ISO 8601 in UTC."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import structlog

from renderonline.database.engines import EngineRow
from renderonline.database.machines import MachineRow
from renderonline.database.tasks import AttemptView, ChunkView, ResultView, TaskView
from renderonline.engines.loading import parse_definition
from renderonline.farm.accounts import Subscription, User
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import TaskStatus

log = structlog.get_logger(__name__)


def moment(us: int | None) -> str | None:
    """Microseconds since 1970 UTC as ISO 8601 with Z; None and 0 are None."""
    if not us:
        return None
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def task(view: TaskView, rendering: Iterable[float] = ()) -> dict[str, Any]:
    """A task. `rendering`: of each chunk that runs now, how many frames' worth (or which part) of it is done."""
    return {
        "task_id": view.task_id,
        "name": view.name,
        "user_id": view.user_id,
        "email": view.email,
        "engine": view.engine,
        "engine_id": view.engine_id,
        "status": view.status.value,
        "priority": view.priority,
        "paused": view.paused,
        "file_name": view.file_name,
        "file_size": view.file_size,
        "arguments": dict(view.arguments),
        "frames": view.frames or None,
        "frames_total": view.frames_total,
        "frames_done": view.frames_done,
        "chunk_size": view.chunk_size,
        "chunks": asdict(view.chunks),
        "queued": moment(view.queue_us),
        "started": moment(view.start_us),
        "ended": moment(view.end_us),
        "reason": view.reason,
        "machine_ids": list(view.machine_ids),
        "progress": round(_progress(view, sum(rendering)), 4),
    }


def _progress(view: TaskView, rendering: float) -> float:
    if view.status is TaskStatus.SUCCEEDED:
        return 1.0
    if view.frames_total:
        return min((view.frames_done + rendering) / view.frames_total, 1.0)
    counters = view.chunks
    count = sum(asdict(counters).values())
    return min((counters.succeeded + rendering) / count, 1.0) if count else 0.0


def chunk(view: ChunkView) -> dict[str, Any]:
    """A chunk."""
    return {
        "chunk_id": view.chunk_id,
        "kind": view.kind,
        "stage": view.stage,
        "state": view.state,
        "frames": _frames(view.first_frame, view.last_frame, view.frame_step),
        "place": view.place,
        "tries": view.tries,
        "not_before": moment(view.not_before_us),
        "reason": view.reason,
    }


def attempt(view: AttemptView, fraction: float | None) -> dict[str, Any]:
    """An attempt; `fraction` is how far it is, None when that is not known."""
    return {
        "attempt_id": view.attempt_id,
        "task_id": view.task_id,
        "chunk_id": view.chunk_id,
        "machine_id": view.machine_id,
        "machine": view.machine,
        "state": view.state,
        "outcome": view.outcome,
        "assigned": moment(view.assigned_us),
        "started": moment(view.started_us),
        "ended": moment(view.ended_us),
        "exit_code": view.exit_code,
        "failure": view.failure,
        "reason": view.reason,
        "peak_memory_mib": view.peak_memory_mib,
        "frames": _frames(view.first_frame, view.last_frame, view.frame_step),
        "progress": fraction,
    }


def _frames(first: int | None, last: int | None, step: int | None) -> str | None:
    if first is None or last is None:
        return None
    return str(FrameRange(first, last, step or 1))


def result(view: ResultView) -> dict[str, Any]:
    """A file that landed."""
    return {
        "name": view.name,
        "frame": view.frame,
        "size": view.size,
        "digest": view.digest,
        "crc32": view.crc32,
        "machine_id": view.machine_id,
        "attempt_id": view.attempt_id,
        "facts": dict(view.facts),
        "landed": moment(view.landed_us),
    }


def user(account: User) -> dict[str, Any]:
    """An account."""
    return {
        "user_id": account.user_id,
        "email": account.email,
        "first_name": account.first_name,
        "last_name": account.last_name,
        "role": account.role.value,
        "subscription_id": account.subscription_id,
        "is_active": account.is_active,
    }


def subscription(row: Subscription) -> dict[str, Any]:
    """A subscription."""
    return asdict(row)


def engine(row: EngineRow) -> dict[str, Any]:
    """An engine, with what its definition says of files and arguments: forms are drawn from it."""
    return {
        "engine_id": row.engine_id,
        "name": row.name,
        "label": row.name,
        "extension": row.extension,
        "extensions": [row.extension],
        "download_path": row.download_path,
        "render_argument": row.render_argument,
        "is_enabled": row.is_enabled,
        "split": "none",
        "frames": None,
        "arguments": [],
        "definition": row.definition,
        **_of_definition(row),
    }


def _of_definition(row: EngineRow) -> Mapping[str, Any]:
    if row.definition is None:
        return {}
    try:
        definition = parse_definition(row.definition)
    except RenderOnlineError as error:  # changed by hand
        log.warning("engine's definition can't be read", engine=row.name, reason=error.message)
        return {"problem": error.message}
    return {
        "label": definition.label,
        "extensions": list(definition.extensions),
        "split": definition.split,
        "frames": asdict(definition.frames) if definition.frames is not None else None,
        "arguments": [asdict(argument) for argument in definition.arguments],
    }


def machine(row: MachineRow, live: Mapping[str, Any] | None) -> dict[str, Any]:
    """A machine; `live` is what the dispatcher knows of it now."""
    return {
        "machine_id": row.machine_id,
        "name": row.name or row.ip_address,
        "kind": "linked" if row.is_linked else "v1",
        "ip_address": row.ip_address,
        "port": row.port,
        "status": "offline",
        "wish": row.wish,
        "reason": row.wish_reason,
        "engines": [],
        "slots": 0,
        "attempts": [],
        **(live or {}),
        "created": moment(row.created_us),
        "seen": moment(row.seen_us),
    }
