"""What newcomers trip over on the command line: tokens and names of any letters, any terminal, first machines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.cli.main import run
from renderonline.rnoclient.sdk import Client, Login
from tests.support.farm import RealFarm

EMAIL = "日本@例え.jp"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    directory = tmp_path_factory.mktemp("farm") / 'Häuser "春"'
    directory.mkdir()
    with RealFarm(directory) as farm:
        yield farm


def login(farm: RealFarm) -> dict[str, str]:
    known = {"URL": farm.url, "EMAIL": farm.login.email, "TOKEN": farm.login.token}
    return {f"RENDERONLINE_{name}": value for name, value in known.items()} | {
        "RENDERONLINE_CONFIG": str(farm.directory / "config")
    }


def command(farm: RealFarm, *words: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """The program itself, with the farm's login in its environment."""
    known = {**os.environ, **login(farm), **environment}
    argv = [sys.executable, "-m", "renderonline.cli.main", *words]
    return subprocess.run(argv, env=known, capture_output=True, timeout=100, check=False)


def test_anybody_can_log_in_whatever_the_letters_of_their_email(farm: RealFarm) -> None:
    added = farm.client.admin.add_user(email=EMAIL, first_name="", last_name="", role="artist")
    token = added.get("token") or farm.client.admin.new_token(added["user_id"])
    with Client(Login(farm.url, EMAIL, token)) as client:
        assert client.me()["email"] == EMAIL
    file = farm.directory / "token"
    file.write_bytes(f"\ufeff{token}\r\n".encode())
    told = command(farm, "login", "--url", farm.url, "--email", EMAIL, "--token-file", str(file))
    assert (told.returncode, EMAIL in told.stdout.decode()) == (0, True), told.stderr


@pytest.mark.parametrize(("before", "after"), [("", "\r\n"), ("  ", " \n")])
def test_token_with_a_line_end_from_another_system_is_the_token(farm: RealFarm, before: str, after: str) -> None:
    told = command(farm, "tasks", RENDERONLINE_TOKEN=f"{before}{farm.login.token}{after}")
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("token", ["“{}”", "{}\r\nx", "{}ж"])
def test_token_that_cant_be_one_is_refused_and_never_printed(farm: RealFarm, token: str) -> None:
    told = command(farm, "tasks", RENDERONLINE_TOKEN=token.format(farm.login.token))
    assert told.returncode == 1
    assert b"The token can't be right: character " in told.stderr
    assert farm.login.token.encode() not in told.stderr + told.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_every_terminal_shows_every_task(farm: RealFarm, tmp_path: Path, encoding: str) -> None:
    scene = tmp_path / "a.pov"
    scene.write_text("sphere { 0 1 }")
    task = farm.client.submit(scene, engine="povray", name="Frühling 春 🎬", needs={"pool": "none"})["task_id"]
    try:
        for words in (["tasks"], ["tasks", str(task)], ["tasks", str(task), "--json"]):
            told = command(farm, *words, PYTHONIOENCODING=encoding)
            assert told.returncode == 0, told.stderr
            assert b"Traceback" not in told.stderr
        assert json.loads(told.stdout.decode("ascii"))["name"] == "Frühling 春 🎬"
    finally:
        farm.client.delete(task)


def test_povray_renders_scenes_and_includes_of_any_name_and_says_the_whole_reason(
    farm: RealFarm, tmp_path: Path
) -> None:
    folder = tmp_path / "käse"
    folder.mkdir()
    (folder / "ball.inc").write_text("#declare Ball = sphere { 0 1 pigment { rgb 1 } }")
    scene = folder / 'grün "1".pov'
    scene.write_text('#include "ball.inc" camera { location -3*z look_at 0 } light_source { 5*y-5*z rgb 1 } Ball')
    node = farm.add_machine("box")
    try:
        deep = f"käse/{'d' * 150}"
        inputs = {f"{deep}/ball.inc": folder / "ball.inc"}
        sizes = {"width": "32", "height": "18"}
        task = farm.client.submit(
            scene, scene=f"{deep}/grün.pov", inputs=inputs, engine="povray", frames="1-2", arguments=sizes
        )
        done = farm.wait_for_status(task["task_id"], "succeeded", "failed")
        assert done["status"] == "succeeded", done
        names = [result["name"] for result in farm.client.results(task["task_id"])]
        assert sorted(names) == ["frame_1.png", "frame_2.png"]
        missing = f"{'abcdefghij' * 12}.inc"
        scene.write_text(f'#include "{missing}"')
        failed = farm.client.submit(scene, scene="grün.pov", engine="povray", frames="1-2", arguments=sizes)
        farm.wait_for_status(failed["task_id"], "failed")
        told = command(farm, "explain", str(failed["task_id"])).stdout.decode()
        assert f"Cannot open include file {missing}" in told
    finally:
        node.process.terminate()
        node.process.wait(60)
        farm.supervisor.forget(node)


def test_hours_that_were_understood_are_told_in_words(
    farm: RealFarm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in login(farm).items():
        monkeypatch.setenv(name, value)
    machine = str(farm.client.admin.add_machine("192.0.2.1", 5001)["machine_id"])
    assert run(["machine", "set", machine, "--hours", "Mon,Tue,Wed 09:00-17:00"]) == 0
    assert "It takes work: Mon, Tue and Wed 09:00 to 17:00 (the farm's local time)." in capsys.readouterr().out
    assert run(["machine", "set", machine, "--hours", "Sat, Sun, Mon-Fri 18:00-08:00"]) == 1
    assert "can mean two things" in capsys.readouterr().err
    assert run(["machine", "remove", machine, "--yes"]) == 0
