"""Setting up Blender without a Blender: PyPI's `bpy` in an environment of its own.

Blender is GPL and an exact match of one Python version, so it lives apart from our own environment and is only ever
run as a separate process. The environment is built under a name of its own; a marker file, written last, says that it
is complete (environments can't be moved). What an interrupted run leaves behind has no marker and is removed.

Programs that run for a while (`ask`), such as an installer or a probe, never outlive this one. Engines that render are
not started here but by the machine's spawner (R8 Process trees).
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import psutil
import uv

from renderonline.farm.errors import NoSpace, NotAvailable
from renderonline.sandbox.privacy import Locked, lock_file, write_private

Progress = Callable[[float, str], None]
"""Called with how far it is (0 to 1) and what is being done."""


@dataclass(frozen=True, slots=True)
class Build:
    """A Blender on PyPI: which `bpy` there is for which Python."""

    python: str
    bpy: str

    @property
    def version(self) -> str:
        return self.bpy.rstrip(".*")

    @property
    def environment(self) -> str:
        return f"bpy-{self.version}-python-{self.python}"


BUILDS: Final = (Build("3.13", "5.2.*"), Build("3.11", "5.0.1"))
"""The best first. Blender supports exactly one Python per version."""

LAUNCHER: Final = Path(__file__).with_name("launcher")
"""A package, run as a directory."""
_SCRIPT: Final = str(LAUNCHER / "__main__.py")
OLDEST_WITH_LAUNCHER: Final = [3, 4]
_ALONE: Final = ("-b", "--factory-startup", "--disable-autoexec", "--python-exit-code", "1")
"""Blender without a window, a person's settings and a scene's scripts; when the launcher breaks, that is a failure."""
WRITTEN_BYTES: Final = 937_000_000
"""What an installation writes; the download is 374 MB, packed."""
NEEDED_BYTES: Final = 1_500_000_000
STEP_TIME_S: Final = 3_600.0
SMOKE_TIME_S: Final = 180.0

_PACKAGES: Final = """
libEGL.so.1=libegl1 libGL.so.1=libgl1 libICE.so.6=libice6 libSM.so.6=libsm6 libX11.so.6=libx11-6 libXext.so.6=libxext6
libXfixes.so.3=libxfixes3 libXi.so.6=libxi6 libXrender.so.1=libxrender1 libXt.so.6=libxt6 libXxf86vm.so.1=libxxf86vm1
libgomp.so.1=libgomp1 libxkbcommon.so.0=libxkbcommon0
"""
DEBIAN_PACKAGES: Final[Mapping[str, str]] = dict(pair.split("=") for pair in _PACKAGES.split())
"""Shared libraries that Blender takes from the system -> the package of Debian and Ubuntu that has them."""

_MARKER: Final = "installed.json"
_SMOKE: Final = """
import bpy, os, sys
sys.stdout.write(f"VERSION {bpy.app.version_string}\\n")
sys.stdout.flush()
os._exit(0)
"""
_MISSING_LIBRARY = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")


GRACE_S: Final = 2.0
"""Between asking a child to end and killing it."""
LONGEST_ANSWER: Final = 1 << 20

_DIES_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildAnswer(NamedTuple):
    """What a program wrote on stdout and stderr, line by line without blank ones. `code` None: it took too long, or
    could not be started."""

    code: int | None
    out: Sequence[str] = ()
    err: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Installation:
    """A whole environment with Blender in it. `version` is "" until Blender has been seen running."""

    python: Path
    version: str = ""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a Blender command line begins with."""
        return (str(self.python), "-I", "-X", "utf8", str(LAUNCHER))


def installed(directory: Path) -> Installation | None:
    """The Blender in `directory` if it is complete and was seen running."""
    found = _read_marker(directory)
    return found if found is not None and found.version else None


