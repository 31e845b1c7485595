"""A real HPCServer and a real RenderAPI: what the stand-in can't show."""

import json
from pathlib import Path

import pytest

from renderonline.cli.local_farm import stop_together
from renderonline.farm.errors import Conflict
from tests.support.farm import RealFarm, wait_until


def test_removed_machine_ends_and_joins_anew_with_a_new_code(tmp_path: Path) -> None:
    with RealFarm(tmp_path) as farm:
        program = farm.add_machine("m", engines={"sh": "/bin/sh"})
        first = farm.machine("m")["machine_id"]
        identity = tmp_path / "m" / "machine.json"
        assert identity.stat().st_mode & 0o777 == 0o600
        secret = json.loads(identity.read_text())["secret"]
        farm.supervisor.forget(program)
        farm.client.admin.remove_machine(first)
        stop_together([program])
        farm.add_machine("m", engines={"sh": "/bin/sh"})  # the same data directory, a new code
        second = farm.machine("m")["machine_id"]
        assert second != first
        assert json.loads(identity.read_text())["secret"] != secret


def test_machine_restart_ends_the_program_after_its_work_and_loses_nothing(tmp_path: Path) -> None:
    scene = tmp_path / "ball.pov"
    scene.write_text("camera { location -3*z look_at 0 } sphere { clock*x 1 pigment { rgb x } }")
    with RealFarm(tmp_path) as farm:
        program = farm.add_machine("m")
        task_id = farm.client.submit(scene, engine="povray", frames="1-12", arguments={"width": "64"})["task_id"]
        wait_until(lambda: farm.machine("m")["status"] == "busy", "busy machine")
        farm.supervisor.forget(program)
        farm.client.admin.restart_machine(farm.machine("m")["machine_id"])
        assert program.process.wait(60) == 0
        with pytest.raises(Conflict, match="not linked"):
            farm.client.admin.restart_machine(farm.machine("m")["machine_id"])
        words = ["node", "--join", farm.url, "--name", "m", "--data-directory", str(tmp_path / "m")]
        farm.supervisor.start("HPCServer m", words, tmp_path / "m.log")  # as its service would
        farm.wait_for_status(task_id, "succeeded")
        outcomes = {attempt["outcome"] for attempt in farm.client.attempts(task_id)}
        assert outcomes <= {"succeeded", "canceled"}  # handed back at most, never failed


def test_machine_survives_a_restart_of_renderapi(tmp_path: Path) -> None:
    with RealFarm(tmp_path) as farm:
        farm.add_machine("m", engines={"sh": "/bin/sh"})
        port = int(farm.url.rpartition(":")[2])
        farm.supervisor.forget(farm.renderapi)
        stop_together([farm.renderapi])
        farm.start_renderapi(port)
        wait_until(lambda: farm.machine("m").get("status") == "idle", "idle machine")
