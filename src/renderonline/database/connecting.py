"""Connection strings, how each database is opened, and what its errors mean.

Connection strings have the existing system's ADO.NET form, or are URLs:

    Server=localhost;Database=renderonline;User Id=farm;Password=secret;      the existing RenderAPI.json
    mysql://farm:secret@localhost:3306/renderonline?unix_socket=/run/mysqld/mysqld.sock
    sqlite:////var/lib/renderonline/renderonline.sqlite

No message and no `repr` of this module ever holds the password.

SQLite: WAL with `synchronous=FULL`, writers take the lock at once (`BEGIN IMMEDIATE`), readers see one moment.
MySQL: strict mode, UTC, writers READ COMMITTED (R3.3 Database sessions), readers REPEATABLE READ so that they see one
moment as well.
"""

import os
import re
import sqlite3
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable

_ADO_KEYS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("server", "host", "datasource", "address", "addr", "networkaddress"), "host"),
    **dict.fromkeys(("database", "initialcatalog"), "database"),
    **dict.fromkeys(("userid", "uid", "username", "user"), "user"),
    **dict.fromkeys(("password", "pwd"), "password"),
    **dict.fromkeys(("sslmode", "ssl-mode"), "ssl_mode"),
    **dict.fromkeys(("sslca", "ssl-ca", "cacertificatefile"), "ssl_ca"),
    **dict.fromkeys(("protocol", "connectionprotocol"), "protocol"),
    "port": "port",
}
"""The keys that we use, by all their names (lower case, no spaces) in .NET's MySQL drivers; others are ignored."""
_ADO_PAIR: Final = re.compile(
    r"""([^=;]+) = \s* (?: '((?:[^']|'')*)'(?!') | "((?:[^"]|"")*)"(?!") | ([^;]*) ) [^;]*""", re.VERBOSE
)
"""`key=value`; a value may stand in quotes, in which the quote itself is doubled."""
_URL_OPTIONS: Final = frozenset({"unix_socket", "ssl_mode", "ssl_ca", "charset"})
_SSL_MODES: Final = frozenset({"none", "disabled", "preferred", "required", "verifyca", "verifyfull"})


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """Where a database is and how to reach it. `dialect` is `sqlite` or `mysql` (MariaDB is `mysql` too)."""

    dialect: str
    database: str
    """The name of the database, or the path of the SQLite file (`:memory:` is not taken: readers share a file)."""
    host: str = ""
    port: int = 3306
    user: str = ""
    password: str = field(default="", repr=False)
    unix_socket: str = ""
    ssl_mode: str = "preferred"
    ssl_ca: str = ""

    @property
    def url(self) -> URL:
        """What SQLAlchemy connects to."""
        if self.dialect == "sqlite":
            return URL.create("sqlite+pysqlite", database=self.database)
        account = (self.user or None, self.password or None)
        return URL.create("mysql+pymysql", *account, self.host, self.port, self.database)

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """What PyMySQL needs besides the URL; empty for SQLite."""
        if self.dialect == "sqlite":
            return {}
        socket = {"unix_socket": self.unix_socket} if self.unix_socket else {}
        return {"charset": "utf8mb4", **socket, **_tls_arguments(self)}

    @property
    def label(self) -> str:
        """The place in words, for messages and logs; without the password."""
        if self.dialect == "sqlite":
            return self.database
        return f"{self.database} on {self.unix_socket or f'{self.host}:{self.port}'}"


def parse(text: str) -> DatabasePlace:
    """The place that a connection string names. Raises `InvalidRequest` that says what is wrong with it."""
    text = text.strip()
    if not text:
        raise InvalidRequest(
            "The connection string is empty. Give ConnectionString or a URL such as sqlite:///farm.db."
        )
    if re.match(r"sqlite(\+\w+)?:", text, re.IGNORECASE):
        return _sqlite(text)
    return _mysql(_url_values(text) if "://" in re.split("[;=]", text, maxsplit=1)[0] else _ado_values(text))


def _sqlite(text: str) -> DatabasePlace:
    path = text.partition("://")[2]
    if not path.startswith("/") or path.strip("/") in {"", ":memory:"}:
        raise InvalidRequest(
            "A SQLite URL names a file: sqlite:///relative/file.db or sqlite:////absolute/file.db (four slashes)."
        )
    return DatabasePlace(dialect="sqlite", database=unquote(path[1:].split("?", 1)[0]))


