"""A ZIP that a user sent, taken apart in a child with limits (R13 Hostile content). What it says of itself is not
believed: bytes are counted while they are written."""

import stat
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Final

from renderonline.farm.errors import InvalidRequest, TooLarge, Unfit
from renderonline.sandbox.box import NO_BOX, Found
from renderonline.storage.announcing import checked
from renderonline.storage.confined import Confined
from renderonline.storage.names import files_in_zip
from renderonline.storage.staging import Announced, Stage

TIME_S: Final = 300.0
MEMORY_BYTES: Final = 1 << 30
MOST_RATIO: Final = 200
"""An archive larger than `SMALL_BYTES` may grow to so many times its size."""
SMALL_BYTES: Final = 64 * 1024 * 1024
_PIECE: Final = 1024 * 1024


def unpacked(archive: Path, directory: Path, most_bytes: int, stopped: threading.Event, found: Found = NO_BOX) -> Stage:
    """The files of an archive, staged in `directory`, which must not be there. `InvalidRequest` for what is no whole
    ZIP, `Unfit` for names that can't be, `TooLarge` for more than `most_bytes`. Blocks for up to `TIME_S`, or until
    it is `stopped`. `found`: the box that takes it apart."""
    child = Confined(
        f"{__name__}:unpack",
        time_s=TIME_S,
        memory_bytes=MEMORY_BYTES,
        file_bytes=most_bytes,
        found=found,
        read=(str(archive),),
        write=(str(directory.parent),),
    )
    try:
        with child:
            wrong, message = child.call(str(archive), str(directory), most_bytes, stopped=stopped)
    except (TimeoutError, EOFError) as error:
        message = "The ZIP can't be unpacked: it is broken, or more than this server unpacks."
        raise InvalidRequest(message, code="broken_archive") from error
    if wrong:
        kinds = {"large": TooLarge, "name": Unfit}
        raise kinds.get(wrong, InvalidRequest)(message, code=f"{wrong}_archive")
    return Stage(directory)


def unpack(archive: str, directory: str, most_bytes: int) -> tuple[str, str]:
    """Only for the child: what is wrong (`broken`, `large`, `name`) and a sentence about it; two times "" when all
    files are staged."""
    most = min(most_bytes, max(SMALL_BYTES, MOST_RATIO * Path(archive).stat().st_size))
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = files_in_zip(zipped)
            if any(stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1 for _, member in members):
                return "broken", "Links and encrypted files in a ZIP are not taken."
            announced = [Announced(name, member.file_size) for name, member in members]
            checked(announced)
            if sum(one.size for one in announced) > most:
                return "large", f"The ZIP holds more than {most >> 20} MiB."
            stage = Stage.create(Path(directory), announced)
            for index, (_, member) in enumerate(members):
                _extract(zipped, member, stage, index)
    except Unfit as error:
        return "name", error.message
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        return "broken", f"The ZIP can't be unpacked: {str(error)[:200] or type(error).__name__}."
    return "", ""


def _extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, stage: Stage, index: int) -> None:
    """Write a member; never more than it was announced with, whatever comes out of it."""
    left = member.file_size
    with zipped.open(member) as source, stage.opened(index) as handle, open(handle, "wb", closefd=False) as target:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise zipfile.BadZipFile("a file is longer than it says")
            target.write(piece)
    if left:
        raise zipfile.BadZipFile("a file is shorter than it says")
