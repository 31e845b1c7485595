"""RenderAPI's settings: `RenderAPI.json` < environment (`RENDERAPI_…`) < flags."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.serving import settings as sources
from renderonline.serving.directories import data_directory
from renderonline.serving.web import TlsFiles

ENVIRONMENT_PREFIX: Final = "RENDERAPI_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. `ConnectionString`, `Port` and `Certificate` are the existing system's keys."""

    connection_string: str = ""
    """ADO.NET form or URL; "" means a SQLite file in the data directory."""
    host: str = "127.0.0.1"
    """Where to listen; beyond this computer only when asked for."""
    port: int = 5000
    """0 takes any free port."""
    certificate: TlsFiles | None = None
    """Two PEM files; with them everything is HTTPS."""
    data_directory: Path = field(default_factory=data_directory)
    """For the embedded database, logs of attempts, the first login and the ready file."""
    download_path: Path | None = None
    """Where uploads and results of the shipped engines go; by default `files` in the data directory."""
    log_level: str = "info"
    log_json: bool = False
    max_upload_mib: int = 0
    """The largest upload; 0: as much as the disk holds."""
    reserve_mib: int = 256
    """So much of the disk stays free: larger uploads are refused before they begin."""
    grace_s: float = 10.0
    """How long open requests may take to end when the server stops."""

    @property
    def database(self) -> str:
        """The connection string that counts."""
        return self.connection_string or f"sqlite:///{self.data_directory.absolute() / 'renderonline.sqlite'}"

    @property
    def files(self) -> Path:
        """The download path of the shipped engines, absolute."""
        return (self.download_path or self.data_directory / "files").absolute()

    @property
    def max_upload_bytes(self) -> int:
        """The largest body of a request in bytes."""
        return self.max_upload_mib * 1024 * 1024 or 2**62


def load_settings(
    file: Path | None = None, *, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from a file (if one is named), the environment and flags; `InvalidRequest` names what is wrong."""
    return sources.merge(
        Settings,
        file=sources.read_file(file) if file is not None else {},
        environment=os.environ if environment is None else environment,
        prefix=ENVIRONMENT_PREFIX,
        flags=flags or {},
    )
