"""`renderonline db …` as it is typed, on SQLite and MariaDB."""

import json
import os
from pathlib import Path

import pytest

from renderonline.cli.main import run
from renderonline.database.door import Database
from renderonline.database.standby import Lease


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RENDERAPI_")]:
        monkeypatch.delenv(name)


def test_database_is_made_checked_and_backed_up(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(["db", "migrate", "-c", database_url, "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["before"] == report["after"] for report in reports] == [False, True]
    assert run(["db", "check", "-c", database_url]) == 0
    assert "Wrong" not in capsys.readouterr().out
    target = tmp_path / "copy"
    assert run(["db", "backup", str(target), "-c", database_url]) == 0
    assert target.stat().st_size > 1000
    assert run(["db", "backup", str(target), "-c", database_url]) == 1


def test_connection_may_stand_in_the_settings_file(migrated_url: str, tmp_path: Path) -> None:
    config = tmp_path / "RenderAPI.json"
    config.write_text(json.dumps({"ConnectionString": migrated_url, "Port": "5000", "Certificate": None}))
    assert run(["db", "check", "--config", str(config)]) == 0


def test_database_without_tables_is_told_what_to_do(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Database.open(database_url):
        pass
    assert run(["db", "check", "-c", database_url]) == 1
    assert "renderonline db migrate" in capsys.readouterr().err


def test_missing_file_is_not_made_by_looking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db", "check", "-c", f"sqlite:///{tmp_path / 'none.sqlite'}"]) == 4
    assert not list(tmp_path.iterdir())


def test_migration_is_refused_while_a_renderapi_holds_the_database(
    migrated_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Database.open(migrated_url) as database, Lease.of(database, "a test").hold():
        assert run(["db", "migrate", "-c", migrated_url]) == 1
        assert run(["db", "check", "-c", migrated_url]) == 0
    assert capsys.readouterr().err.startswith("Error: ")
