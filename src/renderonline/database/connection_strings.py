"""Connection strings: where the database is, in the existing system's ADO.NET form or as a URL.

    Server=localhost;Database=renderonline;User Id=farm;Password=secret;      the existing RenderAPI.json
    mysql://farm:secret@localhost:3306/renderonline?unix_socket=/run/mysqld/mysqld.sock
    sqlite:////var/lib/renderonline/renderonline.sqlite

No message and no `repr` of this module ever holds the password.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from sqlalchemy import URL

from renderonline.farm.errors import InvalidRequest

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
"""Names (lower case, no spaces) that .NET's MySQL drivers give to what we use; the others don't concern us."""

_URL_OPTIONS: Final = frozenset({"unix_socket", "ssl_mode", "ssl_ca", "charset"})
_SSL_MODES: Final = frozenset({"none", "disabled", "preferred", "required", "verifyca", "verifyfull"})


@dataclass(frozen=True, slots=True)
class Place:
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
        return URL.create(
            "mysql+pymysql",
            username=self.user or None,
            password=self.password or None,
            host=self.host or None,
            port=self.port,
            database=self.database,
        )

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """What PyMySQL needs besides the URL; empty for SQLite."""
        if self.dialect == "sqlite":
            return {}
        arguments: dict[str, Any] = {"charset": "utf8mb4"}
        if self.unix_socket:
            arguments["unix_socket"] = self.unix_socket
        return arguments | _tls_arguments(self)

    @property
    def label(self) -> str:
        """The place in words, for messages and logs; without the password."""
        if self.dialect == "sqlite":
            return self.database
        where = self.unix_socket or f"{self.host}:{self.port}"
        return f"{self.database} on {where}"


def parse(text: str) -> Place:
    """The place that a connection string names. Raises `InvalidRequest` that says what is wrong with it."""
    text = text.strip()
    if not text:
        raise InvalidRequest(
            "The connection string is empty. Give ConnectionString or a URL such as sqlite:///farm.db."
        )
    if "://" in text.split(";", 1)[0].split("=", 1)[0]:
        return _from_url(text)
    return _from_ado(text)


def _from_url(text: str) -> Place:
    try:
        parts = urlsplit(text)
        port = parts.port or 3306
    except ValueError as error:
        raise InvalidRequest(
            "The database URL can't be read. Write special characters in the password as %XX, for instance %40 for @."
        ) from error
    scheme = parts.scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        return _sqlite(text)
    if scheme not in {"mysql", "mariadb"}:
        raise InvalidRequest(
            f"{scheme}:// is not a database we know. Use sqlite:///FILE or mysql://USER:PASSWORD@HOST/NAME."
        )
    options = dict(parse_qsl(parts.query))
    unknown = sorted(options.keys() - _URL_OPTIONS)
    if unknown:
        raise InvalidRequest(
            f"The database URL has an unknown option {unknown[0]}. Known: {', '.join(sorted(_URL_OPTIONS))}."
        )
    return _mysql(
        {
            "host": parts.hostname or "",
            "port": str(port),
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "database": unquote(parts.path.lstrip("/")),
            **options,
        }
    )


def _sqlite(text: str) -> Place:
    path = text.split("://", 1)[1]
    if not path.startswith("/") or path.strip("/") in {"", ":memory:"}:
        raise InvalidRequest(
            "A SQLite URL names a file: sqlite:///relative/file.db or sqlite:////absolute/file.db (four slashes)."
        )
    return Place(dialect="sqlite", database=unquote(path[1:].split("?", 1)[0]))


def _from_ado(text: str) -> Place:
    values: dict[str, str] = {}
    for key, value in _ado_pairs(text):
        known = _ADO_KEYS.get(key.lower().replace(" ", ""))
        if known is not None:
            values[known] = value
    if not values:
        raise InvalidRequest(
            "The connection string can't be read. It looks like Server=…;Database=…;User Id=…;Password=…;"
        )
    protocol = values.pop("protocol", "").lower()
    host = values.get("host", "localhost")
    if host.startswith("/") or protocol in {"unix", "unixsocket"}:
        values["unix_socket"], values["host"] = host, "localhost"
    return _mysql(values)


def _mysql(values: Mapping[str, str]) -> Place:
    if not values.get("database"):
        raise InvalidRequest(
            "The connection string names no database. Add Database=NAME, or /NAME at the end of the URL."
        )
    port = values.get("port", "3306")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidRequest("The port in the connection string is not a number from 1 to 65535.")
    ssl_mode = values.get("ssl_mode", "preferred").lower().replace("_", "").replace("-", "").replace(" ", "")
    if ssl_mode not in _SSL_MODES:
        raise InvalidRequest("SslMode is one of None, Preferred, Required, VerifyCA, VerifyFull.")
    return Place(
        dialect="mysql",
        database=values["database"],
        host=values.get("host") or "localhost",
        port=int(port),
        user=values.get("user", ""),
        password=values.get("password", ""),
        unix_socket=values.get("unix_socket", ""),
        ssl_mode=ssl_mode,
        ssl_ca=values.get("ssl_ca", ""),
    )


def _ado_pairs(text: str) -> list[tuple[str, str]]:
    """`key=value;` pairs; a value may stand in quotes, in which the quote itself is doubled."""
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        key, equals, _ = text[position:].partition("=")
        if not equals:
            break
        position += len(key) + 1
        value, position = _ado_value(text, position)
        pairs.append((key.strip(" ;\t\r\n"), value))
    return pairs


def _ado_value(text: str, position: int) -> tuple[str, int]:
    while position < len(text) and text[position] in " \t":
        position += 1
    quote = text[position : position + 1]
    if quote not in {"'", '"'} or not quote:
        end = text.find(";", position)
        end = len(text) if end < 0 else end
        return text[position:end].strip(), end + 1
    value = ""
    position += 1
    while True:
        end = text.find(quote, position)
        if end < 0:
            raise InvalidRequest("A quote in the connection string is not closed.")
        value += text[position:end]
        if text[end + 1 : end + 2] != quote:
            return value, text.find(";", end) + 1 or len(text)
        value += quote
        position = end + 2


def _tls_arguments(place: Place) -> dict[str, Any]:
    if place.ssl_mode in {"none", "disabled"} or (place.unix_socket and place.ssl_mode == "preferred"):
        return {"ssl_disabled": True}
    if place.ssl_mode == "preferred":
        return {}  # PyMySQL takes TLS when the server has it, as .NET's drivers do
    context = ssl.create_default_context(cafile=place.ssl_ca or None)
    if place.ssl_mode != "verifyfull":
        context.check_hostname = False
    if place.ssl_mode == "required":
        context.verify_mode = ssl.CERT_NONE  # what Required means there: encrypted, whoever answers
    return {"ssl": context}
