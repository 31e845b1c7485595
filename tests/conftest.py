"""Fixtures that all tests share: a fresh database each, once on SQLite and once on a private MariaDB."""

import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from renderonline.database.door import Database
from tests.support.databases import Templates, directory_in_memory
from tests.support.mariadb import PrivateMariaDB

pytest_plugins = ("tests.support.kinds",)

# How fast a busy machine is says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What a shell starts in its background ignores Ctrl-C, and so would every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

KINDS = (pytest.param("sqlite", marks=pytest.mark.sqlite), pytest.param("mariadb", marks=pytest.mark.mariadb))


@pytest.fixture(autouse=True)
def logs_of_one_test() -> Iterator[None]:
    """What a test sets up for logs ends with it: a program that it runs in this process does, for all that follow."""
    root = logging.getLogger()
    level = root.level
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.setLevel(level)
        for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[PrivateMariaDB]:
    """The session's MariaDB (Unix socket). Without mariadbd the tests that ask for it fail."""
    with PrivateMariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def database_templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Migrated databases that `migrated_url` copies."""
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    """`sqlite` or `mariadb`; what asks for it runs once on each, and carries the marker of that name."""
    return str(request.param)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    if database_kind == "sqlite":
        with directory_in_memory(tmp_path) as directory:
            yield f"sqlite:///{directory / 'farm.sqlite'}"
        return
    server: PrivateMariaDB = request.getfixturevalue("mariadb")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def migrated_url(
    database_kind: str, database_url: str, database_templates: Templates, request: pytest.FixtureRequest
) -> str:
    """The URL of a fresh database with the whole schema and no rows."""
    if database_kind == "sqlite":
        database_templates.copy_sqlite(database_url)
    else:
        database_templates.copy_mariadb(request.getfixturevalue("mariadb"), database_url)
    return database_url


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database, open."""
    async with Database.open(migrated_url) as opened:
        yield opened
