"""The link: the messages between an HPCServer and RenderAPI over one WebSocket (`docs/reference/link.md`), and their
conversion to and from JSON by msgspec.

A message is a JSON object: the fields of one of the classes below, and `type`, the name of the class in lower case.
Tuples are lists. A text frame is one message or, from protocol 2 on, a list of them. Readers ignore unknown fields, so
that protocol N and N-1 understand each other (R5.6 Protocol versions). Reading raises `InvalidRequest`, which names the
field, for a value that is missing without a default, has the wrong type, is nested too deep, or does not fit into UTF-8
or 64 bits.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any, Final, TypeVar, get_args

import msgspec
from msgspec import Struct

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import Card, CardLoad, check_cards
from renderonline.farm.result_names import NOTHING_MORE, MoreResults

MAX_DEPTH: Final = 32
"""How deep values may be nested."""
LONGEST_TEXT: Final = 500
"""Characters of a text in which a machine describes itself."""
MOST_IN_FRAME: Final = 256
"""Messages of one frame."""
FRAME_CHARACTERS: Final = 1 << 18
"""Characters of a frame beyond which no further message is put into it."""
_LISTS: Final = 2
"""The protocol from which on a frame may be a list of messages."""
_MOST_HELD: Final = 10_000
_MOST_OFFERS: Final = 256
_LONGEST_INSTANCE: Final = 64

_LARGEST: Final = 2**63 - 1
_UNUSUAL: Final = re.compile(r"\d{19}|\\u[dD]")
"""JSON that may have numbers beyond 64 bits or lone surrogates: its values are looked at one by one."""
_WORDS: Final[Mapping[str, str]] = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "path": "a path",
    "null": "null",
}
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "float": (float,), "bool": (bool,), "array": (list, tuple), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip
"""msgspec's names for the types of values."""

_BOUNDS: Final[Mapping[str, str]] = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}

T = TypeVar("T")


def to_wire(obj: Any) -> dict[str, Any]:
    """Return a Struct or a dataclass as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(obj)
    return plain


def encode(obj: Any) -> str:
    """Return a Struct or a dataclass as one line of JSON; numbers that are not finite become null."""
    return msgspec.json.encode(obj).decode()


def read_json(text: str | bytes) -> Any:
    """Return JSON as Python values. Raises `InvalidRequest` for anything else (NaN, too deep, not UTF-8)."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("This is not valid JSON.") from error


def decode(text: str | bytes, kind: Any) -> Any:
    """Return the message in `text`; `kind` is a tagged Struct, or a union of them from which its `type` selects."""
    return _message(read_json(text), kind)


def decode_frame(text: str, kind: Any) -> list[Any]:
    """Return the messages of a frame, in order; `kind` as in `decode`."""
    if not _UNUSUAL.search(text):
        try:
            found = _decoder(kind).decode(text)
        except (ValueError, RecursionError):
            pass  # the reading below says what is wrong
        else:
            messages = found if isinstance(found, list) else [found]
            _check_count(messages)
            for message in messages:
                for name in _LOOSE[type(message)]:
                    _check(getattr(message, name), name, MAX_DEPTH - 1)
            return messages
    data = read_json(text)
    if not isinstance(data, list):
        return [_message(data, kind)]
    _check_count(data)
    return [_message(item, kind) for item in data]


def frames(messages: Iterable[str], protocol: int) -> Iterator[str]:
    """Put encoded messages into frames, in order; `protocol` is the one of the link (`Welcome.protocol`)."""
    waiting, size = list[str](), 0
    for message in messages:
        full = len(waiting) >= MOST_IN_FRAME or size + len(message) > FRAME_CHARACTERS
        if waiting and (full or protocol < _LISTS):
            yield _frame(waiting)
            waiting, size = [], 0
        waiting.append(message)
        size += len(message)
    if waiting:
        yield _frame(waiting)


def _frame(messages: list[str]) -> str:
    return messages[0] if len(messages) == 1 else f"[{','.join(messages)}]"


def _check_count(messages: list[Any]) -> None:
    if not 1 <= len(messages) <= MOST_IN_FRAME:
        raise InvalidRequest(f"A frame has 1 to {MOST_IN_FRAME} messages.")


@cache
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind | list[kind])


def _message(data: Any, kind: Any) -> Any:
    if not isinstance(data, dict):
        raise InvalidRequest("A message must be a JSON object.")
    name = str(data.get("type"))[:40]
    if "type" not in data:
        raise _unknown(name)
    return _converted(kind, data, name)


