"""Tasks, chunks and attempts: their states, and which state may follow which (R2 Task status).

`CHUNK_TRANSITIONS` holds for every change of a chunk: `database.work_sheet` makes them all and checks each.

A task's status is derived from the counters of its chunks and two flags; it is never stored.

Choosing some of a task's files.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from renderonline.farm.errors import Conflict
from renderonline.farm.frames import is_among


class TaskStatus(StrEnum):
    """What a user sees of a task; `task_status` says when it is which."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class ChunkKind(StrEnum):
    """What a chunk does (R13 Hostile content)."""

    RENDER = "render"
    JOIN = "join"
    FILM = "film"


class ChunkState(StrEnum):
    """Where a chunk stands."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class AttemptState(StrEnum):
    """Where an attempt stands; how it ended is its `Outcome`."""

    ASSIGNED = "assigned"
    RUNNING = "running"
    ENDED = "ended"


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    LOST = "lost"


LIVE: Final = frozenset({ChunkState.ASSIGNED, ChunkState.RUNNING})

SETTLED: Final = frozenset({ChunkState.SUCCEEDED, ChunkState.FAILED, ChunkState.CANCELED})

CHUNK_TRANSITIONS: Final[Mapping[ChunkState, frozenset[ChunkState]]] = {
    ChunkState.WAITING: SETTLED | {ChunkState.ASSIGNED},
    ChunkState.ASSIGNED: SETTLED | {ChunkState.RUNNING, ChunkState.WAITING},
    ChunkState.RUNNING: SETTLED | {ChunkState.WAITING},
    ChunkState.SUCCEEDED: frozenset({ChunkState.WAITING}),
    ChunkState.FAILED: frozenset({ChunkState.WAITING, ChunkState.SUCCEEDED}),
    ChunkState.CANCELED: frozenset({ChunkState.WAITING}),
}
"""Which state may follow which. A settled chunk goes back to waiting only when a person asks for it again;
a failed one, or one that waits again, succeeds when a late result completes it (R5.5 Late results)."""


def check_transition(old: ChunkState, new: ChunkState) -> None:
    """Raise `Conflict` unless `new` may follow `old`."""
    if new not in CHUNK_TRANSITIONS[old]:
        raise Conflict(f"A chunk that is {old} can't become {new}.")


@dataclass(frozen=True, slots=True)
class Counters:
    """How many chunks of one task stand in each state."""

    waiting: int = 0
    assigned: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def live(self) -> int:
        """Chunks that some machine has."""
        return self.assigned + self.running

    @property
    def settled(self) -> bool:
        """Whether nothing of the task is left to do."""
        return self.waiting + self.assigned + self.running == 0


def task_status(counters: Counters, *, canceled: bool, paused: bool) -> TaskStatus:
    """The status of a task; the first rule that holds decides (R2 Task status): every chunk settled, and `canceled`
    by its owner, or one of them failed or none; a chunk assigned or running; nothing new starts until it is resumed.

    A canceled task of which a film or some frames are made again is queued or running until these are settled."""
    if counters.settled:
        if canceled:
            return TaskStatus.CANCELED
        return TaskStatus.FAILED if counters.failed or counters.canceled else TaskStatus.SUCCEEDED
    if counters.live:
        return TaskStatus.RUNNING
    return TaskStatus.PAUSED if paused else TaskStatus.QUEUED


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a task was submitted with. `name`: relative to the task's directory, with `/`; `size` in bytes;
    `crc32` unsigned; `digest`: BLAKE3 in hex."""

    name: str
    size: int
    crc32: int
    digest: str


class Landed(NamedTuple):
    """What is known of a file: its size, its CRC-32, when it landed (None: it is no result), its digest in hex,
    BLAKE2b-256 of a result ("": there is none to compare it with)."""

    size: int
    crc32: int | None
    landed_us: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A result that an attempt has made, its name and frame checked.

    `token` is None when RenderAPI itself found the file; `digest` is BLAKE2b-256 in hex, `facts` JSON. `wanted` are the
    names that the attempt's chunk needs, `more` says that this file is none of them, and `of_frame` to which frame it
    belongs then.
    """

    attempt_id: int
    token: str | None
    name: str
    frame: int | None
    size: int
    digest: str
    crc32: int
    facts: str = "{}"
    of_frame: int | None = None
    more: bool = False
    wanted: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Landing:
    """A result with a row `landing` in the database: its file is put in its place next, then the row becomes `landed`.

    `source` is the attempt's directory, `scene` the path of the task's uploaded file ("" when the task is gone),
    `file_name` its name, perhaps with folders, `folder` the one of the task's directory in which the result is to lie.
    `late`: its attempt is over. `stale_id`, `stale_digest`: the older result whose name and place it takes, in one step
    (0 and "": there is none).
    """

    result_id: int
    offer: Offer
    task_id: int
    user_id: int
    machine_id: int
    source: str
    scene: str
    file_name: str
    folder: str
    late: bool = False
    stale_id: int = 0
    stale_digest: str = ""

    @property
    def attempt_id(self) -> int:
        return self.offer.attempt_id


def missing_warnings(names: Sequence[str]) -> list[str]:
    """What to do about files that a scene needs and that were not submitted with it."""
    if not names:
        return []
    told = ", ".join(names[:5]) + " …" * (len(names) > 5) + (" are" if names[1:] else " is")
    folders = dict.fromkeys(name.split("/")[0] for name in names)
    return [f"{told} not there: submit with {' '.join(f'--with {one}' for one in folders)}"]


def chooser(frames: str = "", names: Collection[str] = ()) -> Callable[[str, int | None], bool]:
    """Whether a file (its name, its frame) is one of `frames` (a range), or called like one of `names` (* and ? stand
    for anything); with neither every file is. `InvalidRequest` for what is no range."""
    wanted = is_among(frames) if frames else lambda _: False

    def chosen(name: str, frame: int | None) -> bool:
        named = any(name == one or fnmatchcase(name, one) for one in names)
        return named or wanted(frame) or not (frames or names)

    return chosen
