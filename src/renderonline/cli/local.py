"""A farm on this computer: RenderAPI and HPCServers as child processes under one supervisor."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from renderonline.cli.supervise import Program, Supervisor
from renderonline.farm.errors import NotAvailable
from renderonline.rnoclient.sdk import Client, Login

START_S: Final = 60.0


@dataclass(slots=True)
class LocalFarm:
    """Starts RenderAPI with its data in `directory`, and HPCServers that join it."""

    supervisor: Supervisor
    directory: Path
    url: str = ""
    """RenderAPI's address, once it answers."""

    def start_api(self, *words: str) -> Program:
        """Start RenderAPI; `wait_for_api` says when it answers."""
        argv = ["api", "--data-directory", str(self.directory), *words]
        return self.supervisor.start("RenderAPI", argv, self.directory / "renderapi.log")

    def wait_for_api(self, api: Program) -> None:
        """Wait until RenderAPI answers requests."""
        ready = self.directory / "renderapi.json"
        self.supervisor.wait_for(api, lambda: read(ready).get("pid") == api.process.pid, START_S)
        self.url = str(read(ready)["url"])

    @property
    def node_url(self) -> str:
        """The address for HPCServers here: the same whether RenderAPI listens to others or not."""
        return self.url.replace("://localhost:", "://127.0.0.1:")

    def first_login(self) -> Login | None:
        """The administrator that RenderAPI made with its database; None when the file is gone."""
        found = read(self.directory / "first-login.json")
        return Login(self.url, str(found["email"]), str(found["token"])) if found else None

    def invite(self, saved: Login | None = None, *, uses: int = 1) -> str:
        """A code for HPCServers, from the first or the saved login, whichever is an administrator's here."""
        for login in (self.first_login(), saved):
            if login is not None and login.url.rstrip("/") == self.url.rstrip("/"):
                with Client(login) as client:
                    if client.me()["role"] == "admin":
                        return str(client.admin.invite(uses, hours=1)["code"])
        raise NotAvailable(
            f"This computer's HPCServer must be let in by an administrator of {self.url}. Log in as one "
            "(`renderonline login`), then start `renderonline up` again."
        )

    def start_node(self, name: str, code: str | None, *, slots: int = 1, stop_grace_s: float = 0.0) -> Program:
        """Start an HPCServer that joins with `code` (or, without one, with the secret that it has).

        Running chunks may finish for `stop_grace_s` when it is stopped; then they are handed back.
        """
        words = ["node", "--join", self.node_url, "--name", name, "--slots", str(slots)]
        environment = {"HPCSERVER_STOP_GRACE": str(stop_grace_s)} | ({"RENDERONLINE_JOIN_CODE": code} if code else {})
        home = self.home_of(name)
        return self.supervisor.start(
            "HPCServer", [*words, "--data-directory", str(home)], home.with_suffix(".log"), environment
        )

    def wait_for_node(self, name: str, program: Program) -> int:
        """Wait until RenderAPI has welcomed this HPCServer; its machine id."""
        ready = self.home_of(name) / "hpcserver.json"
        self.supervisor.wait_for(program, lambda: read(ready).get("pid") == program.process.pid, START_S)
        return int(str(read(ready)["machine_id"]))

    def home_of(self, name: str) -> Path:
        """The data directory of an HPCServer."""
        return self.directory / "machines" / name


def address_in_use(directory: Path) -> str:
    """The address of the RenderAPI that already runs on this data directory; "" when none does."""
    found = read(directory / "renderapi.json")
    try:
        os.kill(int(str(found["pid"])), 0)
    except (KeyError, ValueError, OSError):
        return ""
    return str(found.get("url", ""))


def read(path: Path) -> dict[str, object]:
    """The object in a JSON file; {} when it is not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
