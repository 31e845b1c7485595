"""A migration in a process of its own that kills itself in the middle."""

import multiprocessing
import os
import signal
import time
from typing import Any

from sqlalchemy import Engine, event

from renderonline.database.door import Database
from renderonline.database.upkeep import Report, migrate
from renderonline.farm.errors import Conflict

_CHANGES = ("CREATE", "ALTER", "INSERT", "UPDATE", "DELETE", "DROP", "COMMIT")


def migrate_until(url: str, statements: int) -> bool:
    """Migrate in a process that gets SIGKILL after so many changing statements; gives whether it came so far."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_migrate, args=(url, statements))
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode != 0


def _migrate(url: str, statements: int) -> None:
    left = statements

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal left
        left -= statement.lstrip().upper().startswith(_CHANGES)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", count)
    with Database.open(url) as database:
        migrate_when_free(database)


def migrate_when_free(database: Database) -> Report:
    """Migrate; MySQL needs a moment to notice that the one who held the lease is gone."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return migrate(database)
        except Conflict:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
