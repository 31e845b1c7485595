"""The connection to a farm: its login and calls (`Connection`), the JSON of `/renderapi/v2` as typed dictionaries
(described at `/docs` of a farm), the event stream (`stream`), and downloads (`fetch`).

The event stream (SSE) is resumed after every break at the event where it broke, a download at the byte; a file gets its
name only when it is complete. Which task a downloaded file belongs to, and its digest, are stored in the user's cache
directory, in one file for each folder (`Owners`), so that a download does not replace files of another task, or files
that were changed, without being asked to.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypedDict, TypeVar
from urllib.parse import urlencode, urlsplit

from renderonline.farm.errors import Conflict, InvalidRequest, LimitReached, NoSpace, NotAvailable
from renderonline.protocol.calls import Advice, Busy, Caller, Reply, Trust, backoff
from renderonline.sandbox.privacy import write_private


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
    """When it is deleted with all its files, by its subscription's `keep_days`; null: never."""
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
    """The scene's own facts: version, scenes (the active one first), external files, warnings; {} in lists."""
    warnings: list[str]
    """What a person must know about its pictures although nothing failed, such as missing files; at most 20."""
    unchecked: str | None
    """Why no machine checked its scene before it was rendered; null if one did, or its engine can't check scenes."""
    missing_inputs: list[str]
    """Files that the scene needs and that were not submitted with it."""
    stuck: str | None
    """Why none of its chunks can ever start as things are, and what helps; null when one can."""


Item = Mapping[str, Any]
"""Any other item: a result, an attempt, a user, machine, engine, subscription, argtype."""

ENDED = frozenset({"succeeded", "failed", "canceled"})
"""The statuses of tasks that have ended."""

