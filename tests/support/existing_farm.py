"""Our RenderAPI in the place of the existing one: the existing settings file, rows from the existing seed INSERTs.

Every INSERT names the columns of C3 Database schema and no others.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sqlalchemy import text

from renderonline.database.door import Database
from renderonline.database.upkeep import migrate
from tests.support import quick_renderapi
from tests.support.existing_client import ExistingClient
from tests.support.existing_schema import TABLES

DEADLINE_S = 30.0


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait for a condition and give what it gave; `AssertionError` names what did not come."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"After {timeout_s:g} s there is still no {what}."
        time.sleep(0.02)
    return value


class Program:
    """One of our programs as a child process; a context manager that ends it."""

    def __init__(
        self,
        words: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-P", "-m", "renderonline.cli.main"),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "program.log"
        argv = [sys.executable, *program, *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def wait_for(self, ready: Callable[[], Any], what: str) -> None:
        """Wait until it is ready; shows its output when it ends before."""

        def checked() -> Any:
            code = self.process.poll()
            assert code is None, f"It ended with code {code}:\n{self.log.read_text()[-3000:]}"
            return ready()

        wait_until(checked, what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what does not end by it."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def v1_node(directory: Path, engines: Mapping[str, str]) -> Iterator[str]:
    """Our HPCServer in its v1 role with a settings file of the existing form; its URL."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "HPCServer.json"
    listed = [{"EngineId": name, "ExecutablePath": path} for name, path in engines.items()]
    config.write_text(json.dumps({"Port": "0", "RenderingEngines": listed}))
    ready = directory / "data" / "hpcserver.json"
    words = ["node", "--v1", "--config", str(config), "--data-directory", str(directory / "data")]
    with Program(words, directory) as program:
        program.wait_for(ready.exists, "ready file of HPCServer")
        yield str(json.loads(ready.read_text())["url"])


