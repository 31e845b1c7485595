"""`renderonline up`: a farm on this computer that stays."""

import signal
import socket
import time
from typing import NoReturn

from renderonline.cli import logins, show
from renderonline.cli.engine_check import engines_here
from renderonline.cli.local import LocalFarm, address_in_use, read
from renderonline.cli.supervise import Interrupted, Interrupts, Supervisor
from renderonline.farm.errors import Conflict
from renderonline.rnoclient.sdk import Login
from renderonline.serving.directories import data_directory

NAME = "this-computer"
INTERRUPTED = 130
STOP_GRACE_S = 5.0
"""How long what is rendered may still finish when the farm is stopped; the rest is rendered again next time."""


def run(*, host: str, port: int, slots: int, as_json: bool) -> int:
    """Run both programs until Ctrl-C (130) or SIGTERM (0)."""
    directory = data_directory()
    if running := address_in_use(directory):
        raise Conflict(f"A farm already runs on {directory}: {running}. Stop it first, or use it.")
    try:
        with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
            farm = LocalFarm(supervisor, directory)
            farm.wait_for_api(farm.start_api("--host", host, "--port", str(port)))
            first = farm.first_login()
            if first is not None and logins.saved() is None:
                logins.save(first)
            _start_machine(farm, slots)
            known = {"url": farm.url, "email": first.email if first else None, "data": str(farm.directory)}
            show.answer((known, lambda: show.say(_introduction(farm, first))), as_json=as_json)
            _run_until_one_ends(supervisor)
    except Interrupted as interrupt:
        if not as_json:
            show.note("Stopped.")
        return INTERRUPTED if interrupt.signal == signal.SIGINT else 0


def _run_until_one_ends(supervisor: Supervisor) -> NoReturn:
    while True:
        supervisor.check()
        time.sleep(0.5)


def _start_machine(farm: LocalFarm, slots: int) -> None:
    joined = str(read(farm.home_of(NAME) / "machine.json").get("url", "")).casefold() == farm.node_url.casefold()
    code = None if joined else farm.invite(logins.saved())
    farm.wait_for_node(NAME, farm.start_node(NAME, code, slots=slots, stop_grace_s=STOP_GRACE_S))


def _introduction(farm: LocalFarm, login: Login | None) -> str:
    lines = [f"The farm is up: {farm.url}   (open it in a browser; API: {farm.url}/docs)"]
    if "://localhost:" in farm.url:
        lines.append(f"Others:         {farm.url.replace('localhost', socket.gethostname())}")
    if login is not None:
        lines.append(f"First login:    {login.email}   token {login.token}")
        lines.append(
            f"                (kept in {farm.directory / 'first-login.json'}; delete it when you have noted it)"
        )
    lines.append(f"Data and logs:  {farm.directory}")
    if not any(engine["name"] == "blender" for engine in engines_here()):
        lines.append("No Blender yet: renderonline engine install blender, then start this again.")
    lines.append("In another terminal: renderonline submit FILE.blend --frames 1-24 --wait --download frames")
    return "\n".join([*lines, "Ctrl-C stops everything."])
