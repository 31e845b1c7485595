"""A farm on this computer: RenderAPI and HPCServers as child processes under one supervisor. `renderonline up` keeps
it until it is stopped.
"""

import json
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from renderonline.cli import terminal
from renderonline.cli.engine_commands import engines_here
from renderonline.cli.supervise import INTERRUPTED, Interrupted, Interrupts, Program, Supervisor
from renderonline.farm.errors import Conflict, NotAvailable
from renderonline.farm.machines import MOST_SLOTS
from renderonline.farm.needs import BoxKind
from renderonline.rnoclient.sdk import Client, Login
from renderonline.serving.directories import data_directory
from renderonline.serving.web import reach

NAME = "this-computer"
STOP_GRACE_S = 5.0
"""How long what is rendered may still finish when the farm is stopped; the rest is rendered again next time."""

LISTENING_S = 3.0
"""How long a RenderAPI may take to accept a connection."""


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
        self.url = self._once_ready(api, self.directory / "renderapi.json")["url"]

    @property
    def node_url(self) -> str:
        """The address for HPCServers here: the same whether RenderAPI listens to others or not."""
        return self.url.replace("://localhost:", "://127.0.0.1:")

    def first_login(self) -> Login | None:
        """The administrator that RenderAPI made with its database; None when the file is gone."""
        found = read(self.directory / "first-login.json")
        return Login(self.url, found["email"], found["token"]) if found else None

    def invite(self, saved: Login | None = None, *, uses: int = 1) -> str:
        """A code for HPCServers, from the first or the saved login, whichever is an administrator's here. They may have
        as many slots as they say: whoever starts them here says how many."""
        for login in (self.first_login(), saved):
            if login is not None and login.url.rstrip("/") == self.url.rstrip("/"):
                with Client(login) as client:
                    if client.me()["role"] == "admin":
                        return str(client.admin.invite(uses, hours=1, slots=MOST_SLOTS)["code"])
        raise NotAvailable(
            f"This computer's HPCServer must be let in by an administrator of {self.url}. Log in as one "
            "(`renderonline login`), then start `renderonline up` again."
        )

    def start_node(
        self, name: str, code: str | None, *, slots: int | None = None, stop_grace_s: float = 0.0
    ) -> Program:
        """Start an HPCServer that joins with `code` (or, without one, with the secret that it has).

        Running chunks may finish for `stop_grace_s` when it is stopped; then they are handed back.
        """
        words = ["node", "--join", self.node_url, "--name", name, *([] if slots is None else ["--slots", str(slots)])]
        environment = {"HPCSERVER_STOP_GRACE": str(stop_grace_s)} | ({"RENDERONLINE_JOIN_CODE": code} if code else {})
        home = self.home_of(name)
        return self.supervisor.start(
            "HPCServer", [*words, "--data-directory", str(home)], home.with_suffix(".log"), environment
        )

    def wait_for_node(self, name: str, program: Program) -> dict[str, Any]:
        """Wait until RenderAPI has welcomed this HPCServer; its `machine_id`, and what it says of its sandbox."""
        return self._once_ready(program, self.home_of(name) / "hpcserver.json")

    def _once_ready(self, program: Program, told: Path) -> dict[str, Any]:
        """What a program writes into this file when it is ready."""
        self.supervisor.wait_for(program, lambda: read(told).get("pid") == program.process.pid)
        return read(told)

    def home_of(self, name: str) -> Path:
        """The data directory of an HPCServer."""
        return self.directory / "machines" / name


def sandbox_lines(node: dict[str, Any]) -> list[str]:
    """Which box is around a machine's engines, and what gets a better one, for people."""
    warning = "   WARNING" if node["sandbox"] == BoxKind.NONE else ""
    better = [f"                Better: {node['sandbox_advice']}"] if node["sandbox_advice"] else []
    return [f"Sandbox:        {node['sandbox_told']}{warning}", *better]


def address_in_use(directory: Path) -> str:
    """The address of the RenderAPI that already runs on this data directory; "" when none does."""
    found = read(directory / "renderapi.json")
    try:
        os.kill(int(found["pid"]), 0)
        # After a crash another program may have that number: does anything listen there?
        address = urlsplit(found["url"])
        socket.create_connection((address.hostname, address.port), timeout=LISTENING_S).close()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return ""
    return str(found["url"])


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} when it is not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run(*, host: str, port: int, slots: int | None, as_json: bool) -> int:
    """Run both programs until Ctrl-C (130) or SIGTERM (0)."""
    directory = data_directory()
    if running := address_in_use(directory):
        raise Conflict(f"A farm already runs on {directory}: {running}. Stop it first, or use it.")
    try:
        with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
            farm = LocalFarm(supervisor, directory)
            farm.wait_for_api(farm.start_api("--host", host, "--port", str(port)))
            first = farm.first_login()
            known_at = str(read(farm.home_of(NAME) / "machine.json").get("url", "")).casefold()
            saved = _saved(farm, first, known_at)
            code = None if known_at == farm.node_url.casefold() else farm.invite(saved)
            node = farm.wait_for_node(NAME, farm.start_node(NAME, code, slots=slots, stop_grace_s=STOP_GRACE_S))
            known = {"url": farm.url, "email": first.email if first else None, "data": str(farm.directory)}
            known["sandbox"] = node["sandbox"]
            terminal.print_answer((known, lambda: terminal.say(introduction(farm, first, node, host))), as_json=as_json)
            while True:
                supervisor.check()
                time.sleep(0.5)
    except Interrupted as interrupt:
        if not as_json:
            terminal.note("Stopped.")
        return INTERRUPTED if interrupt.signal == signal.SIGINT else 0


def _saved(farm: LocalFarm, first: Login | None, known_at: str) -> Login | None:
    """The login of the other commands: the first one when there is no other; the address that it is for follows this
    very farm, which was at `known_at` when its HPCServer joined."""
    saved = terminal.saved()
    if saved is None and first is not None:
        saved = first
        terminal.save(first)
    elif saved is not None and known_at and as_node(saved.url) == known_at != as_node(farm.url):
        saved = replace(saved, url=farm.url)
        terminal.save(saved)
    return saved


def as_node(url: str) -> str:
    """An address in the form in which HPCServers here know it."""
    return url.rstrip("/").replace("://localhost:", "://127.0.0.1:").casefold()


def introduction(farm: LocalFarm, login: Login | None, node: dict[str, Any], host: str) -> str:
    """What to do with a farm that is up, which listens at `host`; how others reach it among it."""
    lines = [f"The farm is up: {farm.url}   (open it in a browser; API: {farm.url}/docs)"]
    others = reach(farm.url, public_url=os.environ.get("RENDERAPI_PUBLIC_URL", ""), listens=host)
    lines.append(f"Others:         {others.first or others.url}")
    if not others.first:
        lines.append("More machines:  renderonline machine invite prints the line to type there")
    if login is not None:
        lines.append(f"First login:    {login.email}   token {login.token}")
        lines.append(f"                (kept in {farm.directory / 'first-login.json'} until it is used on the page)")
    lines += [f"Data and logs:  {farm.directory}", *sandbox_lines(node)]
    if not any(engine["name"] == "blender" for engine in engines_here()):
        lines.append("No Blender yet: renderonline engine install blender, then start this again.")
    lines.append("In another terminal: renderonline submit FILE.blend --frames 1-24 --wait --download frames")
    return "\n".join([*lines, "Ctrl-C stops everything."])
