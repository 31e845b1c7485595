"""`renderonline demo` with a real Blender: what it promises, and what it leaves when it is interrupted."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import pytest
from OpenImageIO import UINT8, ImageBuf, ImageBufAlgo

from renderonline.hpcserver.film_maker import count_frames

pytestmark = [pytest.mark.blender, pytest.mark.timeout(600)]


class Demo:
    """A running `renderonline demo`: its lines as they come, and everything it started."""

    def __init__(self, directory: Path, *, data: Path | None = None, path: str | None = None) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.output = directory / "demo-output"
        self.mark = f"demo-test-{uuid.uuid4().hex}"
        self.lines: list[str] = []
        environment = {**os.environ, "TMPDIR": str(self.temporary), "RENDERONLINE_TEST_MARK": self.mark}
        environment |= {"RENDERAPI_CONNECTION_STRING": "sqlite:////not/the/demos/farm", "HPCSERVER_SLOTS": "7"}
        if data is not None:
            environment["RENDERONLINE_DATA"] = str(data)
        if path is not None:
            environment["PATH"] = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "renderonline.cli.main", "demo", "--output", str(self.output)],
            env=environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in self.left():
            process.kill()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 300) -> re.Match[str]:
        """The first line that matches."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            match = re.search(pattern, self.text)
            assert match or self.process.poll() is None, self.text
            found.extend([match] if match else [])
            return bool(found)

        wait_until(seen, seconds, f"no line {pattern}")
        return found[0]

    def end(self, seconds: float = 300) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def left(self) -> list[psutil.Process]:
        """Processes that it started, or that work in its directories."""
        return [process for process in psutil.process_iter() if process.pid != os.getpid() and self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            words = " ".join(process.cmdline())
            return process.environ().get("RENDERONLINE_TEST_MARK") == self.mark or str(self.temporary) in words
        except psutil.Error:
            return False

    def assert_nothing_is_left(self) -> None:
        assert not [process.cmdline() for process in self.left()]
        assert not list(self.temporary.iterdir())
        match = re.search(r"up at http://127\.0\.0\.1:(\d+)", self.text)
        if match:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", int(match[1]))) != 0, "RenderAPI's port is still open"


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def commands(demo: Demo) -> list[str]:
    words = []
    for process in demo.left():
        try:
            words.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return words


def blenders(demo: Demo) -> list[str]:
    """The command lines of Blender itself, without those of the boxes around it."""
    return [
        words for words in commands(demo) if "/blender/launcher " in words and "bwrap" not in words.partition(" ")[0]
    ]


@dataclass(frozen=True, slots=True)
class Picture:
    """What a frame is when it is decoded wholly, and what is wrong with it."""

    width: int
    height: int
    pixels: str
    """Digest of the pixels; file digests differ already by the time stamp."""
    problems: list[str]


def problems_of(frames: list[Path], film: Path, count: int) -> list[str]:
    """Everything that is not as promised, in plain words."""
    problems = [] if len(frames) == count else [f"There are {len(frames)} frames, not {count}."]
    pictures = {frame.name: look(frame) for frame in frames}
    for name, picture in pictures.items():
        problems += [f"{name}: {problem}" for problem in picture.problems]
    if len({picture.pixels for picture in pictures.values()}) != len(pictures):
        problems.append("Some frames show the same picture.")
    decoded = count_frames(film)
    return problems if decoded == count else [*problems, f"{film.name} has {decoded} frames, not {count}."]


def look(path: Path) -> Picture:
    """Decode a picture wholly."""
    image = ImageBuf(str(path))
    if not image.read(0, 0, force=True):
        return Picture(0, 0, "", [f"it does not decode ({image.geterror()})"])
    spec, pixels = image.spec(), image.get_pixels(UINT8)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest() if pixels is not None else ""
    checks = {
        f"it has only {spec.width} x {spec.height} pixels": spec.width < 640 or spec.height < 360,
        "it has one colour only": ImageBufAlgo.isConstantColor(image) is not None,
        "it does not say how long it was rendered": not spec.get_string_attribute("RenderTime"),
    }
    return Picture(spec.width, spec.height, digest, [problem for problem, holds in checks.items() if holds])


def test_demo_keeps_its_promises_though_a_machine_dies(tmp_path: Path) -> None:
    output = tmp_path / "demo-output"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    (output / "frame_0025.png").write_text("of an older demo")
    with Demo(tmp_path) as demo:
        pid = int(demo.wait_for(r"machine-1 \(pid (\d+)\)")[1])
        demo.wait_for(r"Rendered \d+ of 24")
        running = commands(demo)
        assert sum(" renderonline.cli.main api " in words for words in running) == 1
        assert sum(" renderonline.cli.main node " in words for words in running) == 2
        wait_until(lambda: len(blenders(demo)) == 2, 60, "Blender does not run twice")
        os.kill(pid, signal.SIGKILL)
        assert demo.end() == 0, demo.text
        assert "machine-1 was killed" in demo.text
        demo.assert_nothing_is_left()
    frames = sorted(output.glob("*.png"))
    assert problems_of(frames, output / "demo.mp4", 24) == []
    assert {path.name for path in output.iterdir()} == {
        *(f"frame_{number:04}.png" for number in range(1, 25)),
        "demo.mp4",
        "demo.blend",
        "mine.txt",
    }
    shares = re.findall(r"^machine-[12] +(\d+)", demo.text, re.MULTILINE)
    assert sum(map(int, shares)) == 24
    picture = look(frames[0])
    assert (picture.width, picture.height) >= (640, 360)


@pytest.mark.thorough
def test_demo_takes_less_than_a_minute_and_both_machines_get_their_share(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Clock() as clock:
        done = subprocess.run(
            [sys.executable, "-m", "renderonline.cli.main", "demo", "--json", "--output", str(output)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout)
    assert story["ok"]
    assert sum(story["frames"].values()) == 24
    assert min(story["frames"].values()) >= 6
    assert len(list(output.glob("*.png"))) == 24
    assert clock.seconds_alone < 60


def test_demo_without_bubblewrap_renders_in_landlock_and_leaves_nothing_when_interrupted(tmp_path: Path) -> None:
    with Demo(tmp_path, path="/nowhere") as demo:
        demo.wait_for(r"Sandbox: +Landlock ABI \d+: ")
        demo.wait_for(r"Better: apt-get install bubblewrap")
        demo.wait_for(r"Rendered \d+ of 24")
        demo.process.send_signal(signal.SIGINT)
        assert demo.end(60) == 130, demo.text
        demo.assert_nothing_is_left()
        assert not demo.output.exists()


class Clock:
    """How long something took, less what others on this computer kept the processors from doing for it."""

    def __enter__(self) -> Self:
        self._wall, self._ours, self._busy = time.monotonic(), self._children(), self._all()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.monotonic() - self._wall
        others = (self._all() - self._busy) - (self._children() - self._ours)
        self.seconds_alone = wall * (1 - min(0.8, max(0.0, others / (wall * (os.cpu_count() or 1)))))

    def _all(self) -> float:
        times = psutil.cpu_times()
        return times.user + times.system + times.nice

    def _children(self) -> float:
        times = os.times()
        return times.children_user + times.children_system


def interrupt_while_installing(demo: Demo) -> None:
    demo.wait_for("Installing Blender")
    wait_until(lambda: any("pip install" in words for words in commands(demo)), 60, "uv does not run")


def interrupt_while_uploading(demo: Demo) -> None:
    """RenderAPI stands still for a while, so that the upload certainly goes on when the signal comes."""
    pid = int(demo.wait_for(r"RenderAPI \(pid (\d+)\)")[1])
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(3.0, os.kill, (pid, signal.SIGCONT)).start()


def interrupt_while_rendering(demo: Demo) -> None:
    demo.wait_for(r"Rendered \d+ of 24")


def interrupt_while_the_film_is_made(demo: Demo) -> None:
    demo.wait_for("Rendered 24 of 24")


@pytest.mark.parametrize(
    ("step", "number"),
    [
        pytest.param(interrupt_while_installing, signal.SIGINT, marks=pytest.mark.thorough),
        (interrupt_while_installing, signal.SIGTERM),
        (interrupt_while_uploading, signal.SIGTERM),
        pytest.param(interrupt_while_rendering, signal.SIGINT, marks=pytest.mark.thorough),
        pytest.param(interrupt_while_rendering, signal.SIGTERM, marks=pytest.mark.thorough),
        pytest.param(interrupt_while_the_film_is_made, signal.SIGINT, marks=pytest.mark.thorough),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).removeprefix("interrupt_while_"),
)
def test_interrupted_demo_leaves_nothing(step: Callable[[Demo], None], number: signal.Signals, tmp_path: Path) -> None:
    data = tmp_path / "data" if step is interrupt_while_installing else None
    with Demo(tmp_path, data=data) as demo:
        step(demo)
        demo.process.send_signal(number)
        assert demo.end(60) == 130, demo.text
        demo.assert_nothing_is_left()
        assert not demo.output.exists()
    if data is not None:
        engines = data / "engines" / "blender"
        assert not [path for path in engines.iterdir() if path.is_dir()], "a half environment is left"
