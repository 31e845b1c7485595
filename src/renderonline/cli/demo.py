"""`renderonline demo`: a farm of one RenderAPI and two HPCServers renders an animation."""

import contextlib
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from renderonline.cli import terminal
from renderonline.cli.engine_commands import install_blender
from renderonline.cli.supervise import INTERRUPTED, Interrupted, Interrupts, Program, Supervisor
from renderonline.cli.up import LocalFarm, sandbox_lines
from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.rnoclient.sdk import Client, Task
from renderonline.serving.directories import data_directory

FRAMES: Final = 24
FPS: Final = 12
CHUNK: Final = 3
"""Small, so that both machines get their share."""
MACHINES: Final = ("machine-1", "machine-2")
SCENE: Final = "demo.blend"
"""Made by `scripts/make_demo_scene.py`; it lies beside this module."""
FILM: Final = "demo.mp4"
SETTINGS: Final = ("RENDERAPI_", "HPCSERVER_")
"""Prefixes of variables that the demo ignores: they configure a real farm, its database above all."""


def run(output: Path, *, keep: bool, as_json: bool) -> int:
    """Run the demo; return 0 when every frame and the film are there, 130 when it was interrupted."""
    _check_place(output)
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
    """One run: how, and what happened."""

    interrupts: Interrupts
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MACHINES, 0))
    """Rendered by each machine."""
    problems: list[str] = field(default_factory=list)
    kept: Path | None = None
    sandbox: str = ""
    """The box around the machines' engines."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step."""
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def run(self, output: Path, *, keep: bool) -> None:
        """From nothing to the files in `output`."""
        with self.step("Blender"):
            install_blender(quiet=self.quiet)
        with _temporary(self.interrupts, keep=keep) as directory:
            self.kept = directory if keep else None
            files = directory / "files"
            with Supervisor(self.interrupts, SETTINGS) as supervisor:
                self._render(LocalFarm(supervisor, directory / "farm"), files)
                with self.step("stop the farm"):
                    supervisor.stop()
            expected = [f"frame_{number:04}.png" for number in range(1, FRAMES + 1)]
            self.problems += [f"{name} is missing." for name in [*expected, FILM] if not (files / name).is_file()]
            with self.interrupts.held():
                _place(files, output)

    def _render(self, farm: LocalFarm, files: Path) -> None:
        """From nothing to the downloaded frames."""
        api = farm.start_api("--port", "0")
        with self.step("start the farm"):
            farm.wait_for_api(api)
            code = farm.invite(uses=len(MACHINES))
            nodes = {name: farm.start_node(name, code) for name in MACHINES}
            known = {name: farm.wait_for_node(name, program) for name, program in nodes.items()}
            names = {int(node["machine_id"]): name for name, node in known.items()}
            self.sandbox = known[MACHINES[0]]["sandbox"]
        login = farm.first_login()
        assert login is not None
        if not self.quiet:
            programs = {"RenderAPI": api, **nodes}.items()
            shown = ", ".join(f"{name} (pid {program.process.pid})" for name, program in programs)
            terminal.note("\n".join([f"The farm is up at {farm.url}: {shown}", *sandbox_lines(known[MACHINES[0]])]))
        with Client(login) as client:
            with self.step("submit"), terminal.bar("Sending the scene", "bytes", quiet=self.quiet) as sent:
                threads = str(max(1, (os.cpu_count() or 2) // len(MACHINES)))
                task = client.submit(
                    Path(__file__).with_name(SCENE),
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
            with self.step("download"):
                _unpack(client.download_zip(task["task_id"], farm.directory.with_name("demo.zip")), files)

    def _follow(
        self, client: Client, task: Task, names: dict[int, str], farm: LocalFarm, nodes: dict[str, Program]
    ) -> None:
        """Show who renders how much until the task has ended."""
        with terminal.bar("", "count", quiet=self.quiet) as shown:
            for task in client.watch(task["task_id"]):  # noqa: B020 - its states
                self._revive(farm, nodes)
                farm.supervisor.check()
                frames = (result for result in client.results(task["task_id"]) if result["frame"] is not None)
                counted = Counter(names.get(result["machine_id"], "?") for result in frames)
                self.frames = {name: counted[name] for name in sorted({*MACHINES, *counted})}
                shares = ", ".join(f"{name}: {count}" for name, count in self.frames.items())
                done = counted.total()
                shown(done, FRAMES, f"Rendered {done} of {FRAMES} frames ({shares})" if done else "")
        if task["status"] != "succeeded":
            raise RenderOnlineError(f"The task ended as {task['status']}: {task['reason'] or 'without a reason'}")

    def _revive(self, farm: LocalFarm, nodes: dict[str, Program]) -> None:
        """An HPCServer that was killed is started again; the farm renders its chunk anew."""
        for name, program in nodes.items():
            if (program.process.poll() or 0) < 0:
                terminal.note(f"{name} was killed, and is started again.")
                farm.supervisor.forget(program)
                nodes[name] = farm.start_node(name, None)

    def facts(self, output: Path) -> dict[str, object]:
        """What happened, for programs."""
        seconds = {name: round(value, 2) for name, value in self.seconds.items()}
        known = {"ok": not self.problems, "problems": self.problems, "output": str(output.absolute())}
        return {**known, "seconds": seconds, "frames": self.frames, "sandbox": self.sandbox}

    def summary(self, output: Path) -> None:
        """What happened, for people."""
        terminal.say()
        terminal.table(["STEP", ">SECONDS"], [(name, f"{value:.1f}") for name, value in self.seconds.items()])
        terminal.say()
        terminal.table(["MACHINE", ">FRAMES"], sorted(self.frames.items()))
        terminal.say()
        places = [("frames", output / "frame_0001.png … "), ("film", output / FILM), ("scene", output / SCENE)]
        places += [("farm (kept)", self.kept)] if self.kept else []
        terminal.table(["WHAT", "WHERE"], [*places, ("Blender", data_directory() / "engines" / "blender")])
        for problem in self.problems:
            terminal.note(f"Not as promised: {problem}")
        if not self.problems:
            next_step = "renderonline up, then in another terminal renderonline submit FILE.blend --frames 1-24"
            terminal.say(f"\nYour own scene: {next_step}")


def _unpack(archive: Path, target: Path) -> None:
    """The frames, the film and the scene of the ZIP, by their base names."""
    target.mkdir()
    with zipfile.ZipFile(archive) as content:
        for item in content.infolist():
            name = Path(item.filename).name
            if not item.is_dir() and (name in (SCENE, FILM) or name.startswith("frame_")):
                with content.open(item) as source, (target / name).open("xb") as file:
                    shutil.copyfileobj(source, file)


def _check_place(output: Path) -> None:
    """Find out before the work whether its outcome can be put there."""
    place = output.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InvalidRequest(f"Nothing can be written to {place}; choose another place with --output.")


def _place(files: Path, output: Path) -> None:
    """Put the files where they are wanted; those of an earlier demo go, all others stay."""
    output.mkdir(parents=True, exist_ok=True)
    for old in [*output.glob("frame_[0-9][0-9][0-9][0-9].png"), output / FILM, output / SCENE]:
        old.unlink(missing_ok=True)
    for file in sorted(files.iterdir()):
        shutil.move(file, output / file.name)


@contextlib.contextmanager
def _temporary(interrupts: Interrupts, *, keep: bool) -> Iterator[Path]:
    """A directory for the farm, removed on every way out."""
    with interrupts.held():
        directory = Path(tempfile.mkdtemp(prefix="renderonline-demo-"))
    try:
        yield directory
    finally:
        with interrupts.held():
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
