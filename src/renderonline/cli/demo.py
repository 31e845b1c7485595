"""`renderonline demo`: a farm of one RenderAPI and two HPCServers renders an animation, and proves that it did."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from renderonline.cli import show
from renderonline.cli.demo_checks import problems_of
from renderonline.cli.engines import install_blender
from renderonline.cli.local import LocalFarm
from renderonline.cli.progress import Step, bytes_bar, fraction_bar
from renderonline.cli.supervise import Interrupted, Interrupts, Program, Supervisor
from renderonline.engines import blender, films
from renderonline.engines.children import child
from renderonline.farm.errors import InvalidRequest, NotAvailable, RenderOnlineError
from renderonline.rnoclient.sdk import Client, Task
from renderonline.serving.directories import data_directory

FRAMES: Final = 24
FPS: Final = 12
CHUNK: Final = 3
"""Small, so that both machines get their share."""
MACHINES: Final = ("machine-1", "machine-2")
SHARE: Final = 6
"""So many frames each machine must have rendered."""
INTERRUPTED: Final = 130
SCENE: Final = "demo.blend"
FILM: Final = "demo.mp4"
SAMPLE: Final = Path(str(blender.__file__)).with_name("sample.py")
"""Run by Blender's own Python; never imported here."""
SCENE_TIME_S: Final = 180.0
SETTINGS: Final = ("RENDERAPI_", "HPCSERVER_")
"""What the environment says of somebody's real farm (its database above all) is not for the demo."""


@dataclass(slots=True)
class Story:
    """What happened: seconds per step, frames per machine, what went wrong."""

    seconds: dict[str, float] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    url: str = ""
    pids: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def run(output: Path, *, keep: bool, as_json: bool) -> int:
    """Run the demo; 0 only when everything that it promises holds, 130 when it was interrupted."""
    try:
        return _run(output, keep=keep, as_json=as_json)
    except Interrupted:
        show.note("Stopped, and cleaned up.")
        return INTERRUPTED


def _run(output: Path, *, keep: bool, as_json: bool) -> int:
    story = Story()
    begun = time.monotonic()
    _check_place(output)
    with Interrupts() as interrupts:
        with story.step("Blender"):
            prefix = install_blender(quiet=as_json)
        with _temporary(interrupts, keep=keep) as directory:
            unpacked = directory / "unpacked"
            with Supervisor(interrupts, SETTINGS) as supervisor:
                farm = LocalFarm(supervisor, directory / "farm")
                _render(farm, supervisor, interrupts, prefix[0], unpacked, story, quiet=as_json)
                with story.step("stop the farm"):
                    supervisor.stop()
            frames = sorted(unpacked.glob("frame_*.png"))
            with story.step("film"):
                _encode(frames, unpacked / FILM, quiet=as_json)
            with story.step("checks"):
                story.problems += problems_of(frames, unpacked / FILM, FRAMES)
                story.problems += _unfair(story.frames)
            with interrupts.held():
                _place(unpacked, output)
    story.seconds["all"] = time.monotonic() - begun
    _summary(story, output, directory if keep else None, as_json=as_json)
    return 1 if story.problems else 0


def _render(
    farm: LocalFarm,
    supervisor: Supervisor,
    interrupts: Interrupts,
    python: str,
    unpacked: Path,
    story: Story,
    *,
    quiet: bool,
) -> None:
    """From nothing to the downloaded frames."""
    scene = farm.directory.parent / SCENE
    farm.start_api(["--port", "0"])
    with story.step("scene"):
        _make_scene(python, scene, interrupts)
    with story.step("start the farm"):
        farm.wait_for_api()
        login = farm.first_login()
        if login is None:
            raise NotAvailable("RenderAPI wrote no first login.")
        client = Client(login)
        code = str(client.admin.invite(uses=len(MACHINES), hours=1)["code"])
        nodes = {name: farm.start_node(name, code=code) for name in MACHINES}
        names = {farm.wait_for_node(name, program): name for name, program in nodes.items()}
    _introduce(farm, story, nodes, quiet=quiet)
    with client:
        with story.step("submit"), bytes_bar("Sending the scene", quiet=quiet) as sent:
            task = _submit(client, scene, sent)
        with story.step("render"):
            _follow(client, task["task_id"], names, story, supervisor.check, quiet=quiet)
        with story.step("download"):
            archive = client.download_zip(task["task_id"], farm.directory.parent / "demo.zip")
            _unpack(archive, unpacked)


def _make_scene(python: str, scene: Path, interrupts: Interrupts) -> None:
    """Let Blender's own Python write the animation, as a user would save a scene."""
    argv = [python, "-I", "-X", "utf8", str(SAMPLE), str(scene)]
    log = scene.with_suffix(".log")
    with log.open("wb") as words, contextlib.ExitStack() as stack:
        with interrupts.held():  # Blender leaves a directory in TMPDIR
            surroundings = {**os.environ, "TMPDIR": str(scene.parent)}
            process = stack.enter_context(child(argv, stdout=words, stderr=words, environment=surroundings))
        process.wait(SCENE_TIME_S)
    if process.returncode != 0 or not scene.is_file():
        raise RenderOnlineError(f"The sample scene could not be made:\n{log.read_text(errors='replace')[-2000:]}")


