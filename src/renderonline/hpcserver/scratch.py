"""The environment variables, home and temporary directory of an attempt, instead of the account's (R8 Process trees).

Nothing is inherited but what an engine needs to find its libraries, its language and its graphics card: no secret of
the account that runs HPCServer reaches a scene's scripts.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from renderonline.hpcserver.process_table import KEY, MARK
from renderonline.protocol.link import Assign
from renderonline.storage.removing import remove_tree

INHERITED: Final = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "FONTCONFIG_PATH", "FONTCONFIG_FILE",
        "CUDA_VISIBLE_DEVICES", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
        "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR",
        "OMP_NUM_THREADS", "OCIO",
        "SYSTEMROOT", "COMSPEC", "PATHEXT", "PROGRAMFILES", "PROGRAMDATA", "NUMBER_OF_PROCESSORS",
    }
)  # fmt: skip
_PLAIN: Final = re.compile(r"[ !#-\[\]-~]{1,150}")
"""A path that an engine with `ascii_paths` opens: printable ASCII without double quotes and backslashes, not long.
POV-Ray 3.7 crashes on some of 230 characters."""
OURS: Final = frozenset({"HOME", "TMPDIR", "TMP", "TEMP", "USERPROFILE", "XDG_RUNTIME_DIR", MARK, KEY})
"""Names that an assignment can't set."""


class Scratch:
    """Home and temporary directories of attempts under one private directory, on a disk of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, name: str) -> Path:
        return self._root / name

    def make(self, name: str) -> Path:
        """A new, empty place for one attempt. Raises OSError when the disk refuses."""
        place = self.place(name)
        if place.exists():
            self.remove(name)
        for part in (place, place / "home", place / "tmp"):
            part.mkdir(mode=0o700, parents=True)
        return place

    def remove_empty(self, name: str) -> bool:
        """Delete the place of an attempt that left nothing in it; says whether it did. Never takes long."""
        place = self.place(name)
        try:
            for part in (place / "home", place / "tmp", place):
                part.rmdir()
        except OSError:
            return False
        return True

    def remove(self, name: str = "") -> None:
        """Delete an attempt's place, or all that earlier runs left; links in it are not followed."""
        remove_tree(self.place(name))


def shares_files(assign: Assign) -> bool:
    """Whether this machine sees the files of RenderAPI's computer: where it says, the token that it says lies. Blocks,
    for as long as a network disk does."""
    if not assign.mark:
        return True
    try:
        with open(assign.mark, "rb") as file:
            return file.read(len(assign.mark_token) + 1) == assign.mark_token.encode()
    except OSError:
        return False


def in_own_directories(assign: Assign, root: Path, directory: Path) -> Assign:
    """The same assignment with directories of this machine in place of the task's and the attempt's."""
    places = {assign.directory.rstrip("/"): str(directory), assign.root.rstrip("/"): str(root)}
    # Longest first; a name that only begins with the same letters is another one.
    known = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True) if place)
    found = re.compile(rf"(?:{known})(?![\w.-])")

    def here(text: str) -> str:
        return found.sub(lambda match: places[match[0]], text)

    return replace(
        assign,
        argv=tuple(map(here, assign.argv)),
        inputs=tuple(map(here, assign.inputs)),
        environment={name: here(value) for name, value in assign.environment.items()},
        sandbox_write=tuple(map(here, assign.sandbox_write)),
        directory=str(directory),
        root=str(root),
        mark="",
    )


def in_ascii(assign: Assign) -> tuple[tuple[str, ...], dict[str, str]]:
    """The words of an assignment for an engine with `ascii_paths`, and the links that they need in its directory, where
    the process starts: name -> where it leads. Paths that the engine can open are left as they are."""
    if not assign.ascii_paths or not assign.inputs:
        return assign.argv, {}
    scene = assign.inputs[0]
    folder = os.path.dirname(scene)
    names = {scene: f"scene{os.path.splitext(scene)[1]}", folder: "scene_files", assign.directory.rstrip("/"): "."}
    odd = [path for path in names if path and not _PLAIN.fullmatch(path)]
    if not odd:
        return assign.argv, {}
    found = re.compile("|".join(re.escape(path) + r"(?![\w.-])" for path in sorted(odd, key=len, reverse=True)))
    argv = tuple(found.sub(lambda match: names[match[0]], word) for word in assign.argv)
    return argv, {names[path]: path for path in odd if names[path] != "."}


def link(directory: Path, links: Mapping[str, str]) -> None:
    """Make links in an attempt's directory, which may have them from an earlier process. Blocks."""
    unlink(directory, links)
    for name, target in links.items():
        (directory / name).symlink_to(target)


def unlink(directory: Path, links: Iterable[str]) -> None:
    """Remove links: they are no results. Blocks."""
    for name in links:
        with contextlib.suppress(OSError):
            (directory / name).unlink()


def clean_environment(
    inherited: Mapping[str, str], wanted: Mapping[str, str], place: Path, *, also: Collection[str] = ()
) -> dict[str, str]:
    """The environment of an engine: the allowed part of `inherited`, then `wanted`, then the attempt's own places."""
    passed = [name for name in inherited if name.upper() in INHERITED or name.upper().startswith("LC_") or name in also]
    refused = {
        name for name in wanted if not name or name.upper() in OURS or "=" in name or "\0" in name + wanted[name]
    }
    environment = {name: inherited[name] for name in passed}
    environment |= {name: value for name, value in wanted.items() if name not in refused}
    home, temporary = str(place / "home"), str(place / "tmp")
    return environment | {"HOME": home, "USERPROFILE": home, "TMPDIR": temporary, "TMP": temporary, "TEMP": temporary}
