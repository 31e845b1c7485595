"""Results under their final names (R6 Landing, step 2), results that a machine sends, the directories of attempts, and
copies of results in a directory that an administrator named.

A landing result is linked, not copied, where attempt and task lie on one file system and the engine has ended: one that
still runs could write into a linked result. Every directory on the way is opened without following a link, and a
symbolic link is never a result. A delivered copy is written aside, then renamed; it only replaces a file whose digest
says that the same task wrote it there before.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

import structlog

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import Landing
from renderonline.sandbox.privacy import write_private
from renderonline.storage import disk
from renderonline.storage.disk import RESULT_SUMS, digest_file, remove_tree
from renderonline.storage.names import DEEPEST, LONGEST_NAME, MAX_NAME_BYTES, UNFINISHED, manifest_path, task_directory

_log = structlog.get_logger(__name__)

ATTEMPTS: Final = ".attempts"
_MOST_OUTPUTS: Final = 10_000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def attempt_directory(download_path: str, attempt_id: int) -> str:
    """Where an attempt writes: beside the tasks' directories, never inside one (R6 Landing)."""
    return os.path.join(download_path, ATTEMPTS, str(attempt_id))


def check_name(name: str) -> str:
    """Return an output's name relative to the attempt's directory; `InvalidRequest` if it could lead elsewhere."""
    parts = name.split("/")
    fine = len(name) <= LONGEST_NAME and name.isprintable() and "\\" not in name and len(parts) <= DEEPEST
    if not fine or not all(map(_is_part, parts)):
        raise InvalidRequest(f"{name[:60]!r} is not a name that a result may have.")
    return name


