"""What a scene needs besides itself, found where it lies; read in a child (R13), for scenes come from everywhere."""

import contextlib
import os
from pathlib import Path
from typing import Final

from renderonline.engines.definition import FACT_READERS
from renderonline.storage.confined import Confined

MEMORY_BYTES: Final = 1 << 30
REPLY_BYTES: Final = 64 << 20
"""Enough for the names of as many files as a task may have."""


def external_files(scene: Path, folder: Path | None = None) -> list[Path]:
    """The files below `folder` (None: where the scene lies) that the scene and its libraries name and that are there.

    [] for scenes that nobody can read, and for broken ones: the farm says what is wrong.
    """
    if scene.suffix.casefold() != ".blend":
        return []
    root = (folder or scene.parent).absolute()
    name = os.path.relpath(scene.absolute(), root).replace(os.sep, "/")
    child = Confined(FACT_READERS["blender"], memory_bytes=MEMORY_BYTES, reply_bytes=REPLY_BYTES)
    with contextlib.closing(child), contextlib.suppress(EOFError, TimeoutError):
        return [root / one for one in child.call(name, str(root)).get("inputs", ())]
    return []
