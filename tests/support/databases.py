"""Fresh databases quickly: the schema is migrated once for each kind, then copied."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from renderonline.database.door import Database
from renderonline.database.upkeep import migrate
from tests.support.mariadb import PrivateMariaDB, database_name

MEMORY: Final = Path("/dev/shm")


@contextlib.contextmanager
def directory_in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory for a database that waits for no disk, or `otherwise` where there is no memory for files.

    These tests kill programs and pull no plug; most of what a test of RenderAPI waited for was `fdatasync`.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < 1 << 30:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="renderonline-", dir=MEMORY, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


class Templates:
    """Migrated databases to copy from; each is made when it is first wanted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mariadb: str | None = None
        self._tables: list[str] = []

    def copy_sqlite(self, url: str) -> None:
        """Make the SQLite file of `url` a migrated database."""
        template = self._directory / "template.sqlite"
        if not template.exists():
            _migrate(f"sqlite:///{template}")
        shutil.copy(template, url.removeprefix("sqlite:///"))

    def copy_mariadb(self, server: PrivateMariaDB, url: str) -> None:
        """Make the empty MariaDB database of `url` a migrated one."""
        if self._mariadb is None:
            template = server.create_database()
            _migrate(template)
            self._mariadb = database_name(template)
            with server.connect(self._mariadb) as connection, connection.cursor() as cursor:
                cursor.execute("SHOW TABLES")
                self._tables = [str(name) for (name,) in cursor.fetchall()]
        source, target = self._mariadb, database_name(url)
        server.execute(
            *(f"CREATE TABLE `{table}` LIKE {source}.`{table}`" for table in self._tables),
            f"INSERT INTO `farm` SELECT * FROM {source}.`farm`",
            database=target,
        )


def _migrate(url: str) -> None:
    with Database.open(url) as database:
        migrate(database)
