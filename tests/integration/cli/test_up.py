"""`renderonline up` and the client commands against it, as a person would type them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from renderonline.cli.local_farm import address_in_use
from renderonline.farm.machines import MOST_SLOTS

SCENE = """
#version 3.7;
global_settings { assumed_gamma 1.0 }
camera { location <0, 1, -3> look_at 0 }
light_source { <2, 4, -3> color rgb 1 }
sphere { <0, sin(clock), 0>, 1 pigment { color rgb <1, 0.4, 0.1> } }
"""


class Home:
    """A person's data and configuration directories, and the commands they type."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RENDERONLINE_")},
            "RENDERONLINE_DATA": str(directory / "data"),
            "RENDERONLINE_CONFIG": str(directory / "config"),
        }

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "renderonline.cli.main", *words],
            env=self.environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, *words: str, code: int = 0) -> Any:
        """Run a command to its end; the last JSON document that it prints."""
        with self.start(*words, "--json") as process:
            printed, complained = process.communicate(timeout=60)
        assert process.returncode == code, complained
        return json.loads(printed.splitlines()[-1]) if printed else None

    def up(self, *words: str) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
        """Start the farm and wait until it says that it is up."""
        process = self.start("up", "--port", "0", "--json", *words)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        return process, json.loads(line)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    (tmp_path / "ball.pov").write_text(SCENE)
    yield made
    for process in psutil.process_iter():
        try:
            if process.environ().get("RENDERONLINE_DATA") == made.environment["RENDERONLINE_DATA"]:
                process.kill()
                pytest.fail(f"left over: {process.cmdline()}")
        except psutil.Error:
            continue


def stop(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(number)
    _, complained = process.communicate(timeout=60)
    assert "Traceback" not in complained
    return process.returncode


def test_farm_renders_what_is_submitted_and_is_there_again_the_next_time(home: Home) -> None:
    process, said = home.up()
    try:
        assert json.loads((home.directory / "config" / "client.json").read_text())["url"] == said["url"]
        task = home.type("submit", "ball.pov", "--frames", "1-4", "--arg", "width=64", "--arg", "height=48")
        assert home.type("watch", str(task["task_id"]))["status"] == "succeeded"
        home.type("download", str(task["task_id"]), "-o", "frames")
        assert len(list((home.directory / "frames").glob("*.png"))) == 4
        home.type("download", str(task["task_id"]), "--zip", "-o", "all.zip")
        assert (home.directory / "all.zip").stat().st_size > 1000
        assert home.type("logs", str(task["task_id"]))
        machines = home.type("machine", "list")
        assert [(machine["name"], machine["slots_allowed"]) for machine in machines] == [("this-computer", MOST_SLOTS)]
        assert said["sandbox"] == machines[0]["sandbox"] == "bwrap"
        assert home.type("tasks", "999", code=4) is None
        port = int(said["url"].rpartition(":")[2])
    finally:
        assert stop(process) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    process, said = home.up("--port", str(port))
    try:
        assert [item["task_id"] for item in home.type("tasks")] == [task["task_id"]]
        assert len(home.type("machine", "list")) == 1
    finally:
        assert stop(process, signal.SIGINT) == 130


def test_farm_without_a_box_says_so_and_what_gets_one(home: Home) -> None:
    home.environment["HPCSERVER_SANDBOX"] = "off"
    with home.start("up", "--port", "0") as process:
        assert process.stdout is not None
        lines = [line.rstrip() for line in iter(process.stdout.readline, "Ctrl-C stops everything.\n")]
        stop(process)
    at = next(number for number, line in enumerate(lines) if line.startswith("Sandbox:"))
    assert lines[at].endswith("none: any scene can read and write what this account can   WARNING")
    assert lines[at + 1].strip() == "Better: set Sandbox to auto"


def test_farm_that_crashed_is_not_taken_for_running_when_another_program_has_its_number(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (tmp_path / "renderapi.json").write_text(json.dumps({"url": url, "pid": os.getpid()}))
        assert address_in_use(tmp_path) == url
    assert address_in_use(tmp_path) == ""


def test_second_farm_on_the_same_data_is_refused_with_the_address_of_the_first(home: Home) -> None:
    process, said = home.up()
    try:
        with home.start("up", "--port", "0") as second:
            _, complained = second.communicate(timeout=60)
        assert second.returncode == 1
        assert said["url"] in complained
    finally:
        stop(process)


def test_farm_stops_wholly_when_one_of_its_programs_dies(home: Home) -> None:
    process, _ = home.up()
    api = json.loads((home.directory / "data" / "renderapi.json").read_text())["pid"]
    os.kill(api, signal.SIGKILL)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RenderAPI has ended" in complained


def test_taken_port_is_told(home: Home) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with home.start("up", "--port", port) as process:
            _, complained = process.communicate(timeout=60)
    assert process.returncode == 1
    assert port in complained


def test_wrong_token_ends_with_code_three(home: Home) -> None:
    process, said = home.up()
    try:
        home.environment |= {
            "RENDERONLINE_URL": said["url"],
            "RENDERONLINE_EMAIL": "nobody@nowhere",
            "RENDERONLINE_TOKEN": "x",
        }
        home.type("tasks", code=3)
    finally:
        stop(process)
