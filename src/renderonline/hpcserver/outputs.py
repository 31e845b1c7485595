"""The files that an attempt leaves, and its verdict, decided from them and from how its process ended.

Hostile scenes write the files, so no link is followed. Looking at files blocks; attempts do it in threads. An exit code
alone is never believed: six engines exit with 0 when they fail.
"""

import os
import queue
import stat
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Protocol

from renderonline.engines.command_lines import failure_of_exit
from renderonline.engines.definition import ReadingRules
from renderonline.farm import needs
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.result_names import Bounds, MoreResults
from renderonline.farm.settling import EXIT_WORDS
from renderonline.farm.tasks import Outcome
from renderonline.protocol.link import Exited
from renderonline.storage.disk import FileDigest, bytes_on_disk, digest_file, hardly_written
from renderonline.storage.landing import check_name, walked

MAX_FILES: Final = 10_000
"""Results of an attempt whose outputs are not named in advance."""
MAX_DEPTH: Final = 16
LARGE: Final = 64 << 30
"""Bytes of all results together; of more than this, some part must really be on the disk."""
MAX_FACTS: Final = 32
MAX_FACT: Final = 200
"""Characters of a text among a picture's facts."""
LARGEST_FACT: Final = 2**53
"""Larger numbers, and NaN, are left out: not every reader of JSON accepts them."""
PICTURES: Final = frozenset(
    {
        ".bmp", ".cin", ".dpx", ".exr", ".gif", ".hdr", ".j2c", ".j2k", ".jp2", ".jpeg", ".jpg", ".jxl",
        ".png", ".psd", ".rgb", ".sgi", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""Files that must decode to be results; files of other kinds are not decoded."""
_NAMED: Final = 3
MACHINES_FAILURES: Final = frozenset({"machine", "no_engine", "no_input", "no_space", "lost_process"})
"""Failure classes that count against the machine."""
SIGXFSZ: Final = 25
SIGNALED: Final = 128
"""Exit codes above this are signals (128 + n), as shells write them."""
MAX_REASON: Final = 1_000
CHANGED: Final = "changed while it was checked"
_TICK_S: Final = 0.01
"""A file that was changed within this time may change again without another timestamp."""

ONE_COLOUR: Final = "all its pixels have the same colour (is the camera right, do lights and objects render?)"

Stamp = tuple[int, int, int]
"""Modification time (ns), size and inode: a new file differs from an earlier one in these."""


@dataclass(frozen=True, slots=True)
class Good:
    """A complete file. A later change shows in its `stamp`. `previews`: JPEGs of a picture by size."""

    name: str
    file: FileDigest
    stamp: Stamp
    facts: dict[str, Any] = field(default_factory=dict)
    previews: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bad:
    """Why a file is no result. `missing`: it is not there, or not new."""

    name: str
    reason: str
    missing: bool = False


class PictureCheck(Protocol):
    """What a decoder found: whether it is a whole picture or why not, its facts, and its previews as JPEGs by size."""

    @property
    def ok(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def previews(self) -> Mapping[str, bytes]: ...


class PictureChecker(Protocol):
    """Decodes pictures, one at a time: `storage.images.ImageChecker`."""

    def check(self, path: Path, *, previews: bool, within: Path, size: tuple[int, int]) -> PictureCheck: ...
    def close(self) -> None: ...


class Checkers:
    """A few picture checkers, each with a process of its own from its first picture on (R13 Hostile content)."""

    def __init__(self, checkers: Sequence[PictureChecker]) -> None:
        self._count = len(checkers)
        self._free: queue.SimpleQueue[PictureChecker] = queue.SimpleQueue()
        for checker in checkers:
            self._free.put(checker)

    def check(self, path: Path, root: Path, size: tuple[int, int]) -> PictureCheck:
        """Decode a picture in the attempt's directory `root` when a checker is free, and make its previews."""
        checker = self._free.get()
        try:
            return checker.check(path, previews=True, within=_of_all_attempts(root), size=size)
        finally:
            self._free.put(checker)

    def close(self) -> None:
        for _ in range(self._count):
            self._free.get().close()


def check_file(
    root: Path,
    name: str,
    before: Stamp | None = None,
    checkers: Checkers | None = None,
    rules: ReadingRules | None = None,
) -> Good | Bad:
    """Check that `name` (relative to `root`) is a new, whole file; with `checkers` also that it is a picture that
    decodes and follows `rules`."""
    try:
        path = inside(root, name)
        stamp = stamp_of(path)
        if stamp is None:
            return Bad(name, f"{name} was not written.", missing=True)
        if stamp == before:
            return Bad(name, f"{name} was there before and was not written anew.", missing=True)
        digest, check = _read(root, name, checkers, rules or ReadingRules())
        if stamp_of(path) != stamp:
            return Bad(name, f"{name} {CHANGED}.")
    except InvalidRequest as error:
        return Bad(name, str(error))
    except OSError as error:
        return Bad(name, f"{name} can't be read: {error.strerror}.")
    if check is None:
        return Good(name, digest, stamp)
    return Good(name, digest, stamp, _plain_facts(check.facts), check.previews)


def _read(
    root: Path, name: str, checkers: Checkers | None, rules: ReadingRules
) -> tuple[FileDigest, PictureCheck | None]:
    """The digest of a file and, with `checkers`, what its picture shows. Raises `InvalidRequest` when it is no result,
    or when its name may have led to another file meanwhile: the engine may still run, and the decoder reads by name."""
    *folders, last = PurePosixPath(name).parts
    with walked(root, folders) as folder:
        if folder is None:
            raise InvalidRequest(f"{name} lies behind a link.")
        found = _settled(last, folder) if checkers is not None else _entry(last, folder)
        digest = digest_file(Path(last), folder)
        if found.st_nlink > 1:
            raise InvalidRequest(
                f"{name} is a hard link: the same file has another name, under which it can be changed."
            )
        if checkers is None:
            return digest, None
        check = checkers.check(root / name, root, (rules.width, rules.height))
        now = _entry(last, folder)
        # Renaming, linking or replacing a file changes its ctime, which no program can set back.
        if (now.st_ino, now.st_ctime_ns) != (found.st_ino, found.st_ctime_ns):
            raise InvalidRequest(f"{name} {CHANGED}.")
    if check.ok and check.facts.get("constant") and rules.constant == "fail":
        raise InvalidRequest(f"{name} is not a usable picture: {ONE_COLOUR}")
    if not check.ok:
        raise InvalidRequest(f"{name} is not a usable picture: {check.reason}")
    return digest, check


def _entry(name: str, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _settled(name: str, folder: int) -> os.stat_result:
    """The status of a file, old enough that a later change shows in it. `InvalidRequest` when it is being changed."""
    for _ in range(2):
        found = _entry(name, folder)
        if not 0 <= time.time_ns() - found.st_ctime_ns < _TICK_S * 1e9:
            return found
        time.sleep(_TICK_S)
    raise InvalidRequest(f"{name} {CHANGED}.")


def _of_all_attempts(root: Path) -> Path:
    """The directory of all attempts' directories: the farm's `.attempts`, or this machine's scratch directory."""
    return root.parent.parent if root.name == "output" else root.parent


def inside(root: Path, name: str) -> Path:
    """The path of `name` below `root`; `InvalidRequest` when the name, or a link on the way, could lead elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or name.startswith("/") or ".." in parts or "\0" in name:
        raise InvalidRequest(f"Output name {name!r} is not a plain relative name.")
    path = root
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise InvalidRequest(f"{name} lies behind a link.")
    return path / parts[-1]


def stamp_of(path: Path) -> Stamp | None:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def stamps(root: Path) -> dict[str, Stamp]:
    """What was in the directory before the engine started."""
    return {name: stamp for name in list_files(root) if (stamp := stamp_of(root / name)) is not None}


def list_files(root: Path, expected: int = 0) -> list[str]:
    """All regular files below `root`, sorted; links and special files are left out and never followed. `InvalidRequest`
    when there are too many (`expected` ones don't count), too deep, with names that are not text, or made of holes."""
    found: list[str] = []
    size = on_disk = 0
    waiting: list[tuple[Path, str, int]] = [(root, "", 0)]
    while waiting:
        directory, prefix, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"The engine wrote directories more than {MAX_DEPTH} levels deep.")
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                kind = status.st_mode
                if stat.S_ISDIR(kind):
                    waiting.append((directory / entry.name, f"{prefix}{entry.name}/", depth + 1))
                elif stat.S_ISREG(kind):
                    found.append(prefix + entry.name)
                    size, on_disk = size + status.st_size, on_disk + bytes_on_disk(status)
        if len(found) + len(waiting) > MAX_FILES + expected:
            raise InvalidRequest(f"The engine wrote more than {MAX_FILES} files.")
    if hardly_written(size, on_disk, LARGE):
        raise InvalidRequest(
            f"The engine wrote files that consist of holes: {size >> 20} MiB, hardly any of it written."
        )
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("The engine wrote a file whose name is not text.") from error
    return sorted(found)


def _plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A few short texts and numbers: pictures can have anything in their metadata."""
    plain: dict[str, Any] = {}
    for key, value in list(facts.items())[:MAX_FACTS]:
        if isinstance(value, str):
            plain[str(key)[:MAX_FACT]] = value[:MAX_FACT].encode("utf-8", "replace").decode()
        elif value is None or (isinstance(value, (int, float)) and abs(value) < LARGEST_FACT):
            plain[str(key)[:MAX_FACT]] = value
    return plain


def is_picture(name: str) -> bool:
    """Whether a file of this name has to decode."""
    return PurePosixPath(name).suffix.casefold() in PICTURES


class MoreOutputs:
    """The outputs of one attempt besides its frames, within the bounds of `rules`. `warnings` name the refused ones."""

    def __init__(self, rules: MoreResults, expected: Collection[str]) -> None:
        self._rules = rules
        self._expected = expected
        self._bounds = Bounds(rules)
        self._beyond: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._rules.take and self._expected)

    def wants(self, name: str) -> bool:
        """Whether a file of this name is one of them."""
        return bool(self) and name not in self._expected and not name.startswith("../") and self._rules.takes(name)

    def admit(self, name: str, size: int) -> bool:
        """Whether a file of this size (bytes) is within the bounds and has a name that a result may have; if so, it
        counts towards the bounds."""
        try:
            check_name(name)
        except InvalidRequest as error:
            self.refuse(name, str(error))
            return False
        if bound := self._bounds.met_by(name, size):
            self._beyond[name] = f"besides the frames an attempt may have at most {bound}"
        return not bound

    def refuse(self, name: str, why: str) -> None:
        """Record that a file is no result, and why."""
        self._refused[name] = why

    def warnings(self) -> list[str]:
        """A sentence for each file that could not be taken, the last ones summed up."""
        lines = list(self._refused.values())[:_NAMED]
        if len(self._refused) > _NAMED:
            lines.append(f"{len(self._refused) - _NAMED} more files besides the frames could not be taken.")
        if self._beyond:
            names, (why, *_) = list(self._beyond), self._beyond.values()
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"{names[0]}{rest} could not be taken: {why}.")
        return lines


class AttemptVerdict(NamedTuple):
    """Outcome, failure class ("" when it succeeded or was canceled) and a reason in plain words."""

    outcome: Outcome
    failure: str = ""
    reason: str = ""

    def because(self, sentences: Sequence[str]) -> "AttemptVerdict":
        """The same with these sentences after its reason."""
        return self._replace(reason=" ".join((self.reason, *sentences))[:MAX_REASON])

    def report(
        self,
        attempt: int,
        token: str,
        *,
        exit_code: int | None = None,
        peak_memory_mib: int = 0,
        warnings: Iterable[str] = (),
    ) -> Exited:
        known = (self.outcome, exit_code, self.failure, self.reason, peak_memory_mib)
        shown = needs.joined((), warnings, needs.MOST_OF_ATTEMPT)
        return Exited(0, attempt, token, time.time_ns() // 1000, *known, shown)


def failed(failure: str, reason: str) -> AttemptVerdict:
    return AttemptVerdict(Outcome.FAILED, failure, reason[:MAX_REASON])


def handed_back(reason: str) -> AttemptVerdict:
    """This machine can't go on with the attempt; it does not count as a failure, and another machine may render it."""
    return AttemptVerdict(Outcome.CANCELED, "handed_back", reason)


LOST: Final = failed("lost_process", "HPCServer, or its process that starts engines, ended, and the engine with it.")


def decide(
    *,
    code: int | None,
    rules: ReadingRules,
    failure: tuple[str, str] | None,
    bad: Sequence[Bad],
    reason: str = "",
    out_of_memory: bool = False,
    disk_full: bool = True,
) -> AttemptVerdict:
    """The verdict on a process that ended by itself. `code`: its exit code, None: it was lost. `failure`: class and
    text of the first line that matched a failure pattern; `reason`: the engine's own reason for its end; `bad`: the
    expected files that are no results; `out_of_memory`: the kernel killed processes for want of memory meanwhile;
    `disk_full`: the disk has so little room that it may have been full. A scene can print whatever its engine prints,
    so only what the machine itself observes counts as the machine's failure."""
    if code is None:
        return LOST
    if failure is not None and failure[0] in MACHINES_FAILURES and not (failure[0] == "no_space" and disk_full):
        failure = ("error", failure[1])
    if code == -SIGXFSZ:
        kind = "no_space" if disk_full else "bad_output"
        return failed(kind, "The engine wrote a file larger than what its disk has free.")
    if code != 0:
        how = f"The engine was ended by signal {-code}" if code < 0 else f"{EXIT_WORDS} {code}"
        kind, line = failure or (failure_of_exit(rules, code), "")
        killed = code in {-9, 137} and not {"-9", "137"} & set(rules.exit_codes)
        if failure is None and killed and not out_of_memory:
            kind = "crash"  # anybody can send SIGKILL, not only a kernel without memory
        if 0 < code < SIGNALED and (why := reason or line):  # a program that ended by itself says why, if anybody does
            return failed(kind, why)
        return failed(kind, f"{how}: {line}" if line else f"{how}.")
    if failure is not None:
        return failed(*failure)
    worst = [output for output in bad if output.missing] or bad
    if not worst:
        return AttemptVerdict(Outcome.SUCCEEDED)
    why = worst[0].reason + (f" ({len(worst) - 1} more)" if len(worst) > 1 else "")
    if worst[0].missing:
        return failed("missing_output", f"The engine says that it succeeded, but {why}")
    return failed("bad_output", why)
