"""Errors of the database in words that say what to do next."""

import sqlite3

from sqlalchemy.exc import OperationalError

from renderonline.database.connecting import in_words, parse
from renderonline.farm.errors import NotAvailable


def test_sqlite_disk_that_refuses_is_told_in_words_and_not_as_an_unexpected_error() -> None:
    refused = sqlite3.OperationalError("disk I/O error")
    refused.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    told = in_words(OperationalError("COMMIT", {}, refused), parse("sqlite:////srv/farm.sqlite"))
    assert isinstance(told, NotAvailable)
    assert "Make room" in str(told)
