"""What a box is, and what was found to make boxes with. Standard library only: the spawner uses it."""

from dataclasses import dataclass
from typing import Final

from renderonline.farm.boxes import BoxKind

__all__ = ["NO_BOX", "Box", "BoxKind", "Found"]


@dataclass(frozen=True, slots=True)
class Box:
    """What a program may touch besides the system's programs and libraries. Paths are absolute; what does not exist is
    left out.

    `read`, `write`: files and directories with all that is in them. `hidden`: directories that stay empty although one
    of those holds them; what is named below them is there again (bubblewrap only). `temporary`: the directory that
    serves as `/tmp` (bubblewrap only: in Landlock there is no `/tmp`, only what `TMPDIR` names).
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    temporary: str = ""
    network: bool = False
    devices: tuple[str, ...] = ()
    """Files below `/dev` that are passed through: those of graphics cards."""


def is_plain_directory(path: str) -> bool:
    """Whether this may be opened to a box: an absolute path of something below `/`, said without `..`."""
    parts = path.split("/")
    return path.startswith("/") and any(parts) and not {".", ".."} & set(parts) and not {"$", "\0"} & set(path)


@dataclass(frozen=True, slots=True)
class Found:
    """Which boxes this computer makes (`probing.probe`). `version`: for people, for instance `bubblewrap 0.8.0`;
    `advice`: the line that gets a better one, "" if there is none. `program`: bubblewrap's path; `is_final`: in its box
    no further namespaces can be made, in which a program would be root of its own (from bubblewrap 0.8 on); `abi`:
    Landlock's."""

    kind: BoxKind = BoxKind.NONE
    version: str = ""
    advice: str = ""
    program: str = ""
    is_final: bool = False
    abi: int = 0


NO_BOX: Final = Found()
