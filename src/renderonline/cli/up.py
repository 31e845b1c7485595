"""`renderonline up`: a farm on this computer that stays."""

import signal
import socket

from renderonline.cli import logins, show
from renderonline.cli.engine_check import engines_here
from renderonline.cli.local import LocalFarm, address_in_use, admin_of, has_joined
from renderonline.cli.supervise import Interrupted, Interrupts, Supervisor
from renderonline.farm.errors import Conflict
from renderonline.rnoclient.sdk import Client, Login
from renderonline.serving.directories import data_directory

NAME = "this-computer"
INTERRUPTED = 130
STOP_GRACE_S = 5.0
"""How long what is rendered may still finish when the farm is stopped; the rest is rendered again next time."""


def run(*, host: str, port: int, slots: int, as_json: bool) -> int:
    """Run both programs until Ctrl-C (130) or SIGTERM (0)."""
    directory = data_directory()
    running = address_in_use(directory)
    if running:
        raise Conflict(f"A farm already runs on {directory}: {running}. Stop it first, or use it.")
    try:
        with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
            farm = LocalFarm(supervisor, directory)
            farm.start_api(["--host", host, "--port", str(port)])
            farm.wait_for_api()
            login = _keep_login(farm)
            _start_machine(farm, slots)
            _announce(farm, login, as_json=as_json)
            farm.run_until_one_ends()
    except Interrupted as interrupt:
        if not as_json:
            show.note("Stopped.")
        return INTERRUPTED if interrupt.signal == signal.SIGINT else 0


def _keep_login(farm: LocalFarm) -> Login | None:
    """The first login becomes the one of the other commands when there is none."""
    first = farm.first_login()
    if first is not None and logins.saved() is None:
        logins.save(first)
    return first


def _start_machine(farm: LocalFarm, slots: int) -> None:
    code = None
    if not has_joined(farm.home_of(NAME), farm.node_url):
        with Client(admin_of(farm, logins.saved())) as client:
            code = str(client.admin.invite(uses=1, hours=1)["code"])
    program = farm.start_node(NAME, code=code, slots=slots, stop_grace_s=STOP_GRACE_S)
    farm.wait_for_node(NAME, program)


def _announce(farm: LocalFarm, login: Login | None, *, as_json: bool) -> None:
    if as_json:
        show.emit({"url": farm.url, "email": login.email if login else None, "data": str(farm.directory)})
        return
    show.say(f"The farm is up: {farm.url}   (API: {farm.url}/docs)")
    if "://localhost:" in farm.url:
        show.say(f"Others:         {farm.url.replace('localhost', socket.gethostname())}")
    if login is not None:
        show.say(f"First login:    {login.email}   token {login.token}")
        show.say(f"                (kept in {farm.directory / 'first-login.json'}; delete it when you have noted it)")
    show.say(f"Data and logs:  {farm.directory}")
    if not any(engine["name"] == "blender" for engine in engines_here()):
        show.say("No Blender yet: renderonline engine install blender, then start this again.")
    show.say("In another terminal: renderonline submit FILE.blend --frames 1-24 --wait --download frames")
    show.say("Ctrl-C stops everything.")
