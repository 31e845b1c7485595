"""Farms on this computer: RenderAPI and HPCServers as child processes under one supervisor.

`run_up` (`renderonline up`) runs such a farm until it is stopped; `run_demo` (`renderonline demo`) renders an example
on a temporary one with two HPCServers. `LocalFarm` starts the programs of both, `Supervisor` stops them however the
command ends.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from renderonline.cli import terminal
from renderonline.cli.engine_commands import engines_here, install_blender
from renderonline.cli.terminal import INTERRUPTED, Interrupted, Interrupts
from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable, RenderOnlineError
from renderonline.farm.machines import MOST_SLOTS
from renderonline.farm.needs import BoxKind
from renderonline.rnoclient.sdk import Client, Login, Task
from renderonline.rnoclient.sdk.connection import json_object
from renderonline.serving.web import reach
from renderonline.storage.disk import data_directory, make_private, private

LEASH: Final = "RENDERONLINE_LEASH"
POLL_S: Final = 0.05
STOP_S: Final = 20.0
"""How long a program may take to end before it is killed."""
GONE_S: Final = 15.0
"""How long what a program started may take to end after it."""
LOG_TAIL: Final = 2000
OWN_MACHINE: Final = "this-computer"
STOP_GRACE_S: Final = 5.0
"""How long running chunks may still finish when the farm is stopped; the rest is rendered again next time."""
LISTENING_S: Final = 3.0
"""How long a RenderAPI may take to accept a connection."""
FRAMES: Final = 24
FPS: Final = 12
CHUNK: Final = 3
"""Frames per chunk of the demo: small, so that both machines get their share."""
DEMO_MACHINES: Final = ("machine-1", "machine-2")
SCENE: Final = "demo.blend"
"""Made by `scripts/make_demo_scene.py`; it lies beside this module."""
FILM: Final = "demo.mp4"
HIDDEN_SETTINGS: Final = ("RENDERAPI_", "HPCSERVER_")
"""Prefixes of variables that the demo ignores: they configure a real farm, its database above all."""


@dataclass(slots=True)
class Program:
    """A child process and the file with its output."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def tail(self) -> str:
        """The end of its output."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


class Supervisor:
    """Starts programs as child processes and stops them all, the youngest first, when its `with` block is left.

    A child never outlives its parent, even one that is killed: its standard input is a pipe to which nobody writes, and
    `leash` ends the child when that pipe closes. Environment variables that begin with one of `hidden` are not passed
    on.
    """

    def __init__(self, interrupts: Interrupts, hidden: tuple[str, ...] = ()) -> None:
        self._interrupts, self._hidden = interrupts, hidden
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start `renderonline` with `words` as a process group of its own, its output into `log`."""
        make_private(log.parent)
        argv = [sys.executable, "-P", "-m", "renderonline.cli.main", *words]
        given = {name: value for name, value in os.environ.items() if not name.startswith(self._hidden or "\0")}
        given |= {**(environment or {}), LEASH: "1", "PYTHONUNBUFFERED": "1"}
        with self._interrupts.held(), open(log, "ab", opener=private) as output:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
            program = Program(name, subprocess.Popen(argv, env=given, start_new_session=True, **pipes), log)
            self._programs.append(program)
        return program

    def wait_for(self, program: Program, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `ready()`; `NotAvailable` with the end of its output when the program ends before."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise NotAvailable(f"{program.name} is not ready after {timeout_s:g} s.\n{program.tail()}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """`RenderOnlineError` when one of the programs has ended by itself."""
        for program in self._programs:
            code = program.process.poll()
            if code is not None:
                raise RenderOnlineError(f"{program.name} has ended (exit code {code}):\n{program.tail()}")

    def forget(self, program: Program) -> None:
        """Expect nothing more of a program that was ended on purpose."""
        self._programs = [other for other in self._programs if other is not program]

    def stop(self) -> None:
        """End all programs and what they started; not interrupted."""
        with self._interrupts.held():
            while self._programs:
                name = self._programs[-1].name
                stop_together([program for program in self._programs if program.name == name])
                self._programs = [program for program in self._programs if program.name != name]


def stop_together(programs: Sequence[Program]) -> None:
    """SIGTERM, after `STOP_S` SIGKILL, then wait until nothing is left of their process groups."""
    for program in programs:
        if program.process.poll() is None:
            program.process.terminate()
    deadline = time.monotonic() + STOP_S
    for program in programs:
        try:
            program.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.process.kill()
            program.process.wait()
        if program.process.stdin is not None:
            program.process.stdin.close()
    for program in programs:
        _clear_group(program.process.pid)


def _clear_group(group: int) -> None:
    """Wait for what a program started, which ends by itself when the program is gone; kill what does not."""
    deadline = time.monotonic() + GONE_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(POLL_S)
        os.killpg(group, signal.SIGKILL)


def leash() -> None:
    """End this program as by SIGTERM when its parent is gone, if that is a `Supervisor`."""
    if os.environ.pop(LEASH, "") != "1":
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leash", daemon=True).start()


@dataclass(slots=True)
class LocalFarm:
    """Starts RenderAPI with its data in `directory`, and HPCServers that join it."""

    supervisor: Supervisor
    directory: Path
    url: str = ""
    """RenderAPI's address, once it answers."""

    def start_api(self, *words: str) -> Program:
        """Start RenderAPI and wait until it answers requests."""
        argv = ["api", "--data-directory", str(self.directory), *words]
        api = self.supervisor.start("RenderAPI", argv, self.directory / "renderapi.log")
        self.url = self._ready_file(api, self.directory / "renderapi.json")["url"]
        return api

    def first_login(self) -> Login | None:
        """Return the administrator that RenderAPI created with its database; None when the file is gone."""
        found = read(self.directory / "first-login.json")
        return Login(self.url, found["email"], found["token"]) if found else None

    def invite(self, saved: Login | None = None, *, uses: int = 1) -> str:
        """Return a join code for HPCServers, made with the first or the saved login, whichever is an administrator's
        here. It allows any number of slots: the user of this computer sets them when starting the HPCServers."""
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

        Running chunks may finish for `stop_grace_s` seconds when it is stopped; then they are handed back.
        """
        home = self.home_of(name)
        words = ["node", "--join", as_node(self.url), "--name", name, "--data-directory", str(home)]
        words += [] if slots is None else ["--slots", str(slots)]
        environment = {"HPCSERVER_STOP_GRACE": str(stop_grace_s)} | ({"RENDERONLINE_JOIN_CODE": code} if code else {})
        return self.supervisor.start("HPCServer", words, home.with_suffix(".log"), environment)

    def wait_for_node(self, name: str, program: Program) -> dict[str, Any]:
        """Wait until RenderAPI has accepted this HPCServer; return its `machine_id` and its sandbox."""
        return self._ready_file(program, self.home_of(name) / "hpcserver.json")

    def _ready_file(self, program: Program, path: Path) -> dict[str, Any]:
        """The content of the file that a program writes when it is ready."""
        self.supervisor.wait_for(program, lambda: read(path).get("pid") == program.process.pid)
        return read(path)

    def home_of(self, name: str) -> Path:
        """Return the data directory of an HPCServer."""
        return self.directory / "machines" / name


def sandbox_lines(node: dict[str, Any]) -> list[str]:
    """Lines for people about the box around a machine's engines, and how to get a better one."""
    warning = "   WARNING" if node["sandbox"] == BoxKind.NONE else ""
    better = [f"                Better: {node['sandbox_advice']}"] if node["sandbox_advice"] else []
    return [f"Sandbox:        {node['sandbox_told']}{warning}", *better]


def address_in_use(directory: Path) -> str:
    """Return the address of the RenderAPI that already runs on this data directory; "" when none does."""
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
    """Return the object in a JSON file; {} when it is missing or incomplete."""
    try:
        return json_object(path.read_bytes())
    except OSError:
        return {}


def run_up(*, host: str, port: int, slots: int | None, as_json: bool) -> int:
    """Run both programs until Ctrl-C (returns 130) or SIGTERM (returns 0)."""
    directory = data_directory()
    if running := address_in_use(directory):
        raise Conflict(f"A farm already runs on {directory}: {running}. Stop it first, or use it.")
    try:
        with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
            farm = LocalFarm(supervisor, directory)
            farm.start_api("--host", host, "--port", str(port))
            first = farm.first_login()
            joined_at = str(read(farm.home_of(OWN_MACHINE) / "machine.json").get("url", "")).casefold()
            saved = _saved(farm, first, joined_at)
            code = None if joined_at == as_node(farm.url) else farm.invite(saved)
            program = farm.start_node(OWN_MACHINE, code, slots=slots, stop_grace_s=STOP_GRACE_S)
            node = farm.wait_for_node(OWN_MACHINE, program)
            data = {"url": farm.url, "email": first.email if first else None, "data": str(farm.directory)}
            data["sandbox"] = node["sandbox"]
            terminal.print_answer((data, lambda: terminal.say(introduction(farm, first, node, host))), as_json=as_json)
            while True:
                supervisor.check()
                time.sleep(0.5)
    except Interrupted as interrupt:
        if not as_json:
            terminal.note("Stopped.")
        return INTERRUPTED if interrupt.signal == signal.SIGINT else 0


def _saved(farm: LocalFarm, first: Login | None, joined_at: str) -> Login | None:
    """The login of the other commands: `first` when none is saved. A saved login for this farm, whose HPCServer joined
    at the address `joined_at`, is updated when the farm has moved to another port."""
    saved = terminal.saved()
    wanted = first if saved is None else saved
    if saved is not None and joined_at and as_node(saved.url) == joined_at != as_node(farm.url):
        wanted = replace(saved, url=farm.url)
    if wanted is not None and wanted != saved:
        terminal.save(wanted)
    return wanted


def as_node(url: str) -> str:
    """Return the address that HPCServers on this computer use, whether RenderAPI listens to other computers or not."""
    return url.rstrip("/").replace("://localhost:", "://127.0.0.1:").casefold()


def introduction(farm: LocalFarm, login: Login | None, node: dict[str, Any], host: str) -> str:
    """Return the text that `renderonline up` prints about a farm that listens at `host`: its addresses, the first
    login, and what to type next."""
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


def run_demo(output: Path, *, keep: bool, as_json: bool) -> int:
    """Run the demo; return 0 when every frame and the film are there, 130 when it was interrupted."""
    _check_writable(output)
    try:
        with Interrupts() as interrupts:
            demo = Demo(interrupts, quiet=as_json)
            with demo.step("all"):
                demo.run(output, keep=keep)
    except Interrupted:
        terminal.note("Stopped, and cleaned up.")
        return INTERRUPTED
    terminal.print_answer((demo.facts(output), lambda: demo.summary(output)), as_json=as_json)
    return 1 if demo.problems else 0


@dataclass(slots=True)
class Demo:
    """One run of the demo and its report: seconds of each step, frames rendered by each machine, missing files, the
    farm's directory if it is kept, and the box around the engines."""

    interrupts: Interrupts
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DEMO_MACHINES, 0))
    problems: list[str] = field(default_factory=list)
    kept: Path | None = None
    sandbox: str = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the time of a step."""
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def run(self, output: Path, *, keep: bool) -> None:
        """Install Blender, run a farm that renders the scene, and move the frames and the film to `output`."""
        with self.step("Blender"):
            install_blender(quiet=self.quiet)
        with _temporary(self.interrupts, keep=keep) as directory:
            self.kept = directory if keep else None
            with Supervisor(self.interrupts, HIDDEN_SETTINGS) as supervisor:
                self._render(LocalFarm(supervisor, directory / "farm"), output)
                with self.step("stop the farm"):
                    supervisor.stop()
        expected = [f"frame_{number:04}.png" for number in range(1, FRAMES + 1)]
        self.problems += [f"{name} is missing." for name in [*expected, FILM] if not (output / name).is_file()]

    def _render(self, farm: LocalFarm, output: Path) -> None:
        """Start the farm, submit the scene, wait for its end and download the results to `output`, in place of those of
        an earlier demo."""
        with self.step("start the farm"):
            api = farm.start_api("--port", "0")
            code = farm.invite(uses=len(DEMO_MACHINES))
            nodes = {name: farm.start_node(name, code) for name in DEMO_MACHINES}
            known = {name: farm.wait_for_node(name, program) for name, program in nodes.items()}
            names = {int(node["machine_id"]): name for name, node in known.items()}
            first = known[DEMO_MACHINES[0]]
            self.sandbox = first["sandbox"]
        login, scene = farm.first_login(), Path(__file__).with_name(SCENE)
        assert login is not None
        if not self.quiet:
            programs = {"RenderAPI": api, **nodes}.items()
            shown = ", ".join(f"{name} (pid {program.process.pid})" for name, program in programs)
            terminal.note("\n".join([f"The farm is up at {farm.url}: {shown}", *sandbox_lines(first)]))
        with Client(login) as client:
            with self.step("submit"), terminal.bar("Sending the scene", "bytes", quiet=self.quiet) as sent:
                threads = str(max(1, (os.cpu_count() or 2) // len(DEMO_MACHINES)))
                task = client.submit(
                    scene,
                    engine="blender",
                    frames=f"1-{FRAMES}",
                    chunk_size=CHUNK,
                    name="demo",
                    film=f"mp4@{FPS}",
                    arguments={"threads": threads},
                    progress=sent,
                )
            with self.step("render"):
                self._follow(client, task, names, farm, nodes)
            with self.step("download"), self.interrupts.held():
                output.mkdir(parents=True, exist_ok=True)
                for old in [*output.glob("frame_[0-9][0-9][0-9][0-9].png"), output / FILM]:
                    old.unlink(missing_ok=True)
                client.download_results(task["task_id"], output, overwrite=True)
                shutil.copy(scene, output / SCENE)

    def _follow(
        self, client: Client, task: Task, names: dict[int, str], farm: LocalFarm, nodes: dict[str, Program]
    ) -> None:
        """Show how many frames each machine has rendered until the task has ended."""
        with terminal.bar("", "count", quiet=self.quiet) as shown:
            for task in client.watch(task["task_id"]):  # noqa: B020 - its states
                self._revive(farm, nodes)
                farm.supervisor.check()
                frames = (result for result in client.results(task["task_id"]) if result["frame"] is not None)
                counted = Counter(names.get(result["machine_id"], "?") for result in frames)
                self.frames = {name: counted[name] for name in sorted({*DEMO_MACHINES, *counted})}
                shares = ", ".join(f"{name}: {count}" for name, count in self.frames.items())
                done = counted.total()
                shown(done, FRAMES, f"Rendered {done} of {FRAMES} frames ({shares})" if done else "")
        if task["status"] != "succeeded":
            raise RenderOnlineError(f"The task ended as {task['status']}: {task['reason'] or 'without a reason'}")

    def _revive(self, farm: LocalFarm, nodes: dict[str, Program]) -> None:
        """Start an HPCServer that was killed again; the farm renders its chunk once more."""
        for name, program in nodes.items():
            if (program.process.poll() or 0) < 0:
                terminal.note(f"{name} was killed, and is started again.")
                farm.supervisor.forget(program)
                nodes[name] = farm.start_node(name, None)

    def facts(self, output: Path) -> dict[str, object]:
        """Return the report for programs."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "output": str(output.absolute()),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "frames": self.frames,
            "sandbox": self.sandbox,
        }

    def summary(self, output: Path) -> None:
        """Print the report for people."""
        seconds = [(name, f"{value:.1f}") for name, value in self.seconds.items()]
        places = [("frames", output / "frame_0001.png … "), ("film", output / FILM), ("scene", output / SCENE)]
        places += [("farm (kept)", self.kept)] if self.kept else []
        places.append(("Blender", data_directory() / "engines" / "blender"))
        frames = sorted(self.frames.items())
        for left, right, rows in (
            ("STEP", ">SECONDS", seconds),
            ("MACHINE", ">FRAMES", frames),
            ("WHAT", "WHERE", places),
        ):
            terminal.say()
            terminal.table({left: itemgetter(0), right: itemgetter(1)}, rows)
        for problem in self.problems:
            terminal.note(f"Problem: {problem}")
        if not self.problems:
            next_step = "renderonline up, then in another terminal renderonline submit FILE.blend --frames 1-24"
            terminal.say(f"\nYour own scene: {next_step}")


def _check_writable(output: Path) -> None:
    """Raise `InvalidRequest` before the work when `output` can't be written."""
    place = output.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InvalidRequest(f"Nothing can be written to {place}; choose another place with --output.")


@contextlib.contextmanager
def _temporary(interrupts: Interrupts, *, keep: bool) -> Iterator[Path]:
    """A temporary directory for the farm, removed at the end and after every error unless `keep` is set."""
    with interrupts.held():
        directory = Path(tempfile.mkdtemp(prefix="renderonline-demo-"))
    try:
        yield directory
    finally:
        with interrupts.held():
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
