"""The farm that faults happen to: real programs, each kept running, with a bad network between them."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from renderonline.farm.errors import RenderOnlineError
from renderonline.rnoclient.sdk.client import Client
from renderonline.rnoclient.sdk.connection import Login
from tests.faults import engine
from tests.faults.proxy import Proxy
from tests.support.mariadb import PrivateMariaDB

MACHINES = ("ada", "bob", "eve")
SLOTS = 2
SILENCE_S = 4.0
UP_S = 60.0
_CLOCK = Path(__file__).with_name("clock")
_RULES = {
    "RENDERAPI_SILENCE_S": str(SILENCE_S),
    "RENDERAPI_RETURN_S": "8",
    "RENDERAPI_MAX_TRIES": "50",
    "RENDERAPI_RETRY_BASE_S": "0.05",
    "RENDERAPI_RETRY_CAP_S": "1",
    "RENDERAPI_GRACE_S": "3",
    "RENDERAPI_LEASE_S": "2",
    "HPCSERVER_HEARTBEAT_S": "0.5",
    "HPCSERVER_STOP_GRACE": "1",
    "HPCSERVER_PASS_ENVIRONMENT": engine.SOCKET,
    "RENDERONLINE_LEASH": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(_CLOCK), os.environ.get("PYTHONPATH")))),
}


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = UP_S) -> Any:
    """Wait for a condition; gives what it gave. `AssertionError` names what did not come."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"After {timeout_s:g} s there is still no {what}."
        time.sleep(0.02)
    return value