def from_wire(cls: type[T], data: Any) -> T:
    """Return an instance of the Struct or dataclass `cls` from plain values."""
    return _converted(cls, data, cls.__name__)


def _converted(kind: type[T], data: Any, name: str) -> T:
    _check(data, name, MAX_DEPTH)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise _in_words(str(error), data, name) from error


def _check(value: Any, where: str, depth: int) -> None:
    """Raise `InvalidRequest` for values that can't be stored or sent on."""
    if depth < 0:
        raise InvalidRequest(f"{where[:200]} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(key, where, depth)
            _check(item, f"{where}.{str(key)[:40]}", depth - 1)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _check(item, f"{where}[{place}]", depth - 1)
    elif isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise InvalidRequest(f"{where} must be text without lone surrogates.")
    elif isinstance(value, (int, float)) and not (
        math.isfinite(value) if isinstance(value, float) else abs(value) <= _LARGEST
    ):
        raise InvalidRequest(f"{where} must be a number of at most 64 bits.")


def _in_words(message: str, data: Any, name: str) -> InvalidRequest:
    """The error for a message of msgspec, such as "Expected `int`, got `str` - at `$.held[0].attempt`"."""
    what, _, place = message.partition(" - at ")
    path = place.strip("`").removeprefix("$")
    if path == ".type":
        return _unknown(name)
    if missing := re.search("missing required field `(.+)`", what):
        return InvalidRequest(f"{name}{path}.{missing[1]} is missing.")
    where = name + path.replace("[...]", f".{_key(data, path, what)}")
    return InvalidRequest(f"{where} must be {requirement(what)}.")


def requirement(message: object) -> str:
    """Return what a value must be, from msgspec's message that it is not: "a whole number", "at most 256"."""
    expected = str(message).partition(" - at ")[0].removeprefix("Expected ")
    if bound := re.fullmatch("`.+` ([<>]=?) (.+)", expected):
        return f"{_BOUNDS[bound[1]]} {bound[2]}"
    words = [_WORDS[kind] for kind in expected.split("`")[1].split(" | ")] if "`" in expected else []
    return " or ".join(word for word in words if len(words) == 1 or word != "null") or expected


def _key(data: Any, path: str, what: str) -> str:
    """The key of the first value of this type in the mapping at `path`, which msgspec does not name."""
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0]):
        data = data[key] if key else data[int(index)]
    entries = data.items() if isinstance(data, Mapping) else ()
    got = what.rpartition("got `")[2].rstrip("`")
    return next((str(key)[:40] for key, value in entries if type(value) in _KINDS.get(got, ())), "…")


def _unknown(kind: str) -> InvalidRequest:
    return InvalidRequest(f"A message of type {kind!r} is not known here.")


PROTOCOL: Final = 2
"""The number of this protocol; RenderAPI accepts this one and the one before."""

LINK_PATH: Final = "/renderapi/v2/link"
HEARTBEAT_S: Final = 5.0
SILENCE_S: Final = 30.0
"""After this time without a message a machine counts as gone (R1.3 Silence)."""


class EngineOffer(Struct, frozen=True):
    """An engine that a machine can run: its name and the version its executable reported ("" if unknown). `renderers`:
    its renderers, such as `CYCLES`; () if unknown."""

    name: str
    version: str = ""
    renderers: tuple[str, ...] = ()


class HeldAttempt(Struct, frozen=True):
    """An attempt that a machine still holds: it runs, or some of its reports were not acknowledged."""

    attempt: int
    token: str
    running: bool


class Hello(Struct, frozen=True, tag=str.lower):
    """Machine -> RenderAPI, first message. `secret` comes from the enrolment; `instance` is new at each start."""

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
    """Why the machine accepts no assignments, for instance a full disk (R5.2 Outbox); "" if it does."""
    sandbox: str = ""
    """The box around its engines: `bwrap`, `landlock` or `none`; "" counts as none."""
    sandbox_advice: str = ""
    """How to get a better box there (`farm.needs.BoxAdvice`); "" when there is none."""
    cards: tuple[Card, ...] = ()
    """Its graphics cards; `gpus` has only their names."""


