"""Accounts: users, subscriptions, roles and what they may do, tokens (R12 Tokens)."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a user is on the farm."""

    ADMIN = "admin"
    OPERATOR = "operator"
    ARTIST = "artist"


class Permission(StrEnum):
    """What a call needs."""

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
    """Whether somebody of this role may do this; an unknown permission is nobody's."""
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
    """What a user may use: tasks waiting or running at once, the share inside a priority class (R9 Scheduling), and
    chunks that run at once; how many days a task stays after its end, and how much its files may take together (0: no
    limit). `names`: what results of its tasks are called when they leave the farm (`farm.result_names`), if the task
    does not say it."""

    subscription_id: int
    name: str
    queue_limit: int
    share: int = 1
    running_limit: int = 0
    keep_days: int = 0
    keep_mib: int = 0
    names: str = ""


TOKEN_PREFIX: Final = "$rno1$"  # noqa: S105 (a mark, no password)
"""What a stored hash begins with; such a value is never compared raw."""


def hash_token(raw: str) -> str:
    """What is stored for a token. Our tokens are random and long, so a plain hash does."""
    return TOKEN_PREFIX + hashlib.sha256(_bytes(raw)).hexdigest()


def token_matches(stored: str, raw: str) -> bool:
    """Whether `raw` is the token that `stored` stands for, in constant time. An empty token matches nothing."""
    given = hash_token(raw) if stored.startswith(TOKEN_PREFIX) else raw
    same = hmac.compare_digest(_bytes(stored), _bytes(given))
    return same and bool(raw) and bool(stored)


def _bytes(text: str) -> bytes:
    # Headers may hold anything; a lone surrogate must not raise.
    return text.encode("utf-8", "surrogatepass")
