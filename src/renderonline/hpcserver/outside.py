"""Files that a scene names and that exist on this machine, but outside of the engine's box.

An engine calls them missing. Who looks for them should rather hear which directory is to be opened.
"""

import os
import re
from collections.abc import Sequence
from typing import Final

from renderonline.hpcserver.boxes import is_below
from renderonline.sandbox import system
from renderonline.sandbox.box import Box

MOST: Final = 100
"""Paths of one attempt that are looked at."""
MOST_TOLD: Final = 3
_COMPLAINT: Final = re.compile(
    r"(?i)no such file|not found|can(?:no|')t|could ?n[o']t|unable|missing|denied|not permitted|read-only|fail"
)
_PATH: Final = re.compile(r"""(?<![\w./~-])(?:(?<=['"])/[^'"\n]{1,1000}(?=['"])|/[^\s'":,;()<>|]{1,1000})""")


class Outside:
    """Reads what an engine prints. `box`: the one it runs in, None for none."""

    def __init__(self, box: Box | None = None) -> None:
        self._box = box
        self._named: dict[str, None] = {}

    def take(self, lines: Sequence[str]) -> None:
        """Take note of the paths in lines that complain."""
        if self._box is None or len(self._named) >= MOST:
            return
        for line in lines:
            if "/" in line and _COMPLAINT.search(line):
                self._named.update(
                    dict.fromkeys(os.path.normpath(path.rstrip(".!")) for path in _PATH.findall(line[:2000]))
                )

    def found(self) -> tuple[str, ...]:
        """A sentence for each directory that would have to be opened. Blocks."""
        box, directories = self._box, dict[str, str]()
        if box is None:
            return ()
        inside = (*box.read, *box.write, *_SYSTEM)
        for path in list(self._named)[:MOST]:
            is_outside = not is_below(path, inside) and not is_below(path, box.hidden) and os.path.isfile(path)
            if is_outside and not _is_brought(path, box.read):
                directories.setdefault(os.path.dirname(path), path)
        told = list(directories.items())[:MOST_TOLD]
        return tuple(f"{path} is outside of the box: add {directory} to SandboxRead." for directory, path in told)


def _is_brought(path: str, directories: Sequence[str]) -> bool:
    """Whether the task brought this file along, in a folder of the same name: an engine asks for the path that its
    scene names before it is pointed to the file that was sent."""
    parts = path.split("/")
    tails = ["/".join(parts[first:]) for first in range(1, len(parts) - 1)]
    return any(os.path.isfile(os.path.join(directory, tail)) for directory in directories for tail in tails)


_SYSTEM: Final = (*system.PROGRAMS, "/proc", "/sys", "/dev")
"""What every box has."""
