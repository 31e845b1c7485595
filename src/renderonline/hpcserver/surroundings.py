"""What an engine finds around it: a clean environment and a home and temporary directory of its own (R8).

Nothing is inherited but what an engine needs to find its libraries, its language and its graphics card: no secret of
the account that runs HPCServer reaches a scene's scripts.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from renderonline.hpcserver.process_table import MARK

INHERITED: Final = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "FONTCONFIG_PATH", "FONTCONFIG_FILE",
        "CUDA_VISIBLE_DEVICES", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
        "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "OMP_NUM_THREADS", "OCIO",
        "SYSTEMROOT", "COMSPEC", "PATHEXT", "PROGRAMFILES", "PROGRAMDATA", "NUMBER_OF_PROCESSORS",
    }
)  # fmt: skip
INHERITED_PREFIX: Final = "LC_"
OURS: Final = frozenset({"HOME", "TMPDIR", "TMP", "TEMP", "USERPROFILE", "XDG_RUNTIME_DIR", MARK})
"""Names that an assignment can't set."""


class Scratch:
    """Home and temporary directories of attempts under one private directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, name: str) -> Path:
        """Where an attempt's home and temporary directory are."""
        return self._root / name

    def make(self, name: str) -> Path:
        """A new, empty place for one attempt. Raises OSError when the disk refuses."""
        place = self.place(name)
        shutil.rmtree(place, ignore_errors=True)
        for part in (place / "home", place / "tmp"):
            part.mkdir(mode=0o700, parents=True)
        return place

    def remove(self, name: str) -> None:
        """Delete an attempt's place; links in it are not followed."""
        shutil.rmtree(self.place(name), ignore_errors=True)

    def clear(self) -> None:
        """Delete what earlier runs left."""
        shutil.rmtree(self._root, ignore_errors=True)


def clean_environment(
    inherited: Mapping[str, str], wanted: Mapping[str, str], place: Path, *, also: Collection[str] = ()
) -> dict[str, str]:
    """The environment of an engine: the allowed part of `inherited`, then `wanted`, then the attempt's own places."""
    environment = {name: value for name, value in inherited.items() if _passes(name, also)}
    environment.update((name, value) for name, value in _proper(wanted.items()) if name.upper() not in OURS)
    home, temporary = str(place / "home"), str(place / "tmp")
    environment.update(HOME=home, USERPROFILE=home, TMPDIR=temporary, TMP=temporary, TEMP=temporary)
    return environment


def _passes(name: str, also: Collection[str]) -> bool:
    return name.upper() in INHERITED or name.upper().startswith(INHERITED_PREFIX) or name in also


def _proper(items: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return ((name, value) for name, value in items if name and "=" not in name and "\0" not in name + value)