def _submit(client: Client, scene: Path, sent: Step) -> Task:
    threads = max(1, (os.cpu_count() or 2) // len(MACHINES))
    return client.submit(
        scene,
        engine="blender",
        frames=f"1-{FRAMES}",
        chunk_size=CHUNK,
        name="demo",
        arguments={"threads": str(threads)},
        progress=sent,
    )


def _follow(
    client: Client,
    task_id: int,
    names: dict[int, str],
    story: Story,
    check: Callable[[], None],
    *,
    quiet: bool,
) -> None:
    """Show who renders how much until the task has ended."""
    last: Task | None = None
    with _frames_view(quiet=quiet) as update:
        for task in client.watch(task_id):
            last = task
            check()
            counted = Counter(names.get(result["machine_id"], "?") for result in client.results(task_id))
            story.frames = {name: counted.get(name, 0) for name in sorted({*names.values(), *counted})}
            update(story.frames)
    if last is None or last["status"] != "succeeded":
        reason = (last["reason"] if last else None) or "without a reason"
        raise RenderOnlineError(f"The task ended as {last['status'] if last else 'nothing'}: {reason}")


@contextlib.contextmanager
def _frames_view(*, quiet: bool) -> Iterator[Callable[[dict[str, int]], None]]:
    """Shows frames per machine: bars on a terminal, a line for each change elsewhere."""
    if quiet:
        yield lambda frames: None
        return
    if not sys.stderr.isatty():
        said = [0]

        def line(frames: dict[str, int]) -> None:
            done = sum(frames.values())
            if done != said[0]:
                said[0] = done
                shares = ", ".join(f"{name}: {count}" for name, count in frames.items())
                show.note(f"Rendered {done} of {FRAMES} frames ({shares})")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        whole = bar.add_task("Rendering", total=FRAMES)
        rows = {name: bar.add_task(f"  {name}", total=FRAMES) for name in MACHINES}

        def update(frames: dict[str, int]) -> None:
            bar.update(whole, completed=sum(frames.values()))
            for name, row in rows.items():
                bar.update(row, completed=frames.get(name, 0))

        yield update


def _unpack(archive: Path, target: Path) -> None:
    """The frames and the scene of the ZIP, by their base names."""
    target.mkdir()
    with zipfile.ZipFile(archive) as content:
        for item in content.infolist():
            name = Path(item.filename).name
            if not item.is_dir() and (name == SCENE or name.startswith("frame_")):
                with content.open(item) as source, (target / name).open("xb") as file:
                    shutil.copyfileobj(source, file)


def _encode(frames: list[Path], film: Path, *, quiet: bool) -> None:
    with fraction_bar("Film", quiet=quiet) as step:
        step(0.0, "encoding")
        films.encode(frames, film, FPS, lambda fraction: step(fraction, "encoding"))


def _unfair(frames: dict[str, int]) -> list[str]:
    return [
        f"{name} rendered {frames.get(name, 0)} frames, not {SHARE}."
        for name in MACHINES
        if frames.get(name, 0) < SHARE
    ]


def _check_place(output: Path) -> None:
    """Find out before the work whether its outcome can be put there."""
    place = output.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InvalidRequest(f"Nothing can be written to {place}; choose another place with --output.")


def _place(unpacked: Path, output: Path) -> None:
    """Put the files where they are wanted; those of an earlier demo go, all others stay."""
    output.mkdir(parents=True, exist_ok=True)
    for old in [*output.glob("frame_[0-9][0-9][0-9][0-9].png"), output / FILM, output / SCENE]:
        old.unlink(missing_ok=True)
    for file in sorted(unpacked.iterdir()):
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


def _introduce(farm: LocalFarm, story: Story, nodes: dict[str, Program], *, quiet: bool) -> None:
    story.url = farm.url
    assert farm.api is not None
    story.pids = {"RenderAPI": farm.api.process.pid}
    story.pids |= {name: program.process.pid for name, program in nodes.items()}
    if not quiet:
        shown = ", ".join(f"{name} (pid {pid})" for name, pid in story.pids.items())
        show.note(f"The farm is up at {farm.url}: {shown}")


def _summary(story: Story, output: Path, kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        show.emit(
            {
                "ok": not story.problems,
                "problems": story.problems,
                "output": str(output.absolute()),
                "seconds": {name: round(value, 2) for name, value in story.seconds.items()},
                "frames": story.frames,
            }
        )
        return
    show.say()
    show.table(["STEP", ">SECONDS"], [(name, f"{value:.1f}") for name, value in story.seconds.items()])
    show.say()
    show.table(["MACHINE", ">FRAMES"], sorted(story.frames.items()))
    show.say()
    places = [("frames", output / "frame_0001.png … "), ("film", output / FILM), ("scene", output / SCENE)]
    places += [("farm (kept)", kept)] if kept else []
    places += [("Blender", data_directory() / "engines" / "blender")]
    show.table(["WHAT", "WHERE"], places)
    for problem in story.problems:
        show.note(f"Not as promised: {problem}")
    if not story.problems:
        show.say(
            "\nYour own scene: renderonline up, then in another terminal renderonline submit FILE.blend --frames 1-24"
        )
