"""Connection strings: where the database is, in the existing system's ADO.NET form or as a URL.

    Server=localhost;Database=renderonline;User Id=farm;Password=secret;      the existing RenderAPI.json
    mysql://farm:secret@localhost:3306/renderonline?unix_socket=/run/mysqld/mysqld.sock
    sqlite:////var/lib/renderonline/renderonline.sqlite

No message and no `repr` of this module ever holds the password.
"""

import re
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

_ADO_PAIR: Final = re.compile(
    r"""([^=;]+) = \s* (?: '((?:[^']|'')*)'(?!') | "((?:[^"]|"")*)"(?!") | ([^;]*) ) [^;]*""", re.VERBOSE
)
"""`key=value`; a value may stand in quotes, in which the quote itself is doubled."""
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


def parse(text: str) -> Place:
    """The place that a connection string names. Raises `InvalidRequest` that says what is wrong with it."""
    text = text.strip()
    if not text:
        raise InvalidRequest(
            "The connection string is empty. Give ConnectionString or a URL such as sqlite:///farm.db."
        )
    if re.match(r"sqlite(\+\w+)?:", text, re.IGNORECASE):
        return _sqlite(text)
    return _mysql(_url_values(text) if "://" in re.split("[;=]", text, maxsplit=1)[0] else _ado_values(text))


def _sqlite(text: str) -> Place:
    path = text.partition("://")[2]
    if not path.startswith("/") or path.strip("/") in {"", ":memory:"}:
        raise InvalidRequest(
            "A SQLite URL names a file: sqlite:///relative/file.db or sqlite:////absolute/file.db (four slashes)."
        )
    return Place(dialect="sqlite", database=unquote(path[1:].split("?", 1)[0]))


def _url_values(text: str) -> dict[str, str]:
    try:
        parts = urlsplit(text)
        port = parts.port or 3306
    except ValueError as error:
        raise InvalidRequest(
            "The database URL can't be read. Write special characters in the password as %XX, for instance %40 for @."
        ) from error
    scheme = parts.scheme.partition("+")[0].lower()
    if scheme not in {"mysql", "mariadb"}:
        raise InvalidRequest(
            f"{scheme}:// is not a database we know. Use sqlite:///FILE or mysql://USER:PASSWORD@HOST/NAME."
        )
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(options.keys() - _URL_OPTIONS):
        known = ", ".join(sorted(_URL_OPTIONS))
        raise InvalidRequest(f"The database URL has an unknown option {unknown[0]}. Known: {known}.")
    account = {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    place = {"host": parts.hostname or "", "port": str(port), "database": unquote(parts.path.lstrip("/"))}
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


def _mysql(values: Mapping[str, str]) -> Place:
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
    return Place("mysql", values["database"], host=host, port=int(port), ssl_mode=ssl_mode, **others)


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
