"""HPCServer's data directory: one program at a time, with an identity of its own and a note when it is ready."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from renderonline.farm.errors import Conflict, NoSpace
from renderonline.sandbox.privacy import Locked, lock_file, write_private
from renderonline.storage import modes


@dataclass(frozen=True, slots=True)
class Home:
    """The locked directory. `name` is its identity: it marks the engines of this HPCServer (R8 Process trees)."""

    name: str
    ready: Path

    def say_ready(self, **facts: object) -> None:
        """Write `hpcserver.json` {pid, …} for whoever started this program; it goes when the program ends."""
        write_private(self.ready, json.dumps({"pid": os.getpid(), **facts}), durable=False)


@contextmanager
def locked(path: Path) -> Iterator[Home]:
    """The data directory, this program's alone while the context lasts. Raises `Conflict` when another HPCServer has
    it, `NoSpace` when it can't be made."""
    with ExitStack() as down:
        try:
            modes.make_private(path)
            down.enter_context(lock_file(path / "hpcserver.lock", str(os.getpid())))
            identity = path / "identity"
            name = identity.read_text(encoding="ascii").strip() if identity.exists() else ""
            if not re.fullmatch("[0-9a-f]{16}", name):
                name = secrets.token_hex(8)
                write_private(identity, name)
            home = Home(name, path / "hpcserver.json")
            home.ready.unlink(missing_ok=True)
        except Locked as error:
            raise Conflict(
                f"Another HPCServer (process {error}) uses {path}. Stop it, or give this one a data directory of its"
                " own (DataDirectory)."
            ) from None
        except OSError as error:
            raise NoSpace(f"The data directory {path} can't be used: {error.strerror}.") from error
        down.callback(home.ready.unlink, missing_ok=True)
        yield home
