"""Installing Blender: from PyPI for real, interrupted, without a fitting Python, without a system library."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from renderonline.engines.blender import install as blender
from renderonline.engines.blender.install import BUILDS, Build, Installation, find_python, install, installed
from renderonline.farm.errors import NoSpace, NotAvailable
from tests.support.blender import blender_directory, blender_prefix

pytestmark = pytest.mark.blender


def quiet(_fraction: float, _text: str) -> None:
    """Nobody looks."""


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def alive_below(directory: Path) -> list[str]:
    """Processes that have the directory in their command line."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(directory) in line and process.pid != os.getpid():
            lines.append(line)
    return lines


def fake_environment(directory: Path, script: str) -> Path:
    """An installed environment whose Python is a shell script, not tried out yet."""
    python = directory / BUILDS[1].environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (directory / "installed.json").write_text(json.dumps({"environment": BUILDS[1].environment, "version": ""}))
    return python


@pytest.mark.timeout(600)
def test_blender_is_installed_and_the_second_time_takes_no_time() -> None:
    prefix = blender_prefix()
    told: list[tuple[float, str]] = []
    began = time.monotonic()
    assert install(blender_directory(), lambda *progress: told.append(progress)) == prefix
    assert time.monotonic() - began < 0.5
    assert told[-1][0] == 1.0
    found = installed(blender_directory())
    assert found is not None
    answer = subprocess.run([*prefix, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.startswith(f"Blender {found.version}")


def test_an_installation_leaves_only_the_environment_and_its_marker() -> None:
    blender_prefix()
    left = {entry.name for entry in blender_directory().iterdir()}
    assert left - {"python"} == {"installed.json", "lock", Path(blender_prefix()[0]).parent.parent.name}


INTERRUPTED = """
import sys
from pathlib import Path
from renderonline.engines.blender.install import Build, install
def tell(fraction, text):
    print(fraction, text, flush=True)
install(Path(sys.argv[1]), tell)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_installation_ends_its_children(tmp_path: Path, number: signal.Signals) -> None:
    directory = tmp_path / "blender"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell's background job would ignore SIGINT.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "from PyPI" in line and float(line.split()[0]) > 0.05:
                break
        process.send_signal(number)
        process.wait(20)
    wait_for(lambda: not alive_below(directory))
    assert installed(directory) is None
    if number is not signal.SIGKILL:
        assert {entry.name for entry in directory.iterdir()} == {"lock"}


def test_what_a_killed_installation_left_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bpy-5.0.1-python-3.11" / "bin").mkdir(parents=True)
    (tmp_path / "download" / ".tmpx").mkdir(parents=True)
    (tmp_path / "installed.json").write_text("{half")
    monkeypatch.setattr(blender, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="MiB are free"):
        install(tmp_path, quiet)
    assert {entry.name for entry in tmp_path.iterdir()} == {"lock"}


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = {"environment": BUILDS[1].environment, "version": "5.0.1"}
    (tmp_path / "installed.json").write_text(json.dumps(marker))
    assert installed(tmp_path) is None
    monkeypatch.setattr(blender, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(NoSpace):
        install(tmp_path, quiet)


@pytest.mark.parametrize("text", ["[]", '{"environment": "../../x", "version": "1"}', '{"version": "1"}', ""])
def test_a_marker_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "installed.json").write_text(text)
    assert installed(tmp_path) is None


def test_without_a_fitting_python_it_says_which_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(NotAvailable, match=r"needs Python 3\.7 \(for Blender 9\.9\).*a system Blender"):
        install(tmp_path, quiet, builds=(Build("3.7", "9.9.*"),))


def test_a_python_that_is_on_the_computer_is_found(tmp_path: Path) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = find_python(here, tmp_path)
    assert found is not None
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(f"Python {here}.")
    assert find_python("2.0", tmp_path) is None


def test_without_a_network_it_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(NotAvailable, match=r"(?s)could not be installed: .*Check the network"):
        install(tmp_path, quiet, builds=BUILDS[1:])
    assert {entry.name for entry in tmp_path.iterdir()} == {"lock"}


def test_a_version_that_pypi_does_not_have_is_told_apart_from_no_network(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=r"(?s)unsatisfiable.*A system Blender works as well"):
        install(tmp_path, quiet, builds=(Build(BUILDS[1].python, "0.0.1"),))


def test_a_missing_system_library_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    fake_environment(
        tmp_path, "echo 'ImportError: libXi.so.6: cannot open shared object file: No such file' >&2; exit 1"
    )
    with pytest.raises(NotAvailable) as caught:
        install(tmp_path, quiet)
    assert "libXi.so.6" in caught.value.message
    assert "apt-get install -y libxi6" in caught.value.message
    # The environment itself is good: once the library is there nothing is downloaded again.
    python = fake_python_that_works(tmp_path)
    assert install(tmp_path, quiet) == Installation(python).prefix


def fake_python_that_works(directory: Path) -> Path:
    python = directory / BUILDS[1].environment / "bin" / "python"
    python.write_text("#!/bin/sh\necho VERSION 5.0.1\n")
    return python


def test_all_missing_libraries_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_environment(tmp_path, "echo 'ImportError: libXi.so.6: cannot open shared object file' >&2; exit 1")
    package = tmp_path / BUILDS[1].environment / "lib" / "python3.11" / "site-packages" / "bpy"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.cpython-311.so").touch()
    (package / "lib" / "libtbb.so.12").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    ldd = programs / "ldd"
    ldd.write_text("#!/bin/sh\necho '\tlibSM.so.6 => not found'\necho '\tlibtbb.so.12 => not found'\n")
    ldd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(NotAvailable, match="apt-get install -y libsm6 libxi6") as caught:
        install(tmp_path, quiet)
    assert "libtbb" not in caught.value.message


def test_a_blender_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    fake_environment(tmp_path, "echo 'SyntaxError: broken' >&2; exit 1")
    with pytest.raises(NotAvailable, match="does not start: SyntaxError: broken"):
        install(tmp_path, quiet)


def test_two_installations_at_once_are_one(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    python = fake_environment(
        tmp_path, f"echo x >> {tmp_path}/tries; while [ ! -e {go_on} ]; do sleep 0.05; done; echo VERSION 5.0.1"
    )
    told: list[str] = []
    found: list[tuple[str, ...]] = []
    first = threading.Thread(target=lambda: found.append(install(tmp_path, quiet)))
    first.start()
    wait_for((tmp_path / "tries").exists)
    second = threading.Thread(target=lambda: found.append(install(tmp_path, lambda _, text: told.append(text))))
    second.start()
    wait_for(lambda: "Waiting for another installation of Blender to end" in told)
    go_on.touch()
    first.join(20)
    second.join(20)
    assert found == [Installation(python).prefix] * 2
    assert (tmp_path / "tries").read_text() == "x\n"