class ExistingFarm:
    """A database with rows, and our RenderAPI on it, started with a `RenderAPI.json` of the existing form."""

    def __init__(self, directory: Path, connection: str) -> None:
        self.directory = directory
        self.downloads = directory / "downloads"
        self.connection = connection
        self._data = directory / "renderapi"
        self._exits = contextlib.ExitStack()
        self._program: Program | None = None

    def __enter__(self) -> Self:
        self._database = self._exits.enter_context(contextlib.closing(_Opened(self.connection)))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._exits.close()

    # -- rows, written by hand as the existing system's documentation says

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Run one statement in a transaction of its own; the rows of a query."""
        return self._database.run(statement, values)

    def add_user(self, user_id: int, *, queue_limit: int = 20, active: bool = True) -> ExistingClient:
        """A user with a subscription of their own; their client once RenderAPI runs."""
        self.sql(
            "INSERT INTO subscriptions (subscription_id, name, queue_limit) VALUES (:id, 'Own', :limit)",
            id=user_id,
            limit=queue_limit,
        )
        self.sql(
            "INSERT INTO users (user_id, first_name, last_name, email, subscription_id, is_active, token)"
            " VALUES (:id, 'Ada', 'Lovelace', :email, :id, :active, :token)",
            id=user_id,
            email=email_of(user_id),
            active=int(active),
            token=token_of(user_id),
        )
        return self.client(user_id)

    def add_engine(self, engine_id: int, name: str, extension: str, template: str) -> None:
        self.sql(
            "INSERT INTO engines (engine_id, name, extension, download_path, render_argument)"
            " VALUES (:id, :name, :extension, :path, :template)",
            id=engine_id,
            name=name,
            extension=extension,
            path=str(self.downloads),
            template=template,
        )

    def add_argtype(self, argtype_id: str, type_name: str, regex: str | None = None) -> None:
        self.sql(
            "INSERT INTO argtypes (argtype_id, type, regex) VALUES (:id, :type, :regex)",
            id=argtype_id,
            type=type_name,
            regex=regex,
        )

    def add_machine(self, machine_id: int, port: int, address: str = "127.0.0.1") -> None:
        self.sql(
            "INSERT INTO machines (machine_id, ip_address, port) VALUES (:id, :address, :port)",
            id=machine_id,
            address=address,
            port=port,
        )

    # -- the program

    def start(self, environment: Mapping[str, str] | None = None, *, quickly: bool = True) -> None:
        """Start RenderAPI and wait until it answers. It asks its nodes more often than it should, unless not `quickly`:
        tests whose nodes are slow for a certain time need the real intervals."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        config = self.directory / "RenderAPI.json"
        config.write_text(json.dumps({"ConnectionString": self.connection, "Port": "0", "Certificate": None}))
        ready = self._data / "renderapi.json"
        ready.unlink(missing_ok=True)
        words = ["api", "--config", str(config), "--data-directory", str(self._data)]
        program = Program(words, self.directory, environment, *([["-P", quick_renderapi.__file__]] if quickly else []))
        self._program = program
        program.wait_for(ready.exists, "ready file of RenderAPI")
        self.url = str(json.loads(ready.read_text())["url"])

    def stop(self) -> None:
        """End RenderAPI as an operator does."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    def kill(self) -> None:
        """End RenderAPI as a power cut does."""
        assert self._program is not None
        self._program.process.kill()
        self._program.process.wait()
        self._program = None

    @property
    def log(self) -> str:
        """What RenderAPI printed."""
        return (self.directory / "program.log").read_text()

    def client(self, user_id: int) -> ExistingClient:
        """The existing client of this user; RenderAPI's address is read at each call."""
        return _LateClient(self, email_of(user_id), token_of(user_id))

    # -- what v1 sees of a task

    def row(self, task_id: int) -> dict[str, Any]:
        """The v1 columns of a task."""
        columns = "task_id, queue_time, start_time, end_time, is_running, is_success, render_id, machine_id"
        rows = self.sql(f"SELECT {columns} FROM tasks WHERE task_id = :id", id=task_id)
        return dict(rows[0]._mapping) if rows else {}

    def in_queue(self, task_id: int) -> bool:
        return bool(self.sql("SELECT 1 FROM queue WHERE task_id = :id", id=task_id))

    def directory_of(self, task_id: int) -> Path:
        """The directory that holds a task's uploaded file."""
        rows = self.sql(
            "SELECT file_path FROM renders JOIN tasks ON tasks.render_id = renders.render_id WHERE task_id = :id",
            id=task_id,
        )
        return Path(rows[0][0]).parent

    def wait_for_end(self, task_id: int, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until a task has left the queue and has an end time; its row."""
        wait_until(
            lambda: not self.in_queue(task_id) and self.row(task_id)["end_time"] is not None,
            f"end of task {task_id}",
            timeout_s,
        )
        return self.row(task_id)


def email_of(user_id: int) -> str:
    return f"user{user_id}@example.org"


def token_of(user_id: int) -> str:
    return f"token-of-{user_id}"


class _Opened:
    """The farm's database, opened beside RenderAPI: on MySQL the existing schema, adopted by our migration."""

    def __init__(self, connection: str) -> None:
        self._database = Database.open(connection, readers=1)
        if self._database.dialect == "mysql":
            for table in TABLES:
                self.run(table, {})
        migrate(self._database)

    def run(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        query = text(statement)
        if statement.lstrip().upper().startswith("SELECT"):
            return self._database.read_now(lambda connection: list(connection.execute(query, values)))
        self._database.write_now(lambda connection: connection.execute(query, values))
        return []

    def close(self) -> None:
        self._database.close_now()


class _LateClient(ExistingClient):
    """Asks for the address at each call: RenderAPI may start later or again elsewhere."""

    def __init__(self, farm: ExistingFarm, email: str, token: str) -> None:
        super().__init__("http://127.0.0.1:1", email, token)
        self._farm = farm

    def send(self, request: bytes) -> Any:
        self._address = address_of(self._farm.url)
        return super().send(request)


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)
