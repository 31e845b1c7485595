"""Files that an engine writes besides its frames: which of them are results, and to which frame one belongs."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

_NUMBER = re.compile(r"\d+", re.ASCII)
_LONGEST_NUMBER = 7


@dataclass(frozen=True, slots=True)
class MoreResults:
    """Patterns (`*` and `?` stand for anything) of files that are results although nobody expected them, and of those
    among them that stay where they are. A pattern without `/` is for each part of a name, so that `cache_*` leaves a
    whole directory; one with `/` is for the whole name. Without `take` there are none.

    An attempt gives at most `files` of them, of at most `mib` MiB in all; what is beyond that is said.
    """

    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    files: int = 1000
    mib: int = 16 * 1024

    def takes(self, name: str) -> bool:
        """Whether the file of this name, relative to the attempt's directory, is one of them."""
        return _fits(name, self.take) and not _fits(name, self.leave)


NOTHING_MORE = MoreResults()


class Bounds:
    """Counts one attempt's files against its rules."""

    def __init__(self, rules: MoreResults) -> None:
        self._rules = rules
        self._sizes: dict[int, int] = {}
        """By the hash of a name: names are long, and there are many."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def met_by(self, name: str, size: int | None = None) -> str:
        """Which bound a file of so many bytes (None: as many as it is known to have) would pass, such as `1000 files`;
        if none, "", and it counts from now on. The same file counts once."""
        key = hash(name)
        known = self._sizes.get(key, 0)
        size = known if size is None else size
        if key not in self._sizes and len(self._sizes) >= self._rules.files:
            return f"{self._rules.files} files"
        if self._bytes - known + size > self._rules.mib << 20:
            return f"{self._rules.mib} MiB"
        self._sizes[key], self._bytes = size, self._bytes - known + size
        return ""


def _fits(name: str, patterns: Collection[str]) -> bool:
    parts = name.split("/")
    return any(
        fnmatchcase(name, one) if "/" in one else any(fnmatchcase(part, one) for part in parts) for one in patterns
    )


def frame_in(name: str, frames: Collection[int]) -> int | None:
    """The one of `frames` whose number stands in a file's name; None when none does, or several do."""
    found = set()
    for match in _NUMBER.finditer(name):
        if len(match[0]) <= _LONGEST_NUMBER:
            number = int(match[0])
            found.add(-number if name[: match.start()].endswith("-") and -number in frames else number)
    there = [number for number in found if number in frames]
    return there[0] if len(there) == 1 else None
