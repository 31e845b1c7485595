"""What RenderAPI answers, as typed dictionaries: the JSON of `/renderapi/v2` (described at `/docs` of a farm)."""

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
    running_limit: int
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
    deletes_at: str | None
    """When it is removed with all its files, for its subscription keeps tasks for so many days; null: not by itself."""
    reason: str | None
    machine_ids: list[int]
    notify: bool
    needs: dict[str, Any]
    progress: float
    latest: dict[str, Any] | None
    """The file that landed last; null in lists."""
    integrity: str | None
    """`compared`, `altered` (somebody changed results on the server) or `not_compared` (they have no digest); null in
    lists."""
    facts: dict[str, Any]
    """What the scene says of itself: version, scenes (the active one first), external files, warnings; {} in lists."""
    warnings: list[str]
    """What a person must know of its pictures although nothing failed, such as files that were missing; at most 20."""
    unchecked: str | None
    """Why no machine looked at its scene before it was rendered; null when one did, or its engine can't."""
    missing_inputs: list[str]
    """Files that the scene needs and that were not submitted with it."""
    stuck: str | None
    """Why nothing of it can start whatever becomes free, and what helps; null when something can."""


Item = Mapping[str, Any]
"""Any other row: a result, an attempt, a user, machine, engine, subscription, argtype."""

ENDED = frozenset({"succeeded", "failed", "canceled"})
"""The statuses that a task keeps (unless somebody asks for it again)."""
