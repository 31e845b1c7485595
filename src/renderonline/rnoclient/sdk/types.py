"""What RenderAPI answers, as typed dictionaries: the JSON of `/renderapi/v2` as it is (described at `/docs` of a running farm)."""

from collections.abc import Mapping
from typing import Any, TypedDict


class Task(TypedDict):
    """A task. Times are ISO 8601 in UTC; `progress` is 0 to 1; `chunks` counts chunks by state."""

    task_id: int
    name: str
    user_id: int
    email: str
    engine: str
    engine_id: int
    status: str
    priority: int
    paused: bool
    file_name: str
    file_size: int
    arguments: dict[str, str]
    frames: str | None
    frames_total: int
    frames_done: int
    chunks: dict[str, int]
    queued: str | None
    started: str | None
    ended: str | None
    reason: str | None
    machine_ids: list[int]
    progress: float


class Result(TypedDict):
    """A file that a task produced. `digest` is BLAKE2b-256 in hex, `facts` what the picture says of itself."""

    name: str
    frame: int | None
    size: int
    digest: str
    crc32: int
    machine_id: int
    attempt_id: int
    facts: dict[str, Any]
    landed: str


class Attempt(TypedDict):
    """One try of a chunk on one machine."""

    attempt_id: int
    chunk_id: int
    machine_id: int
    machine: str
    state: str
    outcome: str | None
    assigned: str
    started: str | None
    ended: str | None
    exit_code: int | None
    failure: str
    reason: str | None
    frames: str | None
    progress: float | None


Item = Mapping[str, Any]
"""A row of administration (user, machine, engine, subscription, argtype) or a chunk."""

ENDED = frozenset({"succeeded", "failed", "canceled"})
"""The statuses that a task keeps (unless somebody asks for it again)."""
