"""A farm on this computer: RenderAPI and HPCServers as child processes under one supervisor."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from renderonline.cli.supervise import Program, Supervisor
from renderonline.farm.errors import NotAvailable
from renderonline.rnoclient.sdk import Client, Login

JOIN_CODE: Final = "RENDERONLINE_JOIN_CODE"
START_S: Final = 60.0


class LocalFarm:
    """Starts RenderAPI with its data in `directory`, and HPCServers that join it."""

    def __init__(self, supervisor: Supervisor, directory: Path) -> None:
        self._supervisor = supervisor
        self.directory = directory
        self.url = ""
        self.api: Program | None = None

    def start_api(self, words: Sequence[str] = ()) -> None:
        """Start RenderAPI; `wait_for_api` says when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        flags = ("api", "--data-directory", str(self.directory), *words)
        self.api = self._supervisor.start("RenderAPI", flags, self.directory / "renderapi.log")

    def wait_for_api(self) -> None:
        """Wait until RenderAPI answers requests; `url` is its address from then on."""
        assert self.api is not None
        self._supervisor.wait_for(self.api, self._is_ready, START_S)

    @property
    def node_url(self) -> str:
        """The address for HPCServers here: the same whether RenderAPI listens to others or not."""
        return self.url.replace("://localhost:", "://127.0.0.1:")

    def first_login(self) -> Login | None:
        """The administrator that RenderAPI made with its database; None when the file is gone."""
        found = _read(self.directory / "first-login.json")
        if not found:
            return None
        return Login(self.url, str(found["email"]), str(found["token"]))

    def start_node(self, name: str, *, code: str | None, slots: int = 1, stop_grace_s: float = 0.0) -> Program:
        """Start an HPCServer that joins with `code` (or, without one, with the secret that it has).

        Running chunks may finish for `stop_grace_s` when it is stopped; then they are handed back.
        """
        home = str(self.home_of(name))
        words = ["node", "--join", self.node_url, "--name", name, "--slots", str(slots), "--data-directory", home]
        environment = {"HPCSERVER_STOP_GRACE": str(stop_grace_s)} | ({JOIN_CODE: code} if code else {})
        log = self.directory / "machines" / f"{name}.log"
        return self._supervisor.start("HPCServer", words, log, environment)

    def wait_for_node(self, name: str, program: Program) -> int:
        """Wait until RenderAPI has welcomed this HPCServer; its machine id."""
        ready = self.home_of(name) / "hpcserver.json"
        self._supervisor.wait_for(program, lambda: _read(ready).get("pid") == program.process.pid, START_S)
        return int(str(_read(ready)["machine_id"]))

    def home_of(self, name: str) -> Path:
        """The data directory of an HPCServer."""
        return self.directory / "machines" / name

    def run_until_one_ends(self) -> NoReturn:
        """Wait for ever; `RenderOnlineError` with its last words when a program ends by itself."""
        while True:
            self._supervisor.check()
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        assert self.api is not None
        found = _read(self.directory / "renderapi.json")
        if found.get("pid") != self.api.process.pid:
            return False
        self.url = str(found["url"])
        return True


def has_joined(home: Path, url: str) -> bool:
    """Whether the HPCServer with this data directory has a secret of the farm at `url`."""
    return str(_read(home / "machine.json").get("url", "")).casefold() == url.casefold()


def address_in_use(directory: Path) -> str:
    """The address of the RenderAPI that already runs on this data directory; "" when none does."""
    found = _read(directory / "renderapi.json")
    pid = found.get("pid")
    if not isinstance(pid, int):
        return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return str(found.get("url", ""))


def admin_of(farm: LocalFarm, other: Login | None) -> Login:
    """A login that may invite machines: the first one, else the saved one."""
    first = farm.first_login()
    for login in (first, other):
        if login is None or login.url.rstrip("/") != farm.url.rstrip("/"):
            continue
        with Client(login) as client:
            if client.me().get("role") == "admin":
                return login
    raise NotAvailable(
        f"This computer's HPCServer must be let in by an administrator of {farm.url}. Log in as one "
        "(`renderonline login`), then start `renderonline up` again."
    )


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
