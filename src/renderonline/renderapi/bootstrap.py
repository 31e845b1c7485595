"""The first start: an empty database gets what a farm can't be without, and somebody who may administer it."""

import json
import secrets
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from renderonline.database import Connection, Database, accounts, engines
from renderonline.database.accounts import NewUser
from renderonline.engines.loading import shipped
from renderonline.farm.accounts import Role, hash_token
from renderonline.renderapi.administration import add_engine
from renderonline.serving.directories import private_write

log = structlog.get_logger(__name__)

FIRST_LOGIN: Final = "first-login.json"


def bootstrap(database: Database, *, files: Path, data_directory: Path, now_us: int) -> None:
    """Make what is missing: a subscription, an administrator, and on a new farm the shipped engines. Blocks."""
    files.mkdir(parents=True, exist_ok=True)
    if not database.read_now(engines.list_engines) and not database.read_now(accounts.list_users):
        for toml in shipped().values():
            database.write_now(partial(add_engine, definition=toml, download_path=str(files)))
    if not database.read_now(accounts.has_admin):
        _add_admin(database, data_directory / FIRST_LOGIN, now_us)


def _add_admin(database: Database, path: Path, now_us: int) -> None:
    token = secrets.token_urlsafe(32)
    taken = {user.email.casefold() for user in database.read_now(accounts.list_users)}
    email = "admin@localhost"
    while email in taken:
        email = f"admin-{secrets.token_hex(3)}@localhost"
    # The file first: a login that nobody knows would lock everybody out for good.
    private_write(path, json.dumps({"url": "", "email": email, "token": token}))

    def add(connection: Connection) -> None:
        known = accounts.list_subscriptions(connection)
        subscription = known[0] if known else accounts.add_subscription(connection, "standard", queue_limit=100)
        new = NewUser(email, hash_token(token), subscription.subscription_id, "First", "Administrator", Role.ADMIN)
        accounts.add_user(connection, new, now_us=now_us)

    database.write_now(add)
    log.info("first login was made", email=email, file=str(path))


def announce_login(data_directory: Path, url: str) -> None:
    """Write the address into the first login's file, as long as it is there."""
    path = data_directory / FIRST_LOGIN
    try:
        login = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if login.get("url") != url:
        private_write(path, json.dumps({**login, "url": url}))
