"""The settings of a machine: `HPCServer.json` (contract section 1; further keys are optional) and what we add."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest
from renderonline.serving.directories import data_directory
from renderonline.serving.settings import merge, read_file

PREFIX: Final = "HPCSERVER_"
MAX_SLOTS: Final = 256


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """An engine that this machine has: its name (any letter case) and its program."""

    engine_id: str
    executable_path: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Times in seconds."""

    port: int = 5001
    rendering_engines: tuple[EngineSetting, ...] = ()
    host: str = "127.0.0.1"
    """Where the v1 role listens; beyond this computer only when asked."""
    name: str = ""
    """What the farm calls this machine; "" is the computer's name."""
    slots: int = 1
    """How many attempts run at once (linked role)."""
    tags: tuple[str, ...] = ()
    data_directory: Path | None = None
    """Outbox, secret, logs and scratch space. One directory serves one HPCServer at a time."""
    allow: tuple[str, ...] = ()
    """v1 role: addresses or networks that may call; () is everybody who reaches `host`."""
    stop_grace: float = 10.0
    """After SIGTERM running attempts may finish for so long, then they are handed back."""
    nice: int = 5
    """How much engines yield to other programs (0-19)."""
    pass_environment: tuple[str, ...] = ()
    """Environment variables that engines get besides the built-in list."""
    log_level: str = "info"
    log_json: bool = False

    @property
    def engines(self) -> dict[str, str]:
        """Name -> program of the engines that are configured by hand."""
        return {engine.engine_id: engine.executable_path for engine in self.rendering_engines}

    @property
    def home(self) -> Path:
        """The data directory that is used."""
        return (self.data_directory or data_directory() / "hpcserver").expanduser().absolute()


def load(file: Path | None, *, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Settings from a file, the environment (`HPCSERVER_…`) and flags, later ones stronger.

    Raises `InvalidRequest` that names the setting.
    """
    content = read_file(file) if file is not None else {}
    settings = merge(Settings, file=content, environment=environment, prefix=PREFIX, flags=flags)
    return _checked(settings)


def _checked(settings: Settings) -> Settings:
    if not 1 <= settings.slots <= MAX_SLOTS:
        raise InvalidRequest(f"Slots must be between 1 and {MAX_SLOTS}, not {settings.slots}.")
    if not 0 <= settings.port <= 65535:
        raise InvalidRequest(f"Port must be between 0 and 65535, not {settings.port}.")
    if not 0 <= settings.nice <= 19:
        raise InvalidRequest(f"Nice must be between 0 and 19, not {settings.nice}.")
    for address in settings.allow:
        try:
            ip_network(address, strict=False)
        except ValueError as error:
            raise InvalidRequest(f"Allow names {address}, which is neither an address nor a network.") from error
    return replace(settings, name=settings.name or platform.node() or "machine")
