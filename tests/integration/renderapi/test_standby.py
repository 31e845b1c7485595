"""Two RenderAPI on one MariaDB: one dispatches, the other stands by and takes over (R10 Standby). The database goes
away."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from renderonline.cli.local_farm import Program, stop_together
from renderonline.database import upkeep
from renderonline.database.door import Database
from renderonline.database.upkeep import check
from renderonline.farm.errors import NotAvailable, RenderOnlineError
from renderonline.rnoclient.sdk import Client, Login
from renderonline.rnoclient.sdk.connection import Connection
from tests.support.farm import RealFarm, wait_until
from tests.support.mariadb import PrivateMariaDB
from tests.support.scripted_server import free_port

pytestmark = pytest.mark.mariadb

SCENE = "camera { location -3*z look_at 0 } light_source { 5*y-5*z rgb 1 } sphere { clock*x 1 pigment { rgb x } }"
SIZE = {"width": "64", "height": "48"}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "ball.pov"
    path.write_text(SCENE)
    return path


@pytest.fixture
def url(mariadb: PrivateMariaDB, database_templates) -> Iterator[str]:
    made = mariadb.create_database()
    database_templates.copy_mariadb(mariadb, made)
    yield made
    mariadb.drop_database(made)


def flags(directory: Path) -> tuple[str, ...]:
    return ("--download-path", str(directory / "files"))


@contextmanager
def farm_with_standby(directory: Path, url: str) -> Iterator[tuple[RealFarm, Program, Client]]:
    """A farm whose RenderAPI has a standby; machines and the client know both addresses."""
    with RealFarm(directory, connection=url, flags=flags(directory)) as farm:
        port = free_port()
        words = ["api", "--port", str(port), "--data-directory", str(directory / "second"), "--connection", url]
        second = farm.supervisor.start("standby", [*words, *flags(directory)], directory / "second.log")
        farm.url += f",http://127.0.0.1:{port}"
        there = Connection(Login(farm.url.rpartition(",")[2]))
        farm.supervisor.wait_for(second, lambda: told_by(there) == "standby")
        login = Login(farm.url, farm.login.email, farm.login.token)
        yield farm, second, Client(login, patience_s=30.0)


def told_by(connection: Connection) -> str:
    """The code that a RenderAPI answers with, "" when it would serve."""
    try:
        connection.call("GET", "/me")
    except RenderOnlineError as error:
        return error.reason_code
    return ""


def findings(url: str) -> list[object]:
    with Database.open(url) as database:
        return list(database.read_now(check))


def names(client: Client, task_id: int) -> list[str]:
    return sorted(str(result["name"]) for result in client.results(task_id))


def test_a_renderapi_that_sleeps_is_overtaken_writes_nothing_more_and_ends(
    tmp_path: Path, scene: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENDERAPI_LEASE_S", "2")
    with farm_with_standby(tmp_path, url) as (farm, _, client):
        farm.add_machine("box")
        begun = client.submit(scene, engine="povray", frames="1-16", arguments=SIZE)["task_id"]
        wait_until(lambda: client.task(begun)["frames_done"], "frame")
        refused: list[BaseException] = []

        def pause_at_the_first() -> None:
            try:
                farm.client.pause(begun)
            except RenderOnlineError as error:
                refused.append(error)

        first = farm.renderapi.process
        os.kill(first.pid, signal.SIGSTOP)
        asking = threading.Thread(target=pause_at_the_first)
        asking.start()
        second = Client(Login(farm.url.rpartition(",")[2], farm.login.email, farm.login.token), patience_s=30.0)
        wait_until(lambda: told_by(second.connection) == "", "RenderAPI that has taken over")
        later = second.submit(scene, engine="povray", frames="1-4", arguments=SIZE)["task_id"]
        farm.supervisor.forget(farm.renderapi)
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(30) == 5
        asking.join()
        assert "taken over" in farm.renderapi.tail()
        assert isinstance(refused[0], NotAvailable)  # and the task is not paused, as the success below shows
        for task_id, count in ((begun, 16), (later, 4)):
            wait_until(lambda number=task_id: client.task(number)["status"] == "succeeded", "success")
            assert len(set(names(client, task_id))) == len(names(client, task_id)) == count
        assert len(list(client.tasks())) == 2
        assert findings(url) == []


def test_a_renderapi_that_ends_gives_the_lease_to_the_standby_and_may_come_back_as_one(
    tmp_path: Path, scene: Path, url: str
) -> None:
    with farm_with_standby(tmp_path, url) as (farm, _, client):
        farm.add_machine("box")
        begun = client.submit(scene, engine="povray", frames="1-16", arguments=SIZE)["task_id"]
        wait_until(lambda: client.task(begun)["frames_done"], "frame")
        farm.supervisor.forget(farm.renderapi)
        stop_together([farm.renderapi])
        assert farm.renderapi.process.returncode == 0
        wait_until(lambda: client.task(begun)["status"] == "succeeded", "success after the takeover")
        assert len(names(client, begun)) == 16
        port = farm.url.partition(",")[0].rpartition(":")[2]
        words = ["api", "--port", port, "--data-directory", str(farm.data), "--connection", url, *flags(tmp_path)]
        back = farm.supervisor.start("RenderAPI", words, tmp_path / "back.log")
        farm.supervisor.wait_for(back, lambda: told_by(farm.client.connection) == "standby")
        assert findings(url) == []


def test_migrating_is_refused_while_a_renderapi_dispatches(tmp_path: Path, url: str) -> None:
    with (
        RealFarm(tmp_path, connection=url),
        Database.open(url) as database,
        pytest.raises(RenderOnlineError, match="in use by RenderAPI"),
    ):
        upkeep.migrate(database)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_nothing_is_lost_when_the_database_goes_away_for_seconds(
    tmp_path: Path, scene: Path, number: signal.Signals
) -> None:
    with PrivateMariaDB() as server:
        url = server.create_database()
        with Database.open(url) as database:
            upkeep.migrate(database)
        with RealFarm(tmp_path, connection=url) as farm:
            farm.add_machine("box")
            task_id = farm.client.submit(scene, engine="povray", frames="1-16", arguments=SIZE)["task_id"]
            wait_until(lambda: farm.client.task(task_id)["frames_done"], "frame")
            if number == signal.SIGKILL:
                server.kill()
            else:
                os.kill(server.pid, number)
            threading.Event().wait(3.0)  # away for this long is what is tested
            assert farm.renderapi.process.poll() is None
            if number == signal.SIGKILL:
                server.start()
            else:
                os.kill(server.pid, signal.SIGCONT)
            farm.wait_for_status(task_id, "succeeded")
            assert len(names(farm.client, task_id)) == 16
            assert all(attempt["outcome"] == "succeeded" for attempt in farm.client.attempts(task_id))
        assert findings(url) == []
