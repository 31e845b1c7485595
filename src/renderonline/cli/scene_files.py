"""Which files a submission sends, and what they are called there: relative to the folder of the scene."""

import os
import unicodedata
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk.transfers import safe_path

MOST_FILES = 50_000


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """What is sent: the scene, its name there, and the other files (names there -> files here)."""

    path: Path
    scene: str
    inputs: Mapping[str, Path]


def gathered(scene: Path, others: Iterable[Path] = (), folder: Path | None = None) -> SceneFiles:
    """A scene, other files and folders seen from its folder, and all of `folder` if that is given: names are relative
    to it then, else to the scene's folder."""
    beside = scene.absolute().parent
    base = beside if folder is None else folder.absolute()
    wanted = [*(beside / one for one in others), *([] if folder is None else [base])]
    few = islice((path for one in wanted for path in _files(one)), MOST_FILES + 1)  # links may lead in a circle
    found = {_name(scene.absolute(), base): scene, **{_name(path, base): path for path in few}}
    if len(found) > MOST_FILES:
        raise InvalidRequest(f"These are too many files; a task has at most {MOST_FILES}.")
    main = next(iter(found))
    return SceneFiles(found.pop(main), main, found)


def unpacked(archive: Path, directory: Path, extensions: Collection[str]) -> SceneFiles:
    """The files of a ZIP, unpacked into `directory`; its scene is the one file with one of the `extensions` (in lower
    case) that lies nearest to the top."""
    try:
        with zipfile.ZipFile(archive) as found:
            members = [one for one in found.infolist() if not one.is_dir() and "__MACOSX/" not in one.filename]
            for member in members:
                safe_path(directory, member.filename)
                found.extract(member, directory)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise InvalidRequest(f"{archive} can't be unpacked: {error}.") from None
    fitting = [one.filename for one in members if PurePosixPath(one.filename).suffix.casefold() in extensions]
    top = min((name.count("/") for name in fitting), default=0)
    scenes = [name for name in fitting if name.count("/") == top]
    if len(scenes) != 1:
        told = ", ".join(scenes[:5]) or "none"
        raise InvalidRequest(f"Which file of {archive.name} is the scene ({told})? Unpack it and use --folder.")
    return gathered(directory / scenes[0], folder=directory)


def _name(path: Path, folder: Path) -> str:
    name = os.path.relpath(path, folder).replace(os.sep, "/")
    if name.startswith("../"):
        raise InvalidRequest(f"{path} lies outside of {folder}. Use --folder with a folder that holds both.")
    return unicodedata.normalize("NFC", name)


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files below a folder; what begins with a dot is left out."""
    if not path.is_dir():
        if not path.is_file():
            raise InvalidRequest(f"{path} is not there.")
        yield path
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
