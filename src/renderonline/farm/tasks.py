"""Tasks, chunks and attempts: their states, which state may follow which (R2 Task status), and a task's files.

`CHUNK_TRANSITIONS` is checked at every change of a chunk (`database.task_rows`). A task's status is never stored: it is
derived from the counters of its chunks and two flags, in the database for its indexes too.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from renderonline.farm.errors import Conflict
from renderonline.farm.frames import is_among


class TaskStatus(StrEnum):
    """The status of a task that users see; `task_status` derives it."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class ChunkKind(StrEnum):
    """What a chunk does (R13 Hostile content)."""

    RENDER = "render"
    FILM = "film"


class ChunkState(StrEnum):
    """The state of a chunk."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class AttemptState(StrEnum):
    """The state of an attempt; how it ended is its `Outcome`."""

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
    """How many chunks of one task are in each state."""

    waiting: int = 0
    assigned: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def live(self) -> int:
        """Chunks that are assigned or running."""
        return self.assigned + self.running

    @property
    def settled(self) -> bool:
        """Whether no chunk is left to do."""
        return self.waiting + self.assigned + self.running == 0


def task_status(counters: Counters, *, canceled: bool, paused: bool) -> TaskStatus:
    """Return the status of a task (R2 Task status). When every chunk is settled it is canceled if its owner `canceled`
    it, else failed if a chunk failed, else succeeded. Otherwise it is running if a chunk is assigned or running, else
    paused or queued.

    A canceled task whose film or frames are made again is queued or running until these are settled."""
    if counters.settled:
        if canceled:
            return TaskStatus.CANCELED
        return TaskStatus.FAILED if counters.failed or counters.canceled else TaskStatus.SUCCEEDED
    if counters.live:
        return TaskStatus.RUNNING
    return TaskStatus.PAUSED if paused else TaskStatus.QUEUED


@dataclass(frozen=True, slots=True)
class InputFile:
    """A submitted file of a task. `name`: relative to the task's directory, with `/`; `size` in bytes; `crc32`:
    unsigned; `digest`: BLAKE3 in hex."""

    name: str
    size: int
    crc32: int
    digest: str


class Landed(NamedTuple):
    """The recorded facts of a file: its size, its CRC-32, when it landed (None: it is not a result), and its digest in
    hex, which for a result is BLAKE2b-256 ("": none is recorded)."""

    size: int
    crc32: int | None
    landed_us: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A result of an attempt, with checked name and frame.

    `token` is None when RenderAPI itself found the file; `digest` is BLAKE2b-256 in hex, `facts` JSON. `wanted`: the
    names that the attempt's chunk needs; `more`: this file is not one of them; `of_frame`: the frame to which such a
    file belongs.
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
    """A result with a row `landing` in the database: its file is moved into place next, then the row becomes `landed`.

    `source` is the attempt's directory, `scene` the path of the task's uploaded file ("" when the task was deleted),
    `file_name` its name, perhaps with folders, `folder` the folder of the task's directory for the result. `late`: its
    attempt is over. `stale_id`, `stale_digest`: the older result that it replaces in one step (0 and "": none).
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


def searched(name: str, file_name: str) -> str:
    """Return the text that a search for a task looks through, in small letters; at most 512 characters."""
    return "\n".join(dict.fromkeys(filter(None, (name, file_name)))).lower()[:512]


def chooser(frames: str = "", names: Collection[str] = ()) -> Callable[[str, int | None], bool]:
    """Return a function that says whether a file (name, frame) is chosen: its frame is in the range `frames`, or its
    name matches one of the patterns `names` (* and ?); without both every file is. Raises `InvalidRequest` for an
    invalid range."""
    in_range = is_among(frames) if frames else lambda _: False

    def is_chosen(name: str, frame: int | None) -> bool:
        named = any(name == pattern or fnmatchcase(name, pattern) for pattern in names)
        return named or in_range(frame) or not (frames or names)

    return is_chosen