BASE: Final = "/renderapi/v2"
PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
ADVICE: Final = Advice(
    unreachable="Is it running? Start one here with `renderonline up`, or give its address with --url.",
    untrusted="Give its authority with --ca-file, or trust exactly this certificate with --fingerprint sha256:…",
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Login:
    """The address of RenderAPI and the account with which to call it.

    `url` may name several addresses, separated by commas, of which one dispatches while the others stand by (R10
    Standby). `ca_file` replaces the system's certificate authorities; `fingerprint` (`sha256:<hex>`, colons allowed)
    trusts exactly the certificate with that digest and no other, no matter who signed it.

    Spaces and line ends around the e-mail and the token are removed. Raises `InvalidRequest` when they can't be sent;
    the message never contains the token.
    """

    url: str
    email: str = ""
    token: str = field(default="", repr=False)
    ca_file: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name in ("email", "token"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if not self.email.isprintable():
            raise InvalidRequest("The e-mail holds a line break or another sign that can't be seen. Type it again.")
        odd = next((place for place, sign in enumerate(self.token, 1) if not "\x20" <= sign <= "\x7e"), 0)
        if odd:
            raise InvalidRequest(
                f"The token can't be right: character {odd} of {len(self.token)} is no ASCII letter, digit or "
                "sign. Perhaps a program put curly quotes or a line break there. Copy it again."
            )


class Connection(Caller):
    """Calls below `/renderapi/v2` of one farm, as the user of a `Login`.

    GET is repeated with backoff for `patience_s` seconds when the network or RenderAPI fails temporarily. Other calls
    are sent once, so that they are never carried out twice; except submissions, whose key makes them count once.
    """

    def __init__(self, login: Login, *, patience_s: float = 5.0, sleep: Callable[[float], None] = time.sleep) -> None:
        self.login = login
        self._patience_s = patience_s
        self._sleep = sleep
        urls = [_tidied(url) for url in login.url.split(",")]
        encrypted = any(url.startswith("https:") for url in urls)
        super().__init__(urls, Trust.of(login.ca_file, login.fingerprint) if encrypted else Trust(), advice=ADVICE)

    def call(self, method: str, path: str, *, query: Mapping[str, object] | None = None, data: object = None) -> Reply:
        """Return the whole answer to one call. Statuses of 300 and more are raised as `farm.errors` classes."""
        wanted = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = f"{path}?{urlencode(wanted)}" if wanted else path
        body = None if data is None else json.dumps(data).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        safe = method == "GET"

        def once() -> Reply:
            return self.ask(method, target, body=body, headers=headers, keep=safe)

        return self.patiently(once) if safe else once()

    def patiently(self, action: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Return the result of `action`, repeated with backoff and full jitter while the network or RenderAPI fails
        temporarily."""
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        pauses = backoff(PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return action()
            except NotAvailable as error:
                wait = max(next(pauses), error.retry_after_s if isinstance(error, Busy) else 0.0)
                if time.monotonic() + wait > deadline:
                    raise
            self._sleep(wait)

    @contextmanager
    def open(
        self, method: str, path: str, *, headers: Mapping[str, str | bytes] | None = None, **options: Any
    ) -> Iterator[HTTPResponse]:
        """The answer to one call, to be read as it comes; `options` and errors as of `Caller.open`."""
        identity = {"email": self.login.email.encode(), "token": self.login.token.encode()}
        known = {name: value for name, value in identity.items() if value} | dict(headers or {})
        with super().open(method, BASE + path, headers=known, **options) as response:
            yield response


def _tidied(url: str) -> str:
    """An address with its scheme, without credentials and the API's own path. Raises `InvalidRequest`."""
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no address of a RenderAPI; write it like http://farm:5000 .")
    path = re.sub(r"(/renderapi(/v\d+)?)?/*$", "", parts.path)
    return parts._replace(path=path, netloc=parts.netloc.rpartition("@")[2]).geturl()


RESYNC: Final = "resync"
"""The type of the event after lost events: ask again for everything that you show."""
EVENTS_SILENT_S: Final = 45.0
"""Without an event or a keep-alive comment for this time the stream of events is broken."""
POLL_S: Final = 3.0
LINE_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the farm: `type` is task, result, progress, machine or resync; "" for keep-alive comments."""

    type: str
    data: dict[str, Any]
    id: str = ""


def stream(connection: Connection, *, patience_s: float = 60.0) -> Iterator[Event]:
    """Yield all events from now on, without end; the first is always a `resync`.

    After each break that may have lost events another `resync` follows. If the account has no stream left, there is a
    `resync` every few seconds instead. Raises `NotAvailable` when RenderAPI can't be reached for `patience_s` seconds.
    """
    last_id = ""
    broken_since = time.monotonic()
    while True:
        try:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
            with connection.open("GET", "/events", headers=headers, timeout_s=EVENTS_SILENT_S) as response:
                if not last_id:
                    yield Event(RESYNC, {})
                for event in parse(response):
                    last_id = event.id or last_id
                    broken_since = time.monotonic()
                    if event.type:
                        yield event
                broken_since = time.monotonic()
        except LimitReached:
            last_id, broken_since = "", time.monotonic()
            yield Event(RESYNC, {})
            time.sleep(POLL_S)
        except NotAvailable:
            if time.monotonic() - broken_since > patience_s:
                raise
        time.sleep(0.5)


def parse(response: HTTPResponse) -> Iterator[Event]:
    """Yield the events of one answer. Comments (keep-alive) are events without a type."""
    fields: dict[str, str] = {}
    data: list[str] = []
    while line := response.readline(LINE_LIMIT):
        if not line.endswith(b"\n"):
            raise HTTPException("an event that was cut or is too long")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if data:
                yield Event(fields.get("event", "message"), json_object("\n".join(data)), fields.get("id", ""))
            fields, data = {}, []
            continue
        key, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if not key:
            yield Event("", {})
        elif key == "data":
            data.append(value)
        else:
            fields[key] = value


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text; {} for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


BLOCK: Final = 256 * 1024
RESUME_S: Final = 120.0
"""A download that has begun goes on for this long without RenderAPI."""
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def fetch(
    connection: Connection, path: str, target: Path, *, digest: str | None = None, progress: Progress | None = None
) -> Path:
    """Download `path` to `target` and return it. What an earlier call left in `target.part` is not sent again.

    With `digest` (BLAKE2b-256 in hex) other bytes are refused. `NotAvailable` when nothing comes for longer than the
    connection's patience, or than `RESUME_S` once something came.
    """
    part = target.with_name(target.name + ".part")
    tag = target.with_name(target.name + ".part.etag")
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)

    def some() -> bool:
        """Whether it is complete now; what brought a part of it is gone on with at once."""
        before = size_of(part)
        try:
            _some(connection, path, part, tag, progress)
        except NotAvailable:
            if size_of(part) <= before:
                raise
            return False
        return True

    patience_s = None
    while not connection.patiently(some, patience_s=patience_s):
        patience_s = RESUME_S
    with disk_faults(target):
        if digest is not None and _digest(part) != digest:
            part.unlink()
            raise NotAvailable(f"{target.name} arrived with other bytes than the farm has; download it again.")
        os.replace(part, target)
        tag.unlink(missing_ok=True)
    return target


def safe_path(directory: Path, name: str) -> Path:
    """Where the result `name` belongs below `directory`; a name that leads out of it is refused."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or re.search(r'[\x00-\x1f\\:*?"<>|]', name):
        raise InvalidRequest(f"The farm names a file {name!r}, which is no safe name; it is not downloaded.")
    return directory.joinpath(pure)


def digest_of(target: Path) -> str:
    """The digest of a file that is there; "" when there is none, a dash when it can't be read."""
    if not os.path.lexists(target):
        return ""
    try:
        return _digest(target)
    except OSError:
        return "-"


def _some(connection: Connection, path: str, part: Path, tag: Path, progress: Progress | None) -> None:
    """One call that goes on where `part` ends; starts again when the file has changed on the farm."""
    have = size_of(part)
    etag = tag.read_text() if have and tag.exists() else ""
    headers = {"range": f"bytes={have}-", "if-range": etag} if etag else {}
    try:
        with connection.open("GET", path, headers=headers, keep=True, timeout_s=60) as response:
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                total = _total(response.headers.get("content-range", ""), have)
            else:
                have, total = 0, int(response.headers.get("content-length", "-1"))
            fresh = response.headers.get("etag", "")
            with disk_faults(tag):
                tag.unlink(missing_ok=True)
                if fresh and not fresh.startswith("W/"):  # only a strong tag says that the bytes are the same
                    tag.write_text(fresh)
            _write(response, part, have, total, progress)
    except InvalidRequest as error:
        if not headers:
            raise
        part.unlink(missing_ok=True)  # the range can't be had (416): the next call starts from the beginning
        raise NotAvailable(error.message) from error


def _write(response: HTTPResponse, part: Path, have: int, total: int, progress: Progress | None) -> None:
    """Write an answer behind the first `have` bytes. A fault of the disk is `NoSpace`, never retried."""
    with disk_faults(part):
        file = part.open("r+b" if have else "wb")
    with file:
        file.truncate(have)
        file.seek(have)
        while block := response.read1(BLOCK):
            with disk_faults(part):
                file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
        with disk_faults(part):
            file.flush()
            os.fsync(file.fileno())
    if total >= 0 and have != total:
        raise IncompleteRead(b"", total - have)


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """A context in which faults of the disk are `NoSpace`: those of the network would be tried again."""
    try:
        yield
    except OSError as error:
        raise NoSpace(f"{path} can't be written: {error.strerror}.") from None


def _total(content_range: str, have: int) -> int:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range.strip())
    if match is None or int(match[1]) != have:
        raise HTTPException("an answer with another range than the one asked for")
    return int(match[2])


def size_of(file: Path) -> int:
    """The size of a file; 0 when there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


class FileCache:
    """Small files by name in a directory; losing one costs time only. Without a directory nothing is kept. A file that
    was not used for `keep_s` seconds is removed."""

    def __init__(self, directory: Path | None = None, keep_s: float = 7 * 24 * 3600.0) -> None:
        self._directory = directory
        self._keep_s = keep_s

    def read(self, name: str) -> bytes:
        """Return what was kept, or b""."""
        with contextlib.suppress(OSError):
            if self._directory is not None:
                os.utime(self._directory / name)
                return (self._directory / name).read_bytes()
        return b""

    def write(self, name: str, content: bytes) -> None:
        """Keep this where possible; a full or read-only disk is no error."""
        if self._directory is None:
            return
        path = self._directory / name
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self._directory.iterdir():
                if old.stat().st_mtime < time.time() - self._keep_s:
                    old.unlink(missing_ok=True)
            write_private(path, content, durable=False)


class Owners:
    """The downloaded files of one folder by name: the task of each, and its digest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        named = os.environ.get("RENDERONLINE_CACHE")
        place = Path(named) if named else Path.home() / ".cache" / "renderonline"
        self._cache = FileCache(place / "downloads", keep_s=math.inf)
        self._name = f"{hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:32]}.json"
        self._of = json_object(self._cache.read(self._name))

    def refuse_others(self, there: Iterable[tuple[str, str]], owner: str) -> None:
        """Raise `Conflict` if one of these files (name, present digest) is not as it was downloaded for `owner`."""
        others = [name for name, digest in there if self._of.get(name) != [owner, digest]]
        if others:
            known = self._of.get(others[0])
            whose = "is of no download that is known" if known is None else f"is of {known[0]}"
            if known is not None and known[0] == owner:
                whose = "was changed since it was downloaded"
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            raise Conflict(
                f"{self._directory / others[0]} would be replaced, but it {whose}{more}. Choose another folder (-o), "
                "or replace them with --overwrite.",
                code="would_replace",
            )

    def remember(self, fetched: Iterable[tuple[str, str]], owner: str) -> None:
        """Store that these files (name, digest) were downloaded now. Has no effect if the cache can't be written."""
        self._of = json_object(self._cache.read(self._name)) | {name: [owner, digest] for name, digest in fetched}
        self._cache.write(self._name, json.dumps(self._of).encode())
