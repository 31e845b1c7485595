"""Roles, tokens."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.accounts import (
    PERMISSIONS,
    TOKEN_PREFIX,
    Permission,
    Role,
    Subscription,
    User,
    hash_token,
    may,
    token_matches,
)


def test_every_role_may_do_its_own_tasks_and_admins_everything() -> None:
    assert all(may(role, Permission.OWN_TASKS) for role in Role)
    assert all(may(Role.ADMIN, permission) for permission in Permission)
    assert set(PERMISSIONS) == set(Role)


@pytest.mark.parametrize(
    ("role", "permission", "allowed"),
    [
        (Role.OPERATOR, "tasks.all", True),
        (Role.OPERATOR, "machines", True),
        (Role.OPERATOR, "engines", False),
        (Role.OPERATOR, "users", False),
        (Role.ARTIST, "tasks.all", False),
        (Role.ARTIST, "machines", False),
        (Role.ADMIN, "no such permission", False),
    ],
)
def test_what_a_role_may_do_stands_in_one_table(role: Role, permission: str, allowed: bool) -> None:
    assert may(role, permission) is allowed


def test_the_least_role_is_the_default() -> None:
    user = User(1, "Ada", "Lovelace", "ada@example.org", 1, is_active=True)
    assert user.role is Role.ARTIST
    assert Subscription(1, "Small", 3).share == 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_hashed_token_matches_only_itself(raw: str, other: str) -> None:
    stored = hash_token(raw)
    assert token_matches(stored, raw)
    assert token_matches(stored, other) is (raw == other)


@given(st.text(min_size=1).filter(lambda text: not text.startswith(TOKEN_PREFIX)), st.text())
def test_a_raw_token_of_an_adopted_row_is_compared_raw(stored: str, other: str) -> None:
    assert token_matches(stored, stored)
    assert token_matches(stored, other) is (stored == other)


def test_the_hash_is_no_token_and_nothing_is_no_token() -> None:
    stored = hash_token("secret")
    assert stored == TOKEN_PREFIX + hashlib.sha256(b"secret").hexdigest()
    assert not token_matches(stored, stored)
    assert not token_matches("", "")
    assert not token_matches(hash_token(""), "")
    assert not token_matches("secret", "\ud800")