class Welcome(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine, answer to `Hello`. The machine kills held attempts that are not in `keep`; `last_seq` is
    the last report of this instance that was applied, `log_offsets` maps an attempt to the next byte of its log."""

    protocol: int
    keep: tuple[int, ...] = ()
    last_seq: int = 0
    log_offsets: Mapping[str, int] = {}


class Refused(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine, instead of `Welcome`; the link is closed afterwards. `final`: don't connect again."""

    code: str
    message: str
    final: bool = False


class ExpectedOutput(Struct, frozen=True):
    """A file that an attempt must write, relative to its directory; `frame` is null if it is not a frame."""

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

    `argv` does not include the program; the machine puts its executable for `engine` in front. The process starts in
    `directory`, which the machine creates; if neither command nor `expected` need it, in one of the machine's own. If
    `expected` is empty, exit code 0 is success and every file found in `directory` is a result. `reading` is the
    engine's definition of progress, warnings and failures
    (`engines.reading.ReadingRules` as JSON).

    `root` is the task's directory on RenderAPI's computer. A machine that reads `mark_token` in the file `mark` shares
    that computer's files; another one works in its own directory, which replaces `root` and `directory`. Without a mark
    all machines share the files.

    `more`: which other new files in `directory` are results too; only if `expected` is not empty.
    `cards`: how many graphics cards it gets for itself, each with at least `card_memory_mib`; -1: it shares all of them
    with others. `draws`: it gets none, but may draw on a shared one.

    If the engine runs in a box, `network` allows the network, `sandbox_read` and `sandbox_write` allow files and
    directories besides the task's; they come from the engine's definition.

    `ascii_paths`: the engine can't open long paths or those with double quotes, backslashes or letters beyond ASCII;
    the machine gives it others.
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
    """RenderAPI -> machine: end this attempt; an `Exited` with outcome `canceled` follows."""

    attempt: int
    reason: str = ""


class Drain(Struct, frozen=True, tag=str.lower):
    """RenderAPI -> machine: accept nothing new; `exit`: end the program after the running attempts."""

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
    is BLAKE2b-256 in hex, `crc32` unsigned, `facts` the picture's properties (`storage.images.ImageCheck`)."""

    name: str
    size: int
    digest: str
    crc32: int
    frame: int | None = None
    facts: Mapping[str, Any] = {}


class Exited(_Report, frozen=True):
    """Report: the attempt is over; no further report of it follows. `outcome` is an `Outcome` other than `lost`;
    `failure` a class of the engine's definition (`scene`, `crash`, `out_of_memory`, `missing_output`, `bad_output`,
    `no_engine`, `no_input`, `no_space`, …) or ""; `warnings`: the engine's warnings that a person must know (R16 No
    false success)."""

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
    """Machine -> RenderAPI every `HEARTBEAT_S` seconds. `cards`: the state of its graphics cards."""

    load: float = 0.0
    memory_free_mib: int = 0
    disk_free_mib: int = 0
    full: str = ""
    cards: tuple[CardLoad, ...] = ()


Report = Started | Result | Exited
FromMachine = Hello | Started | Result | Exited | Progress | Log | Heartbeat
FromRenderAPI = Welcome | Refused | Assign | Cancel | Drain | Ack

_LOOSE: Final = {
    cls: tuple(field.name for field in msgspec.structs.fields(cls) if field.type == Mapping[str, Any])
    for cls in get_args(FromMachine | FromRenderAPI)
}
"""The fields of each message whose values may be anything, and so nested deep."""


def check_hello(message: Hello) -> None:
    """Raise `InvalidRequest` for a machine that says more of itself than is stored and shown."""
    texts = (message.instance, message.boot, message.version, message.name, message.platform, message.full)
    check_cards(message.cards)
    renderers = [engine.renderers for engine in message.engines]
    lists = (message.engines, message.gpus, message.tags, *renderers)
    if not message.instance or len(message.instance) > _LONGEST_INSTANCE or not message.instance.isascii():
        raise InvalidRequest(f"A hello's instance has 1 to {_LONGEST_INSTANCE} ASCII characters.")
    if len(message.held) > _MOST_HELD:
        raise InvalidRequest(f"A machine holds at most {_MOST_HELD} attempts.")
    box = (message.sandbox, message.sandbox_advice)
    engines = (f"{engine.name}{engine.version}" for engine in message.engines)
    words = (*texts, *box, *message.gpus, *message.tags, *engines, *chain.from_iterable(renderers))
    if any(len(items) > _MOST_OFFERS for items in lists) or any(len(text) > LONGEST_TEXT for text in words):
        raise InvalidRequest("A hello is longer than any machine needs.")
