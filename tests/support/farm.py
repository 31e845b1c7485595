"""A farm of real programs on loopback, started by the command line as a person would."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from renderonline.cli.local_farm import Program, Supervisor
from renderonline.cli.terminal import Interrupts
from renderonline.farm.machines import MOST_SLOTS
from renderonline.rnoclient.sdk.client import Client
from renderonline.rnoclient.sdk.connection import Login
from tests.support.renderapi import first_login

DEADLINE_S = 120.0
"""Whatever is waited for is there within seconds, unless the computer has a lot to do."""


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait for a condition; gives what it gave. `AssertionError` names what did not come."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := holds():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"After {timeout_s:g} s there is still no {what}.")
        time.sleep(0.02)


class RealFarm:
    """One RenderAPI and any number of linked HPCServers, each a process with a directory of its own."""

    def __init__(self, directory: Path, *, connection: str | None = None, flags: Sequence[str] = ()) -> None:
        self.directory = directory
        self.data = directory / "renderapi"
        self._connection = connection
        self._flags = tuple(flags)
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        interrupts = self._exits.enter_context(Interrupts())
        self.supervisor = self._exits.enter_context(Supervisor(interrupts))
        try:
            self.start_renderapi()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def start_renderapi(self, port: int = 0) -> Program:
        """Start RenderAPI and wait until it answers."""
        words = ["api", "--port", str(port), "--data-directory", str(self.data), *self._flags]
        if self._connection:
            words += ["--connection", self._connection]
        ready = self.data / "renderapi.json"
        ready.unlink(missing_ok=True)
        self.renderapi = self.supervisor.start("RenderAPI", words, self.directory / "renderapi.log")
        self.supervisor.wait_for(self.renderapi, ready.exists, DEADLINE_S)
        self.url = str(json.loads(ready.read_text())["url"])
        first = first_login(self.data)
        self.login = Login(url=self.url, email=first["email"], token=first["token"])
        self.client = self._exits.enter_context(contextlib.closing(Client(self.login)))
        return self.renderapi

    def add_machine(
        self,
        name: str,
        *,
        engines: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> Program:
        """Invite a machine, start its HPCServer and wait until it may take chunks."""
        code = self.client.admin.invite(slots=MOST_SLOTS)["code"]
        words = ["node", "--join", self.url, "--name", name, "--data-directory", str(self.directory / name), *flags]
        # Engines for tests write down beside their own files what they were asked for.
        opened = {"HPCSERVER_SANDBOX_WRITE": str(self.directory.parent)} if engines else {}
        for engine, path in (engines or {}).items():
            words += ["--engine", f"{engine}={path}"]
        program = self.supervisor.start(
            f"HPCServer {name}",
            words,
            self.directory / f"{name}.log",
            {"RENDERONLINE_JOIN_CODE": code, **opened, **(environment or {})},
        )
        if wait:
            self.supervisor.wait_for(program, lambda: self.machine(name).get("status") in {"idle", "busy"}, DEADLINE_S)
        return program

    def machine(self, name: str) -> dict[str, Any]:
        """What RenderAPI says of a machine; {} when it knows none of that name."""
        return next((dict(machine) for machine in self.client.admin.machines() if machine["name"] == name), {})

    def wait_for_status(self, task_id: int, *statuses: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until a task has one of the statuses."""
        return wait_until(
            lambda: (task := dict(self.client.task(task_id)))["status"] in statuses and task,
            f"status {' or '.join(statuses)} of task {task_id}",
            timeout_s,
        )
