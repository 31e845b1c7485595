"""Accounts: roles and their permissions, users, subscriptions, and tokens (R12 Tokens)."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """The role of a user on the farm."""

    ADMIN = "admin"
    OPERATOR = "operator"
    ARTIST = "artist"


class Permission(StrEnum):
    """What a caller must be allowed to do."""

    OWN_TASKS = "tasks.own"
    ALL_TASKS = "tasks.all"
    MACHINES = "machines"
    ENGINES = "engines"
    USERS = "users"


PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.ADMIN: frozenset(Permission),
    Role.OPERATOR: frozenset({Permission.OWN_TASKS, Permission.ALL_TASKS, Permission.MACHINES}),
    Role.ARTIST: frozenset({Permission.OWN_TASKS}),
}


def may(role: Role, permission: Permission | str) -> bool:
    """Return whether users of this role have this permission; False for an unknown permission."""
    return permission in PERMISSIONS[role]


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    user_id: int
    first_name: str
    last_name: str
    email: str
    subscription_id: int
    is_active: bool
    role: Role = Role.ARTIST


@dataclass(frozen=True, slots=True)
class Subscription:
    """The limits of a user (0: no limit): `queue_limit` tasks that wait or run, `running_limit` chunks that run at
    once, `keep_days` until an ended task is deleted, `keep_mib` MiB of files of all tasks. `share`: the share inside a
    priority class (R9 Scheduling). `names`: the template for names of results (`farm.result_names`) of tasks without
    their own."""

    subscription_id: int
    name: str
    queue_limit: int
    share: int = 1
    running_limit: int = 0
    keep_days: int = 0
    keep_mib: int = 0
    names: str = ""


TOKEN_PREFIX: Final = "$rno1$"  # noqa: S105 (a mark, no password)
"""The beginning of a stored hash; stored values without it are raw tokens of the existing system."""


def hash_token(raw: str) -> str:
    """Return the hash that is stored for a token. A plain hash is enough, because our tokens are long and random."""
    return TOKEN_PREFIX + hashlib.sha256(_bytes(raw)).hexdigest()


def token_matches(stored: str, raw: str) -> bool:
    """Return in constant time whether `raw` is the token of `stored`. An empty token matches nothing."""
    given = hash_token(raw) if stored.startswith(TOKEN_PREFIX) else raw
    same = hmac.compare_digest(_bytes(stored), _bytes(given))
    return same and bool(raw) and bool(stored)


def _bytes(text: str) -> bytes:
    # Headers may hold anything; a lone surrogate must not raise.
    return text.encode("utf-8", "surrogatepass")
