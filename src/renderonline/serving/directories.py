"""Where a program keeps its data and its settings, and how private files are read."""

import os
import shlex
import stat
import sys
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path

from renderonline.farm.errors import InvalidRequest


def data_directory() -> Path:
    """The directory for databases, engines and logs: `RENDERONLINE_DATA`, else the user's own data directory."""
    return _named("RENDERONLINE_DATA") or user_data_path("renderonline", appauthor=False)


def config_directory() -> Path:
    """The directory for settings and the client's login: `RENDERONLINE_CONFIG`, else the user's own."""
    return _named("RENDERONLINE_CONFIG") or user_config_path("renderonline", appauthor=False)


def cache_directory() -> Path:
    """The directory for what can be found out again: `RENDERONLINE_CACHE`, else the user's own."""
    return _named("RENDERONLINE_CACHE") or user_cache_path("renderonline", appauthor=False)


def _named(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named).expanduser().absolute() if named else None


def private_read(path: Path) -> str:
    """The text of a file that `write_private` wrote. `InvalidRequest` when others than its owner may read it by now."""
    if sys.platform != "win32" and stat.S_IMODE(path.stat().st_mode) & (stat.S_IRGRP | stat.S_IROTH):
        raise InvalidRequest(f"Others may read {path}, which holds a secret. {_mended_by(path)}")
    return path.read_text(encoding="utf-8")


def exposed(path: Path) -> str:
    """What to tell about a file of the operator's that everybody on this computer may read; "" when they may not, or
    when it is not there. A group may read it: keys are often shared so."""
    if sys.platform == "win32":
        return ""
    try:
        is_open = path.stat().st_mode & stat.S_IROTH
    except OSError:  # who opens it says why
        return ""
    return f"Everybody on this computer may read {path}, which may hold secrets. {_mended_by(path)}" if is_open else ""


def _mended_by(path: Path) -> str:
    return f"Type: chmod 600 {shlex.quote(str(path))}"