def _is_part(part: str) -> bool:
    fits = len(part.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    return fits and part not in ("", ".", "..") and not part.startswith(UNFINISHED)


class Placed(StrEnum):
    """How a file step ended.

    `MISSING`: the attempt's file is not there, is no regular file, or has another size. `TAKEN`: another file has the
    final name (for instance the scene). `GONE`: the task's directory is not there, for the task was deleted.
    `REFUSED`: the disk refuses it, perhaps only now.
    """

    LANDED = "landed"
    MISSING = "missing"
    TAKEN = "taken"
    GONE = "gone"
    REFUSED = "refused"


def place(landings: Sequence[Landing], closed: Collection[int]) -> tuple[Placed, ...]:
    """Put each result under its final name (R6 Landing, step 2); it can be repeated after any interruption. Blocks.

    `closed`: attempts whose engines have ended. Another engine may still write into its files, so their bytes are
    copied and compared instead of linked.
    """
    outcomes = [_placed(landing, may_change=landing.attempt_id not in closed) for landing in landings]
    folders = [_parent(landing) for landing in landings]
    landed = {folder for folder, outcome in zip(folders, outcomes, strict=True) if outcome is Placed.LANDED}
    unsafe = {folder for folder in landed if not _synced(folder)}
    return tuple(
        Placed.REFUSED if outcome is Placed.LANDED and folder in unsafe else outcome
        for folder, outcome in zip(folders, outcomes, strict=True)
    )


def remove_copies(landings: Sequence[Landing]) -> None:
    """Remove the temporary copies that interrupted tries of these landings left. Blocks."""
    keys = {str(landing.result_id) for landing in landings}
    for root, parent in {(_target(landing), _parent(landing)) for landing in landings}:
        with walked(root, parent.relative_to(root).parts) as folder, contextlib.suppress(OSError):
            for name in os.listdir(folder) if folder is not None else ():
                if name.startswith(UNFINISHED) and name.removeprefix(UNFINISHED).partition("-")[0] in keys:
                    os.unlink(name, dir_fd=folder)


def _target(landing: Landing) -> Path:
    return task_directory(landing.scene, landing.file_name)


def _parent(landing: Landing) -> Path:
    """The directory in which the result lies in the end."""
    return (_target(landing) / landing.folder / landing.offer.name).parent


def _synced(directory: Path) -> bool:
    try:
        with walked(directory) as handle:
            if handle is not None:
                os.fsync(handle)
    except OSError as error:
        _log.warning("The disk refuses results", directory=str(directory), error=str(error))
        return False
    return True


def _placed(landing: Landing, *, may_change: bool) -> Placed:
    target, (*folders, name) = _target(landing), PurePosixPath(landing.offer.name).parts
    below = _parent(landing).relative_to(target).parts
    try:
        with walked(target) as root:
            if root is None:
                return Placed.GONE
        with walked(Path(landing.source), folders) as source, walked(target, below, make=True) as final:
            if final is None:
                return Placed.MISSING if source is None else Placed.TAKEN
            if _digest(name, final) == landing.offer.digest:
                return Placed.LANDED
            if source is None:
                return Placed.MISSING
            return _link(landing, name, source, final, copied=may_change or bool(landing.stale_digest))
    except OSError as error:
        _log.warning("The disk refuses a result", result=landing.result_id, name=name, error=str(error))
        return Placed.REFUSED


def _link(landing: Landing, name: str, source: int, target: int, *, copied: bool) -> Placed:
    try:
        file = os.open(name, _FILE, dir_fd=source)
    except OSError:  # not there, or a symbolic link
        return Placed.MISSING
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != landing.offer.size:
            return Placed.MISSING
        if copied:
            return _copy(landing, name, file, target)
        disk.open_file(file, target)
        os.fsync(file)
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return _known(landing, name, target)
        except OSError:  # another file system, or one without hard links
            return _copy(landing, name, file, target)
        if not os.path.samestat(os.stat(name, dir_fd=target, follow_symlinks=False), facts):
            os.unlink(name, dir_fd=target)  # swapped between open and link
            return Placed.MISSING
        return Placed.LANDED
    finally:
        os.close(file)


def _copy(landing: Landing, name: str, file: int, target: int) -> Placed:
    """The same across file systems, or to replace a file: a complete, durable copy under a temporary name, then linked
    or renamed to the final one. Each try has a name of its own, because a RenderAPI that was just replaced may still be
    copying the same result."""
    temporary = f"{UNFINISHED}{landing.result_id}-{secrets.token_hex(8)}"
    try:
        if _copied(file, temporary, target) != landing.offer.digest:  # the engine changed it after it was checked
            return Placed.MISSING
        if landing.stale_digest:
            os.replace(temporary, name, src_dir_fd=target, dst_dir_fd=target)
        else:
            os.link(temporary, name, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
        return Placed.LANDED
    except FileExistsError:
        return _known(landing, name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=target)


def _known(landing: Landing, name: str, target: int) -> Placed:
    """`LANDED` if the file that has the final name by now has this result's bytes, else `TAKEN`."""
    return Placed.LANDED if _digest(name, target) == landing.offer.digest else Placed.TAKEN


def _digest(name: str, folder: int) -> str:
    """The digest of a regular file; "" for anything else."""
    with contextlib.suppress(OSError, InvalidRequest):
        return digest_file(Path(name), folder).digest
    return ""


def _copied(file: int, aside: str, folder: int) -> str:
    """Copy an open file durably to the new file `aside`; the digest of its bytes."""
    copy = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, disk.FILE, dir_fd=folder)
    digest = RESULT_SUMS()
    with open(copy, "wb") as out, open(os.dup(file), "rb") as content:
        disk.open_file(copy, folder)
        while piece := content.read(1 << 20):
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(copy)
    return digest.hexdigest()


@contextlib.contextmanager
def walked(root: Path, parts: Sequence[str] = (), *, make: bool = False) -> Iterator[int | None]:
    """Open the directory below `root` without following a link; None if it does not exist, or leads out of `root`.
    `make`: missing directories are made, durably."""
    with contextlib.ExitStack() as stack:
        handle: int | None = None
        for part in (str(root), *parts):
            above, made = handle, False
            if above is not None and (part in ("", ".", "..") or "/" in part):
                handle = None
                break
            if make and above is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=above)
                    made = True
            try:
                handle = os.open(part, _DIRECTORY, dir_fd=above)
            except OSError:
                handle = None
                break
            if made and above is not None:
                disk.open_directory(handle, above)
                os.fsync(above)  # what lands in it is durable only with the directory itself
            stack.callback(os.close, handle)
        yield handle


