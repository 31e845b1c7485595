"""Which boxes this computer makes, found out by making one: a kernel or its AppArmor may forbid what is installed."""

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.farm.needs import BoxAdvice, BoxKind
from renderonline.sandbox import box
from renderonline.sandbox.box import Box, Found, start

SETTINGS: Final = ("auto", "bwrap", "landlock", "off", "required")
"""What the setting `Sandbox` can be."""
TRY_S: Final = 10.0
_TRIAL: Final = 'cat "$0" >/dev/null 2>&1 && exit 3; test -r /etc/passwd'
"""A file outside must not be readable, and the system must be there."""
_FORBIDDEN: Final = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", BoxAdvice.APPARMOR),
    ("kernel/unprivileged_userns_clone", "0", BoxAdvice.USERS),
    ("user/max_user_namespaces", "0", BoxAdvice.NAMESPACES),
)
"""What keeps an ordinary account from making namespaces."""


class NoBox(NotAvailable):
    """The settings ask for a box that this computer does not make."""

    code = "no_sandbox"


def checked(setting: str) -> str:
    """The setting in lower case. Raises `InvalidRequest`."""
    if (known := setting.casefold()) not in SETTINGS:
        raise InvalidRequest(f"Sandbox must be one of {', '.join(SETTINGS)}, not {setting}.")
    return known


def probe(setting: str) -> Found:
    """The best box that `setting` allows and this computer makes. Raises `NoBox` when the setting asks for one and
    there is none. Takes a few hundredths of a second."""
    setting = checked(setting)
    if setting == "off":
        return Found(advice=BoxAdvice.SETTING)
    advice, found = "", Found()
    if setting != "landlock":
        found = _bubblewrap()
        advice = found.advice
    if found.kind == BoxKind.NONE and setting != "bwrap":
        found = _landlock(advice)
    if found.kind == BoxKind.NONE and setting != "auto":
        asked = "no sandbox" if setting == "required" else f"no sandbox of kind {setting}"
        hint = f" Try: {found.advice}" if found.advice else ""
        raise NoBox(f"This computer has {asked}, and the setting Sandbox is {setting}.{hint}")
    return found


def _bubblewrap() -> Found:
    program = shutil.which("bwrap")
    if program is None:
        return Found(advice=BoxAdvice.INSTALL)
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([program, "--version"], capture_output=True, timeout=TRY_S, check=True).stdout
        numbers = re.search(rb"\d+(\.\d+)+", said)
        version = f"bubblewrap {numbers[0].decode() if numbers else ''}".strip()
        for is_final in (True, False):
            if _works(found := Found(BoxKind.BWRAP, version, program=program, is_final=is_final)):
                return found
    return Found(advice=_allowing())


def _allowing() -> str:
    """The line that lets bubblewrap make its namespaces."""
    for name, value, advice in _FORBIDDEN:
        with suppress(OSError):
            if Path("/proc/sys", name).read_text(encoding="ascii").strip() == value:
                return advice
    return BoxAdvice.TRY


def _landlock(advice: str) -> Found:
    """`advice`: what would get bubblewrap."""
    version = box.abi()
    found = Found(BoxKind.LANDLOCK, f"Landlock ABI {version}", advice, abi=version)
    return found if version and _works(found) else Found(advice=advice)


def _works(found: Found) -> bool:
    with tempfile.NamedTemporaryFile() as outside, suppress(OSError, subprocess.SubprocessError):
        nothing, argv = subprocess.DEVNULL, ["/bin/sh", "-c", _TRIAL, outside.name]
        with start(
            found, Box(), argv, directory="/", stdin=nothing, stdout=nothing, stderr=nothing, env={"PATH": os.defpath}
        ) as trial:
            try:
                return trial.wait(TRY_S) == 0
            finally:
                trial.kill()
    return False
