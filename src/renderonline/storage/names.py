"""File names from outside become names inside, never paths; and every task gets a directory of its own."""

import contextlib
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Final
from zipfile import ZipFile, ZipInfo

from renderonline.farm.errors import Unfit
from renderonline.storage import disk

INCOMING: Final = ".incoming"
"""Below a download path: files that belong to no task yet, and marks of task directories that are not committed."""
MANIFESTS: Final = ".manifests"
"""Below a download path: the chunks of tasks' files (`storage.manifests`)."""
PART: Final = ".part"
"""How the names of files and directories in `INCOMING` end that are useless after a stop."""
RESULTS: Final = "results"
UNFINISHED: Final = ".landing-"
"""How the names of files begin that are still being copied to their place (`storage.landing`)."""
MAX_NAME_BYTES: Final = 200
DEEPEST: Final = 8
MAX_EXTENSION: Final = 20

MAPPING: Final = "_renderonline_names.json"
"""A file that the farm adds where it changed names that some systems refuse: the client's names -> ours."""
LONGEST_NAME: Final = 1000
"""Bytes, with folders."""

_UTF8: Final = 0x800
"""Flag of a name in a ZIP."""
_UNSENT: Final = re.compile(r"[\x00-\x1f\x7f]|[\ud800-\udfff]")
_UNFIT: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*/\\]|[\ud800-\udfff]')
_NUMBER: Final = re.compile(r"[\d._-]{1,20}$", re.ASCII)
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_EPOCH: Final = datetime(1, 1, 1)  # noqa: DTZ001  (v1 ticks count local time)


def clean_file_name(name: str) -> str:
    """Return a file name that every system accepts: no path, no control characters, at most 200 bytes of UTF-8.

    It is the last component of `name` with few changes, and keeps the extension when it is cut; if nothing is left it
    is `file`.
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    seldom = () if last.isascii() else set(last)
    odd = {char for char in seldom if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    cleaned = "".join("_" if char in odd else char for char in _UNFIT.sub("_", last)).strip().rstrip(". ")
    if not cleaned:
        return "file"
    if cleaned.startswith("-") or _RESERVED.fullmatch(cleaned):
        cleaned = f"_{cleaned}"
    return _shorten(cleaned)


def may_be_name(name: str) -> bool:
    """Return whether every system accepts this relative name, with `/` between folders, unchanged."""
    parts = name.split("/")
    return len(parts) <= DEEPEST and all(clean_file_name(part) == part for part in parts)


def fit_name(name: str) -> str:
    """Return a file name that every system accepts, for any name of a file on some system. Pictures of a sequence
    remain one, however long their names are."""
    plain = unicodedata.normalize("NFC", re.sub(r"[/\\]", "_", name))
    stem, extension = plain.removesuffix(extension_of(plain)), extension_of(plain)
    if len(plain.encode(errors="replace")) > MAX_NAME_BYTES and len(extension) <= MAX_EXTENSION:
        number = _NUMBER.search(stem)
        digits = number[0] if number else ""
        rest = stem.removesuffix(digits)
        mark = f"~{_digest(rest)}"
        room = MAX_NAME_BYTES - len(f"{mark}{digits}{extension}".encode(errors="replace"))
        plain = rest.encode(errors="replace")[:room].decode(errors="ignore").rstrip(". ") + mark + digits + extension
    return clean_file_name(plain)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def fitted(sent: Sequence[str]) -> dict[str, str]:
    """Return for each name a different one that every system accepts. Acceptable names stay as they are."""
    held = {name: "/".join(map(fit_name, name.split("/"))) for name in sent}
    taken = {name for name, fit in held.items() if name == fit}
    for name, fit in held.items():
        if name == fit:
            continue
        if fit in taken:
            stem, extension = os.path.splitext(fit)
            fit = f"{stem}~{_digest(name)}{extension}"
        taken.add(fit)
        held[name] = fit
    return held


def check_relative(name: str, new: str) -> None:
    """Raise `Unfit` for a name that leads out of the folder that is sent. `new`: the part that was not checked yet."""
    parts, shown = new.split("/"), repr(name[:100])
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        message = f"{shown} … is too long: with its folders a name has at most {LONGEST_NAME} bytes. Shorten it."
        raise Unfit(message, code="bad_name")
    if odd := _UNSENT.search(new):
        message = f"{shown} has the letter U+{ord(odd[0]):04X}, which can't be kept. Rename the file."
        raise Unfit(message, code="bad_name")
    if "" in parts or {".", ".."} & set(re.split(r"[/\\]", new)) or re.match(r"[A-Za-z]:[/\\]", name):
        message = f"{shown} leads elsewhere, or has an empty part: name it as it is seen from the folder that is sent."
        raise Unfit(message, code="bad_name")
    if name == MAPPING:
        raise Unfit(f"{MAPPING} is the farm's own: call your file something else.", code="bad_name")
    if any(part.startswith(UNFINISHED) for part in parts):
        raise Unfit(f"Names that begin with {UNFINISHED} are the farm's own.", code="bad_name")


def files_in_zip(archive: ZipFile) -> list[tuple[str, ZipInfo]]:
    """Return the files of a ZIP with their names, without folders and without what macOS adds for each file."""
    named = [(name_in_zip(member), member) for member in archive.infolist()]
    return [(name, member) for name, member in named if not name.endswith("/") and "__MACOSX/" not in name]


def name_in_zip(member: ZipInfo) -> str:
    """Return the name of a file in a ZIP. Programs for Windows write backslashes, and letters of a code page."""
    name = member.orig_filename
    if not member.flag_bits & _UTF8 and not name.isascii():
        raw, unicode_path = name.encode("cp437"), re.search(rb"up..\x01....", member.extra, re.DOTALL)
        if unicode_path is not None:  # Info-ZIP writes it beside the name
            length = int.from_bytes(unicode_path[0][2:4], "little") - 5
            name = member.extra[unicode_path.end() : unicode_path.end() + length].decode(errors="replace")
        else:
            name = next((text for text in map(partial(_decoded, raw), ("utf-8", "cp932")) if text), name)
    return name if "/" in name else name.replace("\\", "/")


def _decoded(raw: bytes, encoding: str) -> str:
    """The text in this encoding; "" if it is invalid, or unlikely because it has no Japanese letters."""
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return ""
    return text if encoding == "utf-8" or re.search("[\u3041-\u30ff\u4e00-\u9fff]", text) else ""


def extension_of(name: str) -> str:
    """Return the extension with its dot, as .NET does: `.blend` for `a.blend` and for `.blend`, "" for none."""
    dot = name.rfind(".")
    return name[dot:] if 0 <= dot < len(name) - 1 else ""


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    extension = extension_of(name)
    if len(extension.encode()) > 20:
        extension = ""
    stem = name.removesuffix(extension).encode()[: MAX_NAME_BYTES - len(extension.encode())]
    return stem.decode(errors="ignore").rstrip(". ") + extension


def ticks_of(local: datetime) -> int:
    """Return .NET's ticks (100 ns since year 1) of a local time; its time zone is ignored."""
    return (local.replace(tzinfo=None) - _EPOCH) // _EPOCH.resolution * 10


