"""A real HPCServer and a real RenderAPI: what the stand-in can't show."""

import json
from pathlib import Path

from renderonline.cli.supervise import stop_together
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


def test_machine_survives_a_restart_of_renderapi(tmp_path: Path) -> None:
    with RealFarm(tmp_path) as farm:
        farm.add_machine("m", engines={"sh": "/bin/sh"})
        port = int(farm.url.rpartition(":")[2])
        farm.supervisor.forget(farm.renderapi)
        stop_together([farm.renderapi])
        farm.start_renderapi(port)
        wait_until(lambda: farm.machine("m").get("status") == "idle", "idle machine")
