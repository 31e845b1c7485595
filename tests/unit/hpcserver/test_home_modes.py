"""What HPCServer keeps is its own account's alone (M5)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.hpcserver.journal import Outbox
from renderonline.hpcserver.settings import locked
from renderonline.storage.attempt_logs import AttemptLog, AttemptLogs


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_files_of_hpcserver_are_nobody_elses(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "home") as home:
        home.say_ready(url="x")
        Outbox(tmp_path / "new" / "home" / "outbox.sqlite", full_size=1 << 20).close()
        AttemptLog(AttemptLogs(tmp_path / "new" / "home" / "logs"), 7).append(["a line"])
        found = list((tmp_path / "new").rglob("*"))
        assert len(found) == 7
        assert {str(path): oct(path.stat().st_mode) for path in found if path.stat().st_mode & 0o077} == {}
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
