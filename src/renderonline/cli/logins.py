"""Which RenderAPI the client commands speak to, and as whom: options < environment < `client.json`."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from renderonline.farm.errors import InvalidRequest, NotAuthenticated
from renderonline.rnoclient.sdk import Client, Login
from renderonline.sandbox.privacy import write_private
from renderonline.serving.directories import config_directory, private_read

FIELDS = tuple(field.name for field in fields(Login))


def config_file() -> Path:
    """Where the login is kept, readable by its owner only."""
    return config_directory() / "client.json"


def saved() -> Login | None:
    """The login of `renderonline login`; None when there is none. `InvalidRequest` for a file that others may read."""
    path = config_file()
    try:
        found = json.loads(private_read(path))
        return Login(**{name: found[name] for name in FIELDS if found.get(name)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        raise InvalidRequest(f"{path} can't be read; write it anew with `renderonline login`.") from None


def save(login: Login) -> Path:
    """Keep a login for the next commands."""
    path = config_file()
    write_private(path, json.dumps(_known(login), indent=2) + "\n")
    return path


def current(url: str | None) -> Login:
    """The login to use; `url` (option `--url`) and the environment `RENDERONLINE_*` come before what is saved.

    A saved e-mail and token are sent to the address that they were saved for and to no other.
    """
    kept = saved()
    given = {name: value for name in FIELDS if (value := os.environ.get(f"RENDERONLINE_{name.upper()}"))}
    wanted = url or given.get("url") or (kept.url if kept else None)
    if wanted is None:
        raise NotAuthenticated(
            "Which farm? Type `renderonline login` to name one, or `renderonline up` to start one here."
        )
    fits = kept is not None and _addresses(wanted) <= _addresses(kept.url)
    login = Login(**{**(_known(kept) if kept and fits else {}), **given, "url": wanted})
    if not login.email or not login.token:
        raise NotAuthenticated(f"There is no login for {wanted}. Type `renderonline login --url {wanted}`.")
    return login


def connect(url: str | None) -> Client:
    """A client with the current login, whose uploads go on where an earlier command stopped."""
    return Client(current(url), patience_s=2.0)


def _addresses(urls: str) -> set[str]:
    return {url.strip().rstrip("/").casefold() for url in urls.split(",")}


def _known(login: Login) -> dict[str, str]:
    return {name: value for name, value in asdict(login).items() if value}
