"""RenderAPI's settings: `RenderAPI.json` < environment (`RENDERAPI_…`) < flags."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.database.standby import LEASE_S
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import checked_box, checked_pool
from renderonline.farm.settling import RetryPolicy
from renderonline.protocol.link import SILENCE_S
from renderonline.sandbox.box import checked_setting
from renderonline.serving import settings as sources
from renderonline.serving.admission import Proxies
from renderonline.serving.settings import Positive, PositiveInt
from renderonline.serving.web import TlsFiles
from renderonline.storage.disk import MODES, data_directory

ENVIRONMENT_PREFIX: Final = "RENDERAPI_"
_RETRIES: Final = RetryPolicy()


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
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies whose `X-Forwarded-For`, `-Proto` and `-Host` count."""
    data_directory: Path = field(default_factory=data_directory)
    """For the embedded database, logs of attempts, the first login and the ready file."""
    strict_files: bool = False
    """Refuse a settings file or a key that everybody on this computer may read; else there is a warning."""
    strict_scenes: bool = False
    """Refuse every submission of v2 that would have a warning, such as of a file that is missing."""
    download_path: Path | None = None
    """Where uploads and results of the shipped engines go; by default `files` in the data directory."""
    files_mode: str = ""
    """Who on this computer may read uploads and results: `private` (RenderAPI's account), `group`, or `shared`; ""
    stands for private where RenderAPI makes their directory inside its own, else for what the directory is."""
    log_level: str = "info"
    log_json: bool = False
    max_upload_mib: int = 0
    """The largest upload; 0: as much as the disk holds."""
    reserve_mib: int = 256
    """So much of the disk stays free: larger uploads are refused before they begin."""
    grace_s: float = 10.0
    """How long open requests may take to end when the server stops."""
    lease_s: Positive = LEASE_S
    """MySQL: a RenderAPI that stood still for so long is overtaken by one that stands by; the same for all of them."""
    silence_s: Positive = SILENCE_S
    """A machine from which nothing was heard for so long is gone; more than a few of its heartbeats (R1.3 Silence)."""
    return_s: Positive = 60.0
    """After a start every machine has so long to come back before its attempts are lost (R1.3 Silence)."""
    max_tries: PositiveInt = _RETRIES.max_tries
    """A chunk that failed so often has failed for good (R1.4 Retries)."""
    max_kills: PositiveInt = _RETRIES.max_kills
    """A chunk that was lost or out of memory on this number of machines has failed for good (R1.5 Machine blame)."""
    retry_base_s: float = _RETRIES.base_s
    """The longest pause before the second try; it doubles with every try (R1.4 Retries)."""
    retry_cap_s: float = _RETRIES.cap_s
    """No pause between two tries is longer."""
    notify: tuple[str, ...] = field(default=(), repr=False)
    """Apprise addresses that hear of every task that ends and every machine that is benched; they hold passwords."""
    notify_mail: str = field(default="", repr=False)
    """An Apprise mail address without a recipient, for users who ask for a mail when their task ends."""
    session_idle_s: float = 43_200.0
    """A session of the web page without a request for so long is over."""
    session_s: float = 604_800.0
    """Every session of the web page ends after so long."""
    pool_sandbox: Mapping[str, str] = field(default_factory=dict)
    """Pool -> the weakest box (landlock or bwrap) that its machines must have to get work."""
    deliver_roots: Mapping[str, str] = field(default_factory=dict)
    """Name -> directory below which tasks may have their results delivered (`submit --deliver NAME/sub`)."""
    public_url: str = ""
    """The farm's address as people and machines reach it: in messages, and in the line with which a machine joins."""
    sandbox: str = "auto"
    """The box around what reads users' files: `auto` (the best that this computer makes), `bwrap`, `landlock`, `off`,
    or `required` (any, but not without)."""

    @property
    def database(self) -> str:
        """The connection string that counts."""
        return self.connection_string or f"sqlite:///{self.data_directory.absolute() / 'renderonline.sqlite'}"

    def __post_init__(self) -> None:
        _ = self.proxies  # raises for what is no address
        checked_setting(self.sandbox)
        if self.files_mode not in ("", *MODES):
            raise InvalidRequest(f"FilesMode is {', '.join(MODES)} or empty, not {self.files_mode!r}.")
        if not 0 <= self.retry_base_s <= self.retry_cap_s:
            raise InvalidRequest("RetryBaseS must be from 0 to RetryCapS.")
        _ = self.pool_boxes, self.delivery_roots  # what is wrong is raised before anything starts

    @property
    def pool_boxes(self) -> Mapping[str, str]:
        """`pool_sandbox` in canonical form; `InvalidRequest` for what is no pool or no box."""
        return {checked_pool(pool): checked_box(box) for pool, box in self.pool_sandbox.items()}

    @property
    def delivery_roots(self) -> Mapping[str, Path]:
        """`deliver_roots` as paths; `InvalidRequest` for what is no name, for a path that is not absolute, and for one
        that shares a directory with the farm's own files: who submits chooses names below it."""
        found = self.deliver_roots
        if not all(re.fullmatch(r"[A-Za-z0-9_-]{1,50}", name) for name in found):
            raise InvalidRequest('DeliverRoots must be an object such as {"nas": "/mnt/nas/renders"}.')
        if wrong := [name for name, path in found.items() if not Path(path).is_absolute()]:
            raise InvalidRequest(f"DeliverRoots: the directory of {wrong[0]} must be an absolute path.")
        roots = {name: Path(path).resolve() for name, path in found.items()}
        for name, root in roots.items():
            for own in (self.data_directory.resolve(), self.files.resolve()):
                if root.is_relative_to(own) or own.is_relative_to(root):
                    message = f"the directory of {name}, {root}, must lie apart from the farm's own {own}."
                    raise InvalidRequest(f"DeliverRoots: {message}")
        return roots

    @property
    def proxies(self) -> Proxies:
        return Proxies(self.trusted_proxies)

    @property
    def retries(self) -> RetryPolicy:
        return RetryPolicy(self.max_tries, self.retry_base_s, self.retry_cap_s, self.max_kills)

    @property
    def files(self) -> Path:
        """The download path of the shipped engines, absolute."""
        return (self.download_path or self.data_directory / "files").absolute()

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mib * 1024 * 1024 or 2**62


def load_settings(
    file: Path | None = None, *, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from a file (if one is named), the environment and flags; `InvalidRequest` names what is wrong."""
    settings = sources.merge(
        Settings,
        file=sources.read_file(file) if file is not None else {},
        environment=os.environ if environment is None else environment,
        prefix=ENVIRONMENT_PREFIX,
        flags=flags or {},
    )
    key = settings.certificate.priv_pem_path if settings.certificate is not None else None
    sources.check_exposed(file, key, strict=settings.strict_files)
    return settings