def task_directory(scene: str, file_name: str) -> Path:
    """The directory of a task: the one that holds its scene, or the one above the folders that the scene's name has."""
    path, parts = Path(scene), PurePosixPath(file_name).parts
    nested = 0 < len(parts) < len(path.parts) and ".." not in parts and path.parts[-len(parts) :] == parts
    return path.parents[len(parts) - 1] if nested else path.parent


def results_directory(scene: str, file_name: str, results_in: str) -> Path:
    """Where a task's results lie: in the folder `results_in` of its directory, or in the directory itself ("")."""
    directory = task_directory(scene, file_name)
    return directory / results_in if results_in else directory


def manifest_path(directory: Path) -> Path:
    """Where the manifest of a task's directory lies, which lists the chunks of its files."""
    return directory.parent.parent / MANIFESTS / f"{directory.parent.name}-{directory.name}"


def unused_folder(wanted: str, others: Iterable[str]) -> str:
    """Return a folder's name, `wanted` or a similar one, that none of the `others` has or lies in, in any letter case.
    Names are relative, with `/`."""
    taken = {name.split("/", 1)[0].casefold() for name in others}
    return next(name for name in chain([wanted], (f"{wanted}_{n}" for n in count(2))) if name not in taken)


def make_task_directory(root: Path, user_id: int, ticks: int) -> Path:
    """Make the new directory `<root>/<user_id>/<ticks>`; if it exists, that of the next tick (R4.1 Submit once).

    A mark in `.incoming` says that no database row names the directory yet. `keep` removes it after the commit;
    `marked` finds what a killed process left.
    """
    incoming_directory(root)
    while True:
        directory = root / str(user_id) / str(ticks)
        try:
            disk.make_below(root, directory.parent)
        except FileExistsError:
            disk.open_at_least(directory.parent, root)
        if _claim(directory, root):
            return directory
        if directory.parent.exists():  # else another upload of the user has just been discarded
            ticks += 1


def _claim(directory: Path, root: Path) -> bool:
    mark = _mark(directory)
    try:
        mark.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    try:
        disk.make_below(root, directory)
    except BaseException as error:
        mark.unlink(missing_ok=True)
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            return False
        raise
    return True


def incoming_directory(root: Path) -> Path:
    """Return the directory `.incoming` of a download path; it is made if needed."""
    directory = root / INCOMING
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def keep(directory: Path) -> None:
    """Remove the mark of a task directory that a committed row names."""
    _mark(directory).unlink(missing_ok=True)


def discard(directory: Path) -> None:
    """Remove a task directory that `make_task_directory` made, its mark, and the user's directory if it is empty."""
    shutil.rmtree(directory, ignore_errors=True)
    _mark(directory).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def marked(root: Path) -> tuple[Path, ...]:
    """Return the task directories of `root` that still have a mark."""
    matches = (re.fullmatch(r"(\d+)-(\d+)\.mark", mark.name) for mark in sorted((root / INCOMING).glob("*.mark")))
    return tuple(root / match[1] / match[2] for match in matches if match)


def sweep_incoming(root: Path) -> int:
    """Remove what a killed process left in `.incoming`, but not uploads that can continue; return how many."""
    staged = list((root / INCOMING).glob(f"*{PART}"))
    for path in staged:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(staged)


def _mark(directory: Path) -> Path:
    return directory.parent.parent / INCOMING / f"{directory.parent.name}-{directory.name}.mark"
