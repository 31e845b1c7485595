"""The desktop program's login, kept in the system's keyring and nowhere else."""

import json
from dataclasses import asdict, fields

import keyring
from keyring.errors import KeyringError

from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk.connection import Login

_SERVICE, _ENTRY = "renderonline", "desktop"
_FIELDS = tuple(field.name for field in fields(Login))


def remembered() -> Login | None:
    """The login of the last time; None when there is none, or no keyring that can be opened."""
    try:
        found = json.loads(keyring.get_password(_SERVICE, _ENTRY) or "null")
        return Login(**{name: found[name] for name in _FIELDS if found.get(name)})
    except (KeyringError, ValueError, TypeError, AttributeError, InvalidRequest):
        return None


def remember(login: Login) -> bool:
    """Keep a login; False when this system has no keyring that takes it."""
    try:
        keyring.set_password(_SERVICE, _ENTRY, json.dumps(asdict(login)))
    except KeyringError:
        return False
    return True


def forget() -> None:
    """Keep none."""
    try:
        keyring.delete_password(_SERVICE, _ENTRY)
    except KeyringError:
        return