class Arrival:
    """A result that its machine sends. Its bytes are written to `handle`, and get their name in the attempt's directory
    when all have arrived. All methods block. Raises `InvalidRequest` for an invalid name, OSError from the disk."""

    def __init__(self, directory: str, name: str) -> None:
        path, (*folders, self._name) = Path(directory), check_name(name).split("/")
        self._temporary = f"{UNFINISHED}{secrets.token_hex(8)}"
        with walked(path.parent.parent, (path.parent.name, path.name, *folders), make=True) as folder:
            if folder is None:
                raise InvalidRequest(f"{name} would not lie in a directory of the attempt.")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.handle = os.open(self._temporary, flags, disk.FILE, dir_fd=folder)
            disk.open_file(self.handle, folder)
            self._folder = os.dup(folder)

    def close(self, *, whole: bool) -> None:
        """Name the file, or remove it."""
        try:
            if whole:
                os.replace(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            os.close(self.handle)
            os.close(self._folder)


def found_outputs(directory: Path) -> tuple[str, ...]:
    """Return the names of the regular files below an attempt's directory, without links; at most 10,000."""
    names: list[str] = []
    for parent, folders, files in os.walk(directory):
        folders.sort()
        paths = (Path(parent, file) for file in sorted(files))
        names += [one.relative_to(directory).as_posix() for one in paths if one.is_file() and not one.is_symlink()]
        if len(names) >= _MOST_OUTPUTS:
            break
    return tuple(names[:_MOST_OUTPUTS])


def remove_attempt(directory: str) -> bool:
    """Remove what looks like an attempt's directory; return whether it is gone. Blocks."""
    parent, name = os.path.split(directory)
    if os.path.basename(parent) != ATTEMPTS or not name.isdigit():
        return False
    try:
        os.rmdir(directory)  # as a rule it is empty or was never made
    except FileNotFoundError:
        return True
    except OSError:
        return _remove_tree(Path(directory))
    return True


def remove_task(scene: str, file_name: str, user_id: int) -> bool:
    """Remove the directory that holds a task's files (`…/<user_id>/<ticks>`), and what is known of them. Blocks.

    A file that does not lie in such a directory (an adopted row may say anything) is removed alone.
    """
    path = Path(scene)
    if not path.is_absolute():
        return False
    directory = task_directory(scene, file_name)
    if directory.name.isdigit() and directory.parent.name == str(user_id):
        manifest_path(directory).unlink(missing_ok=True)
        return _remove_tree(directory)
    with contextlib.suppress(OSError):
        path.unlink()
    return not path.exists()


def _remove_tree(path: Path) -> bool:
    for _ in range(3):  # something may still be landing in it
        remove_tree(path)
        if not path.exists():
            return True
    return False


def kept_mark(download_path: str) -> tuple[str, str]:
    """Return the file in `download_path` whose random token shows a machine that it sees the same files, and the token.
    It is made if missing, or OSError is raised. Blocks."""
    path, token = Path(download_path, ".mark"), secrets.token_hex(16)
    with contextlib.suppress(FileNotFoundError):
        known = path.read_text(encoding="ascii", errors="replace")
        if len(known) == len(token):
            return str(path), known
    write_private(path, token, mode=disk.inside(path.parent.stat())[1])
    return str(path), token


def attempts_on_disk(download_path: str) -> dict[int, str]:
    """Every attempt's directory below a download path: attempt id -> directory."""
    root = Path(download_path, ATTEMPTS)
    try:
        entries = list(os.scandir(root))
    except OSError:
        return {}
    return {int(entry.name): entry.path for entry in entries if entry.name.isdigit() and entry.name.isascii()}


ASIDE: Final = ".renderonline-"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Of a file system without hard links."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A result, `name` in the directory `source`, that goes to `path` below `root`. `key`: unique, what its temporary
    files begin with; `digest`: BLAKE2b-256 of its bytes; `before`: of those that the task may have delivered there;
    `again`: an earlier try may have left something, so the whole folder is looked through."""

    key: int
    source: Path
    name: str
    digest: str
    root: Path
    path: str
    before: tuple[str, ...] = ()
    again: bool = True


class Delivered(StrEnum):
    """How a delivery ended. `CHANGED`: the result is missing or differs from what landed. `TAKEN`: another file, or a
    link, has the name. `SAME`: another file has the name and the same bytes. `AWAY`: the root is missing."""

    DELIVERED = "delivered"
    SAME = "same"
    CHANGED = "changed"
    TAKEN = "taken"
    AWAY = "away"


def deliver(one: Delivery) -> Delivered:
    """Deliver a result; this can be repeated. Blocks. Raises OSError for a full disk or missing rights."""
    *folders, last = PurePosixPath(one.path).parts
    with walked(one.root) as there:
        if there is None:
            return Delivered.AWAY
    *above, name = PurePosixPath(one.name).parts
    with walked(one.source, above) as source, walked(one.root, folders, make=True) as target:
        if target is None:
            return Delivered.TAKEN
        if one.again:
            _remove_old(one, target)
        if source is None:
            return Delivered.CHANGED
        aside = f"{ASIDE}{one.key}-{secrets.token_hex(8)}"
        try:
            whole = _copied_regular(name, source, aside, target) == one.digest
            return _named(one, aside, last, target) if whole else Delivered.CHANGED
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=target)


def _remove_old(one: Delivery, target: int) -> None:
    """Remove the temporary files of interrupted tries."""
    for name in os.listdir(target):
        if name.startswith(f"{ASIDE}{one.key}-"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=target)


def _copied_regular(name: str, source: int, aside: str, target: int) -> str:
    """`_copied` of the regular file `name`; "" for anything else."""
    try:
        file = os.open(name, _FILE, dir_fd=source)
    except OSError:  # not there, or a symbolic link
        return ""
    try:
        return _copied(file, aside, target) if stat.S_ISREG(os.fstat(file).st_mode) else ""
    finally:
        os.close(file)


def _named(one: Delivery, aside: str, last: str, target: int) -> Delivered:
    try:
        os.link(aside, last, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EEXIST, *_NO_LINKS}:
            raise
        if not _is_free(last, target):
            there = _digest(last, target)
            if not there or there not in one.before:
                return Delivered.SAME if there == one.digest else Delivered.TAKEN
        os.replace(aside, last, src_dir_fd=target, dst_dir_fd=target)
    os.fsync(target)
    return Delivered.DELIVERED


def _is_free(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False
