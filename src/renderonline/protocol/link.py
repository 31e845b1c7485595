"""The link: what an HPCServer and RenderAPI say to each other over one WebSocket (`docs/reference/link.md`).

Every message is one JSON text frame `{"type": …}` with the fields of one class below in snake_case; the type is the
name of the class in lower case.
Readers ignore unknown fields, so that protocol N and N-1 understand each other (R5.6 Protocol versions).
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from renderonline.farm.cards import Card, CardLoad
from renderonline.farm.more_results import NOTHING_MORE, MoreResults

PROTOCOL: Final = 1
"""The number of this protocol; RenderAPI takes this one and the one before."""

LINK_PATH: Final = "/renderapi/v2/link"
HEARTBEAT_S: Final = 5.0
SILENCE_S: Final = 30.0
"""A machine from which nothing was read for so long is gone (R1.3 Silence)."""


class EngineOffer(Struct, frozen=True):
    """An engine that a machine can run: its name and the version its executable reported ("" if unknown). `renderers`:
    what it can render with, such as `CYCLES`; () when it does not say."""

    name: str
    version: str = ""
    renderers: tuple[str, ...] = ()


class HeldAttempt(Struct, frozen=True):
    """An attempt that a machine still holds: it runs, or it has reports that were not acknowledged."""

    attempt: int
    token: str
    running: bool


class Hello(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI, first message. `secret` was given at enrolment; `instance` is new at each start."""

    protocol: int
    machine_id: int
    secret: str
    instance: str
    boot: str
    version: str
    name: str
    slots: int
    engines: tuple[EngineOffer, ...] = ()
    held: tuple[HeldAttempt, ...] = ()
    cpu_count: int = 0
    memory_mib: int = 0
    disk_free_mib: int = 0
    gpus: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    platform: str = ""
    full: str = ""
    """Why the machine takes no assignment ("" when it does), for instance a full disk (R5.2 Outbox)."""
    sandbox: str = ""
    """The box around its engines: `bwrap`, `landlock` or `none`; "" of an older version counts as none."""
    sandbox_advice: str = ""
    """What gets a better box there (`sandbox.probing.ADVICE`); "" when there is none."""
    cards: tuple[Card, ...] = ()
    """Its graphics cards; machines of an older version only name them, in `gpus`."""


class Welcome(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine, answer to `Hello`. Everything held that is not in `keep` is to be killed; `last_seq` is the
    last report of this instance that was applied, `log_offsets` attempt -> the byte from which its log goes on."""

    protocol: int
    keep: tuple[int, ...] = ()
    last_seq: int = 0
    log_offsets: Mapping[str, int] = {}


class Refused(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine, instead of `Welcome`; the link is closed afterwards. `final`: don't dial again."""

    code: str
    message: str
    final: bool = False


class ExpectedOutput(Struct, frozen=True):
    """A file that an attempt must write, relative to its directory; `frame` is null for what is not a frame."""

    name: str
    frame: int | None = None


class Limits(Struct, frozen=True):
    """When to end an attempt: 0 means no limit. `grace_s` is between SIGTERM and SIGKILL."""

    time_s: float = 0.0
    stall_s: float = 900.0
    memory_mib: int = 0
    grace_s: float = 5.0


class Assign(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine: run this. Idempotent by `attempt`; stored by the machine before anything starts
    (R5.1 Stored assignment).

    `argv` is without the program; the machine puts its executable for `engine` in front. The process starts in
    `directory`, which the machine creates. `expected` empty means: exit code 0 is success and every file found in
    `directory` is a result. `reading` is the engine's definition of progress, warnings and failures
    (`engines.reading.ReadingRules` as JSON).

    `root` is the task's directory on RenderAPI's computer. A machine that reads `mark_token` in the file `mark` shares
    that computer's files; another one works in a directory of its own and puts it in place of `root` and `directory`.
    Without a mark everybody shares.

    `more`: which other new files in `directory` are results too; only where `expected` is not empty.
    `cards`: how many graphics cards it gets for itself, each with at least `card_memory_mib`; -1: it sees all of them,
    as all others do. `draws`: it gets none, but may draw on one that others use too.

    Where engines run in a box, `network` opens the network to this one, `sandbox_read` and `sandbox_write` open files
    and directories besides the task's; the engine's definition says so.

    `ascii_paths`: the engine opens no paths with letters beyond ASCII, double quotes or backslashes, nor long ones; the
    machine gives it others.
    """

    attempt: int
    token: str
    task: int
    chunk: int
    engine: str
    argv: tuple[str, ...]
    directory: str
    inputs: tuple[str, ...] = ()
    expected: tuple[ExpectedOutput, ...] = ()
    frames: tuple[int, ...] = ()
    environment: Mapping[str, str] = {}
    limits: Limits = Limits()
    reading: Mapping[str, Any] = {}
    root: str = ""
    mark: str = ""
    mark_token: str = ""
    network: bool = False
    sandbox_read: tuple[str, ...] = ()
    sandbox_write: tuple[str, ...] = ()
    more: MoreResults = NOTHING_MORE
    ascii_paths: bool = False
    cards: int = -1
    card_memory_mib: int = 0
    draws: bool = False


class Cancel(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine: end this attempt; its `Exited` follows with outcome `canceled`."""

    attempt: int
    reason: str = ""


class Drain(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine: take nothing new; `exit` ends the program when the running attempts are done."""

    exit: bool = False


class Ack(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine: every report of this instance up to `seq` is committed."""

    seq: int


class _Report(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI, kept until it is acknowledged. `at_us`: the machine's clock, microseconds since 1970."""

    seq: int
    attempt: int
    token: str
    at_us: int


class Started(_Report, frozen=True):
    """Report: the engine's process exists."""

    pid: int


class Result(_Report, frozen=True):
    """Report: a file is complete and checked on the machine. `name` is relative to the attempt's directory, `digest`
    is BLAKE2b-256 in hex, `crc32` unsigned, `facts` what the picture says of itself (`storage.images.ImageCheck`)."""

    name: str
    size: int
    digest: str
    crc32: int
    frame: int | None = None
    facts: Mapping[str, Any] = {}


class Exited(_Report, frozen=True):
    """Report: the attempt is over; no further report of it follows. `outcome` is an `Outcome` other than `lost`;
    `failure` a class of the engine's definition (`scene`, `crash`, `out_of_memory`, `missing_output`, `bad_output`,
    `no_engine`, `no_input`, `no_space`, …) or ""; `warnings`: what the engine said that a person must know
    (R16 No false success)."""

    outcome: str
    exit_code: int | None = None
    failure: str = ""
    reason: str = ""
    peak_memory_mib: int = 0
    warnings: tuple[str, ...] = ()


class Progress(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI: the newest value only; may be lost (R5.3 Progress and logs). `fraction` is of the attempt,
    0 to 1."""

    attempt: int
    fraction: float
    frame: int | None = None
    remaining_s: float | None = None
    message: str = ""


class Log(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI: bytes of an attempt's log from `offset`, as UTF-8 text (R5.3 Progress and logs)."""

    attempt: int
    offset: int
    text: str


class Heartbeat(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI every `HEARTBEAT_S`. `cards`: how its graphics cards are doing."""

    load: float = 0.0
    memory_free_mib: int = 0
    disk_free_mib: int = 0
    full: str = ""
    cards: tuple[CardLoad, ...] = ()


Report = Started | Result | Exited
FromMachine = Hello | Started | Result | Exited | Progress | Log | Heartbeat
FromRenderAPI = Welcome | Refused | Assign | Cancel | Drain | Ack
