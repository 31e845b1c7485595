"""The settings of a machine (`HPCServer.json` of C1 Render node, with further optional keys), and its data directory,
which one program uses at a time.
"""

import json
import os
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from renderonline.farm.arguments import is_plain_directory
from renderonline.farm.errors import Conflict, InvalidRequest, NoSpace
from renderonline.hpcserver.card_rack import card_by_hand
from renderonline.protocol.link import HEARTBEAT_S
from renderonline.sandbox.box import checked_setting
from renderonline.sandbox.privacy import Locked, lock_file, write_private
from renderonline.serving.settings import check_exposed, merge, read_file
from renderonline.storage import disk
from renderonline.storage.disk import data_directory

PREFIX: Final = "HPCSERVER_"


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """An engine that this machine has: its name (any letter case) and its program."""

    engine_id: str
    executable_path: str


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything that can be set. Times in seconds."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 5001
    rendering_engines: tuple[EngineSetting, ...] = ()
    host: str = "127.0.0.1"
    """Where the v1 role listens; beyond this computer only when asked."""
    name: str = ""
    """The name of this machine in the farm; "": the computer's name."""
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    """How many attempts run at once (linked role); None: one, or one for each graphics card."""
    tags: tuple[str, ...] = ()
    data_directory: Path | None = None
    """Outbox, secret, logs and scratch space. One directory serves one HPCServer at a time."""
    strict_files: bool = False
    """Refuse a settings file that every account of this computer can read, instead of warning about it."""
    allow: tuple[str, ...] = ()
    """v1 role: addresses or networks that may call; (): all that can reach `host`."""
    stop_grace: float = 10.0
    """How long running attempts may go on after SIGTERM; then they are handed back."""
    heartbeat_s: Annotated[float, Meta(ge=0.1, le=60)] = HEARTBEAT_S
    """The time between two heartbeats."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 5
    """How much engines yield to other programs (0-19)."""
    idle_minutes: Annotated[float, Meta(ge=0, le=1440)] = 0.0
    """Take work only after this time without any use of keyboard, mouse or terminal; 0: always."""
    max_load: Annotated[float, Meta(ge=0, le=4096)] = 0.0
    """Take work only while other programs keep at most this many processors busy; 0: always."""
    cache_mib: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """How much of the tasks' files is kept here when it does not share the farm's directory; 0: a tenth of the disk."""
    pass_environment: tuple[str, ...] = ()
    """Environment variables that engines get besides the built-in list."""
    cards: tuple[str, ...] = ()
    """Graphics cards, where they are not found by themselves: `KIND:ID[:MIB[:NAME]]` with cuda, hip, oneapi or metal;
    `none`: none are used."""
    sandbox: str = "auto"
    """The box around every engine: `auto` (the best that this computer makes), `bwrap`, `landlock`, `off`, or
    `required` (any, but not without)."""
    sandbox_read: tuple[Path, ...] = ()
    """Directories that engines in a box read besides their task's, for instance textures that a studio shares."""
    sandbox_write: tuple[Path, ...] = ()
    """Directories that engines in a box also write."""
    log_level: str = "info"
    log_json: bool = False

    @property
    def engines(self) -> dict[str, str]:
        """Name -> program of the engines that are configured by hand."""
        return {engine.engine_id: engine.executable_path for engine in self.rendering_engines}

    @property
    def home(self) -> Path:
        return (self.data_directory or data_directory() / "hpcserver").expanduser().absolute()


def load(file: Path | None, *, environment: Mapping[str, str], flags: Mapping[str, Any]) -> NodeSettings:
    """Settings from a file, the environment (`HPCSERVER_…`) and flags, later ones stronger. Raises `InvalidRequest`
    that names the setting."""
    content = read_file(file) if file is not None else {}
    settings = merge(NodeSettings, file=content, environment=environment, prefix=PREFIX, flags=flags)
    check_exposed(file, strict=settings.strict_files)
    for address in settings.allow:
        try:
            ip_network(address, strict=False)
        except ValueError as error:
            raise InvalidRequest(f"Allow names {address}, which is neither an address nor a network.") from error
    for card in settings.cards:
        if settings.cards != ("none",):
            card_by_hand(card)
    for path in (*settings.sandbox_read, *settings.sandbox_write):
        _check_opened(path, settings.home)
    sandbox = checked_setting(settings.sandbox)
    return replace(settings, name=settings.name or platform.node() or "machine", sandbox=sandbox)


def _check_opened(path: Path, home: Path) -> None:
    if not is_plain_directory(str(path)):
        raise InvalidRequest(f"SandboxRead and SandboxWrite name absolute directories without .., not {path}.")
    if path.resolve().is_relative_to(home.resolve()):
        raise InvalidRequest(
            f"SandboxRead and SandboxWrite must not name {path}: this machine's own files lie in {home}, and its"
            " secret. Name the directories that scenes need."
        )


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
            disk.make_private(path)
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