def _url_values(text: str) -> dict[str, str]:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise InvalidRequest(
            "The database URL can't be read. Write special characters in the password as %XX, for instance %40 for @."
        ) from error
    scheme = url.drivername.partition("+")[0].lower()
    if scheme not in {"mysql", "mariadb"}:
        raise InvalidRequest(
            f"{scheme}:// is not a supported database. Use sqlite:///FILE or mysql://USER:PASSWORD@HOST/NAME."
        )
    options = {name: str(value) for name, value in url.query.items()}
    if unknown := sorted(options.keys() - _URL_OPTIONS):
        known = ", ".join(sorted(_URL_OPTIONS))
        raise InvalidRequest(f"The database URL has an unknown option {unknown[0]}. Known: {known}.")
    account = {"user": url.username or "", "password": str(url.password or "")}
    place = {"host": url.host or "", "port": str(url.port or 3306), "database": unquote(url.database or "")}
    return account | place | options


def _ado_values(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, single, double, bare in _ADO_PAIR.findall(text):
        if bare.startswith(("'", '"')):
            raise InvalidRequest("A quote in the connection string is not closed.")
        known = _ADO_KEYS.get(name.strip().lower().replace(" ", ""))
        if known is not None:
            values[known] = single.replace("''", "'") or double.replace('""', '"') or bare.strip()
    if not values:
        raise InvalidRequest(
            "The connection string can't be read. It looks like Server=…;Database=…;User Id=…;Password=…;"
        )
    host = values.get("host", "localhost")
    if host.startswith("/") or values.get("protocol", "").lower() in {"unix", "unixsocket"}:
        values |= {"unix_socket": host, "host": "localhost"}
    return values


def _mysql(values: Mapping[str, str]) -> DatabasePlace:
    if not values.get("database"):
        raise InvalidRequest(
            "The connection string names no database. Add Database=NAME, or /NAME at the end of the URL."
        )
    port = values.get("port", "3306")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidRequest("The port in the connection string is not a number from 1 to 65535.")
    ssl_mode = re.sub("[-_ ]", "", values.get("ssl_mode", "preferred").lower())
    if ssl_mode not in _SSL_MODES:
        raise InvalidRequest("SslMode is one of None, Preferred, Required, VerifyCA, VerifyFull.")
    others = {name: values.get(name, "") for name in ("user", "password", "unix_socket", "ssl_ca")}
    host = values.get("host") or "localhost"
    return DatabasePlace("mysql", values["database"], host=host, port=int(port), ssl_mode=ssl_mode, **others)


def _tls_arguments(place: DatabasePlace) -> dict[str, Any]:
    if place.ssl_mode in {"none", "disabled"} or (place.unix_socket and place.ssl_mode == "preferred"):
        return {"ssl_disabled": True}
    if place.ssl_mode == "preferred":
        return {}  # PyMySQL takes TLS when the server has it, as .NET's drivers do
    context = ssl.create_default_context(cafile=place.ssl_ca or None)
    if place.ssl_mode != "verifyfull":
        context.check_hostname = False
    if place.ssl_mode == "required":
        context.verify_mode = ssl.CERT_NONE  # what Required means there: encrypted, but anybody may answer
    return {"ssl": context}


_STRICT: Final = "STRICT_TRANS_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_LOCK_WAIT_S: Final = 10
_SOCKET_S: Final = 60
"""A server that is silent for this long is gone; every statement of the farm takes far less."""

# Changed meanwhile, too many connections, shutdown, lock timeout, deadlock, read only (failover), killed; then all ways
# in which a connection is lost, was silent for too long, or can't be made.
_TRANSIENT_MYSQL: Final = frozenset({1020, 1040, 1053, 1205, 1213, 1290, 1927, 2002, 2003, 2006, 2013, 2055, 4031})
_BUSY_SQLITE: Final = frozenset({5, 6})

_FULL: Final = "The disk of the database {0.label} is full. Make room there; nothing was changed."
_OLD: Final = "The database {0.label} lacks tables of this version. Run `renderonline db migrate`."
_SILENT: Final = "The database {0.label} does not answer. Check that it runs and can be reached."
_MYSQL_WORDS: Final = (
    (_TRANSIENT_MYSQL, _SILENT),
    ((28, 1021, 1114), _FULL),
    (
        (1044, 1045, 1698),
        "The database {0.label} refuses the user {user}. Check user and password in the connection string.",
    ),
    ((1142, 1227), "The user {user} may not do this in the database {0.label}. Give it all privileges there."),
    ((1054, 1146), _OLD),
    ((1049,), "There is no database {0.database}. Create it first: CREATE DATABASE {0.database};"),
)
_SQLITE_WORDS: Final = (
    (_BUSY_SQLITE, "The database {0.label} is locked by another program. Stop it, or try again."),
    ((8, 14), "The database {0.label} can't be opened for writing. Check who may write there."),
    ((10,), "The disk of the database {0.label} refuses to be written or read. Make room there, or repair it."),
    ((13,), _FULL),
    ((26,), "{0.label} is not a SQLite database. Name another file, or restore a backup."),
)


def writer_engine(place: DatabasePlace, idle_s: float) -> Engine:
    """The engine of the one writer. A program that hangs must not keep its locks: MySQL ends its connection after
    `idle_s` without a statement."""
    return _engine(
        place, begin="BEGIN IMMEDIATE", isolation="READ COMMITTED", size=1, socket_s=_SOCKET_S, idle_s=idle_s
    )


def reader_engine(place: DatabasePlace, readers: int) -> Engine:
    """The engine of the readers; on SQLite it can't write."""
    engine = _engine(place, begin="BEGIN", isolation="REPEATABLE READ", size=readers, socket_s=_SOCKET_S)
    if place.dialect == "sqlite":
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA query_only=ON").close())
    return engine


def patient_engine(place: DatabasePlace) -> Engine:
    """An engine of one connection for work that may be silent for long: migrations and backups."""
    return _engine(place, begin="BEGIN IMMEDIATE", isolation="REPEATABLE READ", size=1, socket_s=None)


def _engine(
    place: DatabasePlace, *, begin: str, isolation: str, size: int, socket_s: int | None, idle_s: float | None = None
) -> Engine:
    options: dict[str, Any]
    if place.dialect == "sqlite":
        options = {"check_same_thread": False, "isolation_level": None, "timeout": _LOCK_WAIT_S}
        engine = create_engine(place.url, connect_args=options, pool_size=size)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine
    session = f"sql_mode='{_STRICT}', time_zone='+00:00', innodb_lock_wait_timeout={_LOCK_WAIT_S}"
    if idle_s is not None:
        session += f", wait_timeout={max(1, round(idle_s))}"
    options = {"connect_timeout": 10, "read_timeout": socket_s, "write_timeout": socket_s}
    options |= {"init_command": f"SET SESSION {session}", **place.connect_arguments}
    return create_engine(place.url, connect_args=options, isolation_level=isolation, pool_size=size, pool_recycle=3600)


def make_file(place: DatabasePlace) -> None:
    """Create the SQLite file, readable by its owner only: it holds the accounts. Does nothing when it exists."""
    path = Path(place.database)
    if not path.parent.is_dir():
        raise InvalidRequest(f"The directory {path.parent} of the database does not exist. Create it first.")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise NotAvailable(f"The database {path} can't be created: {error.strerror}.") from error


def is_transient(error: BaseException) -> bool:
    """Whether running the same transaction again may help: deadlock, lock timeout, lost connection."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _code(error) in _BUSY_SQLITE
    return error.connection_invalidated or _code(error) in _TRANSIENT_MYSQL


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection that raised this must not be used again."""
    return isinstance(error, DBAPIError) and (error.connection_invalidated or _code(error) >= 2000)


def in_words(error: BaseException, place: DatabasePlace) -> BaseException:
    """An error of the database as one that a person understands; unknown errors are returned as they are."""
    if not isinstance(error, DBAPIError):
        return error
    is_sqlite = isinstance(error.orig, sqlite3.Error)
    code = _code(error)
    words = next((words for codes, words in (_SQLITE_WORDS if is_sqlite else _MYSQL_WORDS) if code in codes), None)
    if is_sqlite and str(error.orig).startswith(("no such table", "no such column")):
        words = _OLD
    elif error.connection_invalidated:
        words = words or _SILENT
    if words is None:
        return error
    return (NoSpace if words is _FULL else NotAvailable)(words.format(place, user=place.user or "(none)"))


@contextmanager
def explained(place: DatabasePlace) -> Iterator[None]:
    """Errors of the database inside are raised `in_words`."""
    try:
        yield
    except DBAPIError as error:
        words = in_words(error, place)
        if words is error:
            raise
        raise words from error


def _code(error: DBAPIError) -> int:
    if isinstance(error.orig, sqlite3.Error):
        return int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF
    arguments = error.orig.args if error.orig is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.create_function("casefold", 1, lambda text: str(text).casefold(), deterministic=True)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").close()