def launched(program: Sequence[str], version: str) -> tuple[str, ...]:
    """What a command line begins with for Blender the program of this version: our launcher runs in it, so that it
    renders and says the same as the module. A Blender that is too old for the launcher runs by itself."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return tuple(program) if numbers < OLDEST_WITH_LAUNCHER else with_launcher(program)


def with_launcher(program: Sequence[str]) -> tuple[str, ...]:
    """What a command line begins with for Blender the program, of whatever version, so that our launcher runs in it."""
    if {str(LAUNCHER), _SCRIPT} & {*program}:
        return tuple(program)
    return (*program, *_ALONE, "--python", _SCRIPT, "--")


def install(directory: Path, progress: Progress, *, builds: Sequence[Build] = BUILDS) -> tuple[str, ...]:
    """Set up Blender in `directory`, or find it there, and return what its command lines begin with.

    Takes half a minute on a fast line (374 MB) and nothing the second time. May be interrupted at any moment: its
    children end with it, and the next run starts cleanly. Raises `NotAvailable` (no fitting Python, no network, a
    system library is missing) or `NoSpace`; the messages say what to do.
    """
    found = installed(directory)
    if found is None:
        directory.mkdir(parents=True, exist_ok=True)
        with sigterm_unwinds(), _one_at_a_time(directory, progress):
            found = installed(directory) or _install(directory, progress, builds)
    progress(1.0, f"Blender {found.version} is ready")
    return found.prefix


def _install(directory: Path, progress: Progress, builds: Sequence[Build]) -> Installation:
    found = _read_marker(directory)
    python = found.python if found is not None else _make_environment(directory, progress, builds)
    if found is None:
        _write_marker(directory, python, "")
    progress(0.97, "Trying Blender out")
    version = _smoke_test(python)
    _write_marker(directory, python, version)
    return Installation(python, version)


def _make_environment(directory: Path, progress: Progress, builds: Sequence[Build]) -> Path:
    download = directory / "download"
    (directory / _MARKER).unlink(missing_ok=True)
    for leftover in (*directory.glob("bpy-*"), download):
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise NoSpace(f"Blender needs {NEEDED_BYTES >> 20} MiB in {directory}; {free >> 20} MiB are free.")
    progress(0.0, "Looking for a Python that Blender supports")
    build, python = _choose(directory, builds)
    environment = directory / build.environment
    new = _python_of(environment)

    def report(written: int) -> None:
        done = 0.05 + 0.9 * min(written / WRITTEN_BYTES, 1.0)
        progress(done, f"Installing Blender {build.version} (374 MB from PyPI)")

    try:
        progress(0.03, f"Making an environment with Python {build.python}")
        _run_uv(["venv", "--quiet", "--no-project", "--python", python, str(environment)], directory)
        # A cache of its own: what an interrupted download leaves is found and removed, and the user's cache does not
        # grow by a gigabyte. The files are hard links, so that removing the cache keeps the environment.
        install = ["pip", "install", "--quiet", "--python", str(new), f"bpy=={build.bpy}"]
        _run_uv([*install, "--cache-dir", str(download)], directory, report)
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return new


def _choose(directory: Path, builds: Sequence[Build]) -> tuple[Build, str]:
    """The best build whose Python is here; otherwise the best one whose Python uv can download."""
    for build in builds:
        if build.python == f"{sys.version_info.major}.{sys.version_info.minor}":
            return build, sys.executable
        if found := find_python(build.python, directory):
            return build, found
    pythons = str(directory / "python")
    for build in builds:
        if _uv(["python", "install", "--install-dir", pythons, build.python], directory).code == 0:
            find = ["python", "find", "--managed-python", build.python]
            if found := _found(_uv(find, directory, UV_PYTHON_INSTALL_DIR=pythons)):
                return build, found
    wanted = " or ".join(f"Python {build.python} (for Blender {build.version})" for build in builds)
    raise NotAvailable(
        f"Blender from PyPI needs {wanted}; neither is installed and neither could be downloaded. "
        "Install one of them (on Debian and Ubuntu: apt-get install python3.11) or a system Blender, then try again."
    )


def find_python(version: str, directory: Path) -> str | None:
    """The Python of this version that is on the computer, wherever uv looks for one."""
    return _found(_uv(["python", "find", "--system", "--no-python-downloads", version], directory))


def _found(answer: ChildAnswer) -> str | None:
    return answer.out[0] if answer.code == 0 and answer.out else None


def _run_uv(arguments: Sequence[str], directory: Path, report: Callable[[int], None] = lambda _bytes: None) -> None:
    """Run uv to its end, reporting how many bytes it has written; `NotAvailable` with its last words when it fails."""

    def look(pid: int) -> None:
        with suppress(psutil.Error, AttributeError):  # no such counters here, or it has just ended
            report(psutil.Process(pid).io_counters().write_chars)

    answer = _uv(arguments, directory, look)
    if answer.code == 0:
        return
    words = " ".join(answer.err)
    advice = "Check the network (and the proxy or package index that uv uses), then try again."
    if ("no wheels" in words or "unsatisfiable" in words) and "network" not in words:
        advice = (
            f"PyPI has no Blender for this kind of computer ({platform.system()} {platform.machine()}) or its index "
            "is not the one in use. A system Blender works as well: install it and put `blender` on the PATH."
        )
    last = " ".join(answer.err[-6:]) or "uv was ended."
    raise NotAvailable(f"Blender could not be installed: {last}\n{advice}")


def _uv(
    arguments: Sequence[str], directory: Path, meanwhile: Callable[[int], None] = lambda _pid: None, **more: str
) -> ChildAnswer:
    """What uv says, run in our environment without what would make it work on some other project's."""
    try:
        program: str | None = os.fspath(uv.find_uv_bin())
    except FileNotFoundError:
        program = shutil.which("uv")
    if program is None:
        raise NotAvailable("The program uv is missing. Install it (pip install uv), then try again.")
    foreign = {"VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "PYTHONHOME", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= {"UV_NO_PROGRESS": "1", **more}
    argv = [program, *arguments]
    return ask(argv, STEP_TIME_S, cwd=directory, environment=environment, meanwhile=meanwhile)


def _smoke_test(python: Path) -> str:
    """Blender's version, seen by importing it; `NotAvailable` names the system libraries that it lacks."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "TMPDIR": scratch}  # Blender leaves a directory there when it is interrupted
        answer = ask([str(python), "-I", "-c", _SMOKE], SMOKE_TIME_S, environment=environment)
    if answer.code is None:
        raise NotAvailable(f"Blender did not start within {SMOKE_TIME_S:.0f} s. Try again.")
    version = re.search(r"VERSION (\S+)", " ".join(answer.out))
    if answer.code == 0 and version is not None:
        return version[1]
    missing = sorted({*_MISSING_LIBRARY.findall(" ".join(answer.err)), *_missing_by_ldd(python)})
    if not missing:
        last = answer.err[-1] if answer.err else f"exit code {answer.code}"
        raise NotAvailable(f"Blender is installed but does not start: {last}")
    packages = sorted({DEBIAN_PACKAGES[name] for name in missing if name in DEBIAN_PACKAGES})
    advice = f"apt-get install -y {' '.join(packages)}" if packages else "the package manager of this system"
    raise NotAvailable(
        f"Blender needs system libraries that are not here: {', '.join(missing)}. "
        f"Install them (Debian, Ubuntu: {advice}), then try again."
    )


def _missing_by_ldd(python: Path) -> set[str]:
    """All libraries that Blender's own ones lack; the loader itself only names the first."""
    ldd = shutil.which("ldd")
    package = next(iter(python.parent.parent.glob("lib/python*/site-packages/bpy")), None)
    if ldd is None or package is None:
        return set()
    files = [*package.glob("*.so"), *package.glob("lib/*.so*")]
    said = "\n".join(ask([ldd, *map(str, files)], SMOKE_TIME_S).out)
    return set(re.findall(r"^(\S+) => not found", said, re.MULTILINE)) - {file.name for file in files}


def _python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _read_marker(directory: Path) -> Installation | None:
    """None as well when the environment's Python is gone."""
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        python, version = _python_of(directory / marker["environment"]), str(marker["version"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    sane = re.fullmatch(r"bpy-[\w.-]+", marker["environment"])
    return Installation(python, version) if sane and os.access(python, os.X_OK) else None


def _write_marker(directory: Path, python: Path, version: str) -> None:
    environment = python.relative_to(directory).parts[0]
    marker = json.dumps({"environment": environment, "version": version}) + "\n"
    write_private(directory / _MARKER, marker, mode=0o644)


@contextmanager
def _one_at_a_time(directory: Path, progress: Progress) -> Iterator[None]:
    """Two installations of the same directory at once: the second waits, then finds it done."""
    lock = None
    while lock is None:
        try:
            lock = lock_file(directory / "lock")
        except Locked:
            progress(0.0, "Waiting for another installation of Blender to end")
            time.sleep(0.3)
    with lock:
        yield


@contextmanager
def child(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A running program, started with these `options` of `Popen`. When the block is left, in whatever way, what is left
    of the program is killed. On Linux it dies even when we are killed without being asked. `FileNotFoundError`
    (elsewhere than on Linux) or exit code 1 when the program does not exist."""
    if sys.platform.startswith("linux"):
        argv = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *argv]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            _end(process)


def ask(
    argv: Sequence[str],
    time_s: float,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[int], object] = lambda _pid: None,
) -> ChildAnswer:
    """Run a program to its end, but for `time_s` at most; `meanwhile` is called with its process id now and then."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, suppress(FileNotFoundError):
        with child(argv, stdout=out, stderr=err, cwd=cwd, env=environment) as process:
            ends = time.monotonic() + time_s
            while process.poll() is None and time.monotonic() < ends:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                meanwhile(process.pid)
            code = process.poll()
        return ChildAnswer(code, _lines(out), _lines(err))
    return ChildAnswer(None)


def _lines(words: IO[bytes]) -> list[str]:
    words.seek(0)
    lines = words.read(LONGEST_ANSWER).decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            process.wait(GRACE_S)


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit(143)`, so that `finally` runs and children are ended. A program that
    handles SIGTERM by itself keeps its way, and so does every thread but the main one."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