class Kept:
    """A program of ours that is started again after every kill. Its clock may be set, its disk be full."""

    def __init__(self, name: str, words: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = directory / f"{name}.log"
        self._words = list(words)
        self._clock = directory / f"{name}.clock"
        self._clock.write_bytes(bytes(8))
        self._environment = {**os.environ, **_RULES, **environment, "FAULTS_CLOCK": str(self._clock)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_running:
            return
        argv = [sys.executable, "-P", "-m", "renderonline.cli.main", *self._words]
        with self.log.open("ab") as output:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
            self._process = subprocess.Popen(argv, env=self._environment, start_new_session=True, **pipes)

    def reap(self) -> None:
        """Wait for its end after a SIGKILL."""
        if self._process is not None:
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def stop(self) -> int:
        """SIGTERM; its exit code. `AssertionError` when it does not end."""
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)
        self._process.terminate()
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = None
        self.reap()
        assert code is not None, f"{self.name} did not end within 20 s of SIGTERM."
        return code

    def set_clock(self, seconds: int) -> None:
        """Its wall clock is off by so much, now and after its next start."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("q", seconds))

    def fill_disk(self, *, full: bool) -> None:
        """No file of its may be written any more, or it may again."""
        limit = 0 if full else resource.RLIM_INFINITY
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


@dataclass
class Machine:
    """One HPCServer, and the network between it and RenderAPI."""

    program: Kept
    proxy: Proxy
    home: Path

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def mark(self) -> str:
        """What the marks of its engines begin with."""
        return (self.home / "identity").read_text().strip() + "/"


@dataclass(frozen=True)
class Said:
    """What an engine said, and when (monotonic seconds)."""

    what: str
    attempt: int
    frame: int
    pid: int
    at: float


_CREDENTIALS = struct.Struct("3i")
"""Process, user and group, as the kernel adds them to a message."""


@dataclass
class Listener:
    """Hears the engines. `pids`: attempt -> process of those that began."""

    path: str
    pids: dict[int, int] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # The kernel says who speaks: in a box a process has another number than here.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.path)
        self._news = threading.Condition()
        self._latest: list[Said] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                text, about, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
                words = json.loads(text)
            except (OSError, ValueError):
                return
            pid = _CREDENTIALS.unpack(about[0][2])[0]
            said = Said(words["what"], words["attempt"], words["frame"], pid, time.monotonic())
            with self._news:
                if said.what == "began":
                    self.pids[said.attempt] = said.pid
                    self.odd[words["odd"]] = self.odd.get(words["odd"], 0) + 1
                self._latest = [*self._latest[-200:], said]
                self._news.notify_all()

    def next(self, what: str, timeout_s: float) -> Said | None:
        """The next time that an engine says this."""
        begin = time.monotonic()
        with self._news:
            while True:
                for said in self._latest:
                    if said.what == what and said.at >= begin:
                        return said
                left = begin + timeout_s - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class FaultFarm:
    """RenderAPI, three HPCServers, a database; a context manager. `database`: sqlite or mariadb. `apart`: the machines
    don't see RenderAPI's files."""

    def __init__(self, database: str, *, apart: bool = False) -> None:
        self.database = database
        self.apart = apart
        self.directory = Path(tempfile.mkdtemp(prefix="rof-"))  # short: a socket's path has 108 bytes
        self.files = self.directory / "renderapi" / "files"
        self.mariadb: PrivateMariaDB | None = None
        self.machines: list[Machine] = []
        self.listener = Listener(str(self.directory / "s"))
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._exits.close()
        self.listener.close()
        if kind is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _open(self) -> None:
        data = self.directory / "renderapi"
        if self.database == "mariadb":
            self.mariadb = self._exits.enter_context(PrivateMariaDB())
            self.url = self.mariadb.create_database()
            argv = [sys.executable, "-P", "-m", "renderonline.cli.main", "db", "migrate", "-c", self.url]
            subprocess.run(argv, check=True, capture_output=True)
        else:
            self.url = f"sqlite:///{data / 'renderonline.sqlite'}"
        self.port = _free_port()
        words = ["api", "--port", str(self.port), "--data-directory", str(data), "--connection", self.url]
        self.renderapi = Kept("renderapi", words, self.directory, {})
        self._exits.callback(self._end, self.renderapi)
        self.renderapi.start()
        wait_until(self._answers, "answer of RenderAPI")
        first = json.loads((data / "first-login.json").read_text())
        self.login = Login(url=f"http://127.0.0.1:{self.port}", email=first["email"], token=first["token"])
        with self.client() as client:
            client.admin.add_engine(engine.DEFINITION)
            for subscription in client.admin.subscriptions():
                limit = {
                    "running_limit": 2 * len(MACHINES) * SLOTS
                }  # with what they hold ahead it could be three times
                client.admin.change_subscription(int(subscription["subscription_id"]), **limit)
            code = client.admin.invite(uses=len(MACHINES), slots=SLOTS)["code"]
        self.client_proxy = self._proxy()
        program = self._engine_program()
        for name in MACHINES:
            self.machines.append(self._machine(name, program, str(code)))
        self.wait_linked()

    def _machine(self, name: str, program: Path, code: str) -> Machine:
        proxy, home = self._proxy(), self.directory / name
        words = ["node", "--join", proxy.url, "--name", name, "--data-directory", str(home)]
        words += ["--slots", str(SLOTS), "--engine", f"fake={program}"]
        environment = {"RENDERONLINE_JOIN_CODE": code, engine.SOCKET: self.listener.path}
        environment |= {"HPCSERVER_SANDBOX_WRITE": str(Path(self.listener.path).parent)}  # the engine's way to us
        environment |= {"FAULTS_APART": str(self.directory / "renderapi")} if self.apart else {}
        kept = Kept(name, words, self.directory, environment)
        self._exits.callback(self._end, kept)
        kept.start()
        return Machine(kept, proxy, home)

    def _proxy(self) -> Proxy:
        proxy = Proxy(self.port)
        self._exits.callback(proxy.close)
        return proxy

    def _engine_program(self) -> Path:
        path = self.directory / "fake"
        path.write_text(f"#!{sys.executable} -IS\n{Path(str(engine.__file__)).read_text()}")
        path.chmod(0o755)
        return path

    def _end(self, kept: Kept) -> None:
        """On the way out nothing may hang, whatever happened."""
        if kept.is_running:
            os.kill(kept.pid, signal.SIGKILL)
        kept.reap()

    def client(self, url: str = "") -> Client:
        """A client of the administrator; by default straight to RenderAPI."""
        login = Login(url=url, email=self.login.email, token=self.login.token) if url else self.login
        return Client(login)

    def _answers(self) -> bool:
        assert self.renderapi.is_running, f"RenderAPI has ended:\n{self.renderapi.tail()}"
        return (self.directory / "renderapi" / "renderapi.json").exists()

    def linked(self) -> set[str]:
        """The machines that RenderAPI reaches."""
        with self.client() as client, contextlib.suppress(RenderOnlineError):
            machines = client.admin.machines()
            return {str(one["name"]) for one in machines if one["status"] not in ("offline", "disabled")}
        return set()

    def wait_linked(self, timeout_s: float = UP_S) -> None:
        """Wait until every machine is linked; a program that has ended by itself is an error."""

        def all_linked() -> bool:
            for one in (self.renderapi, *(machine.program for machine in self.machines)):
                assert one.is_running, f"{one.name} has ended by itself:\n{one.tail()}"
            return self.linked() == set(MACHINES)

        wait_until(all_linked, "farm whose machines are all linked", timeout_s)

    def start_all(self) -> None:
        """Start what is down."""
        for one in (self.renderapi, *(machine.program for machine in self.machines)):
            one.start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
