"""A private MariaDB for the tests: its own data directory, a Unix socket, a loopback port where one is asked for."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pymysql

_OPTIONS = (
    "--no-defaults",
    "--user=root",
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=64M",
    "--skip-name-resolve",
)
_SERVER_OPTIONS = (
    # Everything survives SIGKILL of the server; these tests pull no plug, so nothing waits for the disk.
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
    "--innodb-file-per-table=0",
    "--debug-no-sync=1",
    "--skip-log-bin",
    "--max-connections=200",
    "--performance-schema=OFF",
)
START_S = 60.0


class PrivateMariaDB:
    """A running server. `with PrivateMariaDB() as server: server.create_database()`."""

    def __init__(self, *, port: bool = False, durable: bool = False) -> None:
        """On a loopback port too, or with every commit on the disk as a real server has it."""
        self._flags = ("--skip-log-bin", "--max-connections=200") if durable else _SERVER_OPTIONS
        self._directory = Path(tempfile.mkdtemp(prefix="renderonline-mariadb-"))
        self.socket = str(self._directory / "s")
        self.port = _free_port() if port else 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server (the data directory is made first) and wait until it answers. Fails loudly."""
        data = self._directory / "data"
        if not data.exists():
            self._install(data)
        with (self._directory / "errors.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _program("mariadbd"),
                    *_OPTIONS,
                    *self._flags,
                    *(("--bind-address=127.0.0.1", f"--port={self.port}") if self.port else ("--skip-networking",)),
                    f"--datadir={data}",
                    f"--socket={self.socket}",
                    f"--pid-file={self._directory / 'pid'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        self._wait()
        return self

    def stop(self) -> None:
        """Stop the server and remove everything it had."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings it back with its data."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def connect(self, database: str | None = None) -> "pymysql.Connection":
        """A plain connection as root."""
        return pymysql.connect(unix_socket=self.socket, user="root", database=database, charset="utf8mb4")

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements, each committed."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def create_database(self) -> str:
        """A fresh, empty database; gives its URL."""
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made."""
        self.execute(f"DROP DATABASE IF EXISTS {database_name(url)}")

    def url(self, name: str) -> str:
        """The URL of one of this server's databases."""
        if self.port:
            return f"mysql://root@127.0.0.1:{self.port}/{name}"
        return f"mysql://root@localhost/{name}?unix_socket={quote(self.socket, safe='')}"

    @property
    def _environment(self) -> dict[str, str]:
        """A server that starts removes the temporary tables of all others that use the same directory for them."""
        return {**os.environ, "TMPDIR": str(self._directory)}

    def _install(self, data: Path) -> None:
        done = subprocess.run(
            [
                _program("mariadb-install-db"),
                *_OPTIONS,
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=False,
            capture_output=True,
            text=True,
            env=self._environment,
        )
        if done.returncode:
            raise RuntimeError(f"mariadb-install-db failed: {done.stderr[-2000:]}")

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"mariadbd ended at its start: {self._errors()}")
            try:
                self.connect().close()
                return
            except pymysql.err.OperationalError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"mariadbd did not answer: {self._errors()}") from error
                time.sleep(0.01)

    def _errors(self) -> str:
        return (self._directory / "errors.log").read_text(errors="replace")[-2000:]

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def database_name(url: str) -> str:
    """The name of the database in a URL of `PrivateMariaDB`."""
    return url.partition("?")[0].rpartition("/")[2]


def _program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise RuntimeError(
            f"{name} is missing. The tests need MariaDB: run scripts/install-system-packages, or "
            "apt-get install mariadb-server-core mariadb-client-core."
        )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
