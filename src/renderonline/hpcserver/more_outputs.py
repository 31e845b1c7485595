"""Files that an engine wrote besides those that an attempt must write: which are taken, and what is to be said."""

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Final

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.more_results import Bounds, MoreResults
from renderonline.storage.landing import check_name

PICTURES: Final = frozenset(
    {
        ".bmp", ".cin", ".dpx", ".exr", ".gif", ".hdr", ".j2c", ".j2k", ".jp2", ".jpeg", ".jpg", ".jxl",
        ".png", ".psd", ".rgb", ".sgi", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""What is decoded before it is taken; files of other kinds are taken as they are."""
_NAMED: Final = 3


def is_picture(name: str) -> bool:
    """Whether a file of this name has to decode."""
    return PurePosixPath(name).suffix.casefold() in PICTURES


class MoreOutputs:
    """Those of one attempt, held to the bounds of its `rules`. What can't be taken is kept for `warnings`."""

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
        """Whether one of so many bytes is within the bounds, and has a name that a result may have. It counts from now
        on."""
        try:
            check_name(name)
        except InvalidRequest as error:
            self.refuse(name, str(error))
            return False
        if bound := self._bounds.met_by(name, size):
            self._beyond[name] = f"besides the frames at most {bound} an attempt come home"
        return not bound

    def refuse(self, name: str, why: str) -> None:
        """A file that is no result, and why."""
        self._refused[name] = why

    def warnings(self) -> list[str]:
        """What a person must know of those that did not come home, a sentence each."""
        told = list(self._refused.values())[:_NAMED]
        if len(self._refused) > _NAMED:
            told.append(f"{len(self._refused) - _NAMED} more files besides the frames could not be taken.")
        if self._beyond:
            names, (why, *_) = list(self._beyond), self._beyond.values()
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            told.append(f"{names[0]}{rest} stayed behind: {why}.")
        return told
