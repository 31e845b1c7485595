"""`renderonline desktop`."""

import os
import sys

from renderonline.cli.commands import URL, command, group
from renderonline.cli.logins import saved
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Login

commands = group("The desktop program.")


@command(commands, "renderonline desktop", "renderonline desktop --url https://farm.example:5000")
def desktop(*, url: str | None = URL) -> int:
    """The web page in a window of its own, with native dialogs, downloads that resume, and messages when tasks end.

    The login is asked for once and kept in the system's keyring.
    """
    try:
        from renderonline.rnoclient.desktop import remembering, shell
    except ImportError as error:
        raise InvalidRequest(
            f"The desktop program needs Qt and a keyring ({error}). Install them: pip install 'renderonline[desktop]'"
        ) from None
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))):
        raise InvalidRequest("There is no screen here (DISPLAY is not set): start it in a desktop session.")
    given = os.environ.get("RENDERONLINE_EMAIL"), os.environ.get("RENDERONLINE_TOKEN")
    if url and all(given):
        return shell.run(Login(url, *map(str, given)))
    kept = remembering.remembered()
    known = [one for one in (kept, saved()) if one is not None and url in (None, one.url)]
    return shell.run(known[0] if known else None, url=url or "", is_new=bool(known) and known[0] is not kept)
