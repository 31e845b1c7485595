"""HPCServer's data directory: one program at a time, with an identity of its own and a note when it is ready."""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from renderonline.farm.errors import Conflict, NoSpace
from renderonline.storage import modes


@dataclass(frozen=True, slots=True)
class Home:
    """The locked directory. `name` is its identity: it marks the engines of this HPCServer (R8 Process trees)."""

    name: str
    ready: Path

    def say_ready(self, **facts: object) -> None:
        """Write `hpcserver.json` {pid, …} for whoever started this program; it goes when the program ends."""
        temporary = self.ready.with_name(f".{self.ready.name}")
        with open(temporary, "w", encoding="utf-8", opener=modes.private) as file:
            json.dump({"pid": os.getpid(), **facts}, file)
        temporary.replace(self.ready)


@contextmanager
def locked(path: Path) -> Iterator[Home]:
    """The data directory, this program's alone while the context lasts. Raises `Conflict` when another HPCServer has
    it, `NoSpace` when it can't be made."""
    with ExitStack() as down:
        try:
            modes.make_private(path)
            _lock(path, down.enter_context(open(path / "hpcserver.lock", "a+", encoding="ascii", opener=modes.private)))
            identity = path / "identity"
            name = identity.read_text(encoding="ascii").strip() if identity.exists() else ""
            if not re.fullmatch("[0-9a-f]{16}", name):
                name = secrets.token_hex(8)
                with open(identity, "w", encoding="ascii", opener=modes.private) as file:
                    file.write(name)
            home = Home(name, path / "hpcserver.json")
            home.ready.unlink(missing_ok=True)
        except OSError as error:
            raise NoSpace(f"The data directory {path} can't be used: {error.strerror}.") from error
        down.callback(home.ready.unlink, missing_ok=True)
        yield home


def _lock(path: Path, file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise Conflict(
            f"Another HPCServer (process {file.read(32) or 'unknown'}) uses {path}. Stop it, or give this one a data"
            " directory of its own (DataDirectory)."
        ) from error
    file.truncate(0)
    print(os.getpid(), end="", file=file, flush=True)
