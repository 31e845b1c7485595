"""`renderonline node --check`: what it finds on this computer, and that it leaves everything as it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from renderonline.cli.main import run
from renderonline.engines.discovery import FoundEngine
from renderonline.hpcserver.joining import CheckResult, Level, findings
from renderonline.hpcserver.settings import load
from tests.support.farm import RealFarm

ENGINE = FoundEngine("painter", ("/usr/bin/painter", "-b"), "1.0")


def found(home: Path, url: str = "", **flags: Any) -> Mapping[str, CheckResult]:
    """What is said of each subject."""
    settings = load(None, environment={}, flags={"data_directory": home, **flags})
    return {finding.subject: finding for finding in findings(settings, [ENGINE], url)}


def joined(home: Path, mode: int = 0o600) -> None:
    home.mkdir()
    path = home / "machine.json"
    path.write_text('{"url": "http://127.0.0.1:9", "machine_id": 1000, "secret": "s"}')
    path.chmod(mode)


@pytest.fixture
def without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without bwrap."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_check_leaves_no_trace(tmp_path: Path) -> None:
    said = found(tmp_path / "data" / "hpcserver")
    assert not list(tmp_path.iterdir())
    assert said["secrets"] == CheckResult("secrets", "none yet: this machine has joined no farm")
    assert said["engine"] == CheckResult("engine", "painter 1.0: /usr/bin/painter")
    assert said["farm"].text.startswith("not joined yet")
    assert said["disk"].level is Level.OK


def test_each_box_is_told_with_what_gets_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    box = found(tmp_path)["sandbox"]
    assert box.text.startswith("bubblewrap ")
    assert box.text.endswith(": engines see their task only, no network")
    assert box.level is Level.OK
    request.getfixturevalue("without_bubblewrap")
    landlock = found(tmp_path)["sandbox"]
    assert landlock.text.startswith("Landlock ABI ")
    assert landlock.text.endswith("Better: apt-get install bubblewrap")
    assert landlock.level is Level.OK
    monkeypatch.setattr("renderonline.sandbox.box.abi", lambda: 0)
    none = found(tmp_path)["sandbox"]
    assert none.text == (
        "none: any scene can read and write what this account can. Mend it: apt-get install bubblewrap"
    )
    assert none.level is Level.WARNING


@pytest.mark.usefixtures("without_bubblewrap")
def test_box_that_the_settings_ask_for_and_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert found(tmp_path, sandbox="bwrap")["sandbox"].level is Level.ERROR


def test_secret_that_others_can_read_is_told_with_the_line_that_hides_it(tmp_path: Path) -> None:
    joined(tmp_path / "home", 0o644)
    told = found(tmp_path / "home")["secrets"]
    assert told.level is Level.ERROR  # it would not start
    assert told.text == f"machine.json 0644, others can read it: chmod 600 {tmp_path}/home/machine.json"


def test_secret_is_visible_to_engines_without_a_box_only(tmp_path: Path) -> None:
    joined(tmp_path / "home")
    boxed, bare = (found(tmp_path / "home", sandbox=setting)["secrets"] for setting in ("auto", "off"))
    assert boxed == CheckResult("secrets", "machine.json 0600, not visible to engines")
    assert bare.level is Level.WARNING
    assert "engines can read it" in bare.text


def test_root_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert found(tmp_path)["user"] == CheckResult("user", "root: make an account for renderers", Level.WARNING)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found(tmp_path)["user"].level is Level.OK


def test_engine_that_is_named_but_not_there_is_warned_of(tmp_path: Path) -> None:
    wanted = [{"EngineId": "Cooker", "ExecutablePath": "/no/cooker"}]
    told = found(tmp_path, rendering_engines=wanted)["engine"]
    assert told.level is Level.WARNING
    assert "/no/cooker" in told.text


def test_farm_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    joined(tmp_path / "home")
    assert found(tmp_path / "home")["farm"].level is Level.ERROR
    assert found(tmp_path, "ftp://farm")["farm"].level is Level.ERROR


def test_exit_code_says_whether_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RealFarm(tmp_path) as farm:
        farm.add_machine("box")
        checked = ["node", "--check", "--json", "--data-directory", str(tmp_path / "box")]
        code = run(checked)
        said = {one["subject"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
        assert said["farm"]["text"].startswith(f"{farm.url} answers (RenderOnline ")
        assert said["farm"]["text"].endswith("joined as machine 1000")
        assert code == (6 if "WARNING" in {one["level"] for one in said.values()} else 0)
        assert run(["node", "--check", "--join", farm.url, "--data-directory", str(tmp_path / "new")]) in (0, 6)
        assert "answers (RenderOnline" in capsys.readouterr().out
    assert run(checked) == 1
