"""A farm of existing nodes and one engine, to break."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from tests.support.existing_client import ExistingClient
from tests.support.existing_farm import ExistingFarm, wait_until
from tests.support.existing_node import ExistingNode
from tests.support.stub_engine import runs, write_stub_engine

SCENE = b"a scene"


class Rig:
    """A farm with one engine (1, `stub`, `.scene`) and one user; nodes are added by the test.

    The engine writes down each start and waits until `release` is called.
    """

    def __init__(self, farm: ExistingFarm, directory: Path) -> None:
        self.farm = farm
        self.engine = str(write_stub_engine(directory / "bin" / "stub"))
        self.record = directory / "runs"
        self.gate = directory / "gate"
        template = (
            f'stub --record "{self.record}" --until "{self.gate}"'
            ' --exit $RENDERONLINE:code --note $RENDERONLINE:note "$RENDERONLINE:@uploaded_file"'
        )
        farm.add_engine(1, "stub", ".scene", template)
        farm.add_argtype("code", "natural")
        farm.add_argtype("note", "sentence")
        self.client: ExistingClient = farm.add_user(10)
        self._exits = contextlib.ExitStack()

    def close(self) -> None:
        self._exits.close()

    def add_node(self, machine_id: int, engines: Mapping[str, str] | None = None) -> ExistingNode:
        """A stand-in for an existing node, and its row in `machines`."""
        node = self._exits.enter_context(ExistingNode({"Stub": self.engine} if engines is None else engines))
        self.farm.add_machine(machine_id, node.port)
        return node

    def submit(self, *, code: int = 0, note: str = "hello", name: str = "a.scene", user_id: int = 10) -> int:
        """Enqueue a task; its id."""
        client = self.client if user_id == 10 else self.farm.client(user_id)
        answer = client.enqueue(1, {"code": str(code), "note": note}, name, SCENE)
        assert answer.status == 200, answer.body
        return int(answer.json()["TaskId"])

    def running_task(self, note: str = "hello") -> int:
        """Start the farm and enqueue a task; its id, once its engine runs and the farm knows."""
        self.farm.start()
        task_id = self.submit(note=note)
        self.wait_for_run()
        wait_until(lambda: self.farm.row(task_id)["is_running"] == 1, "running task")
        return task_id

    def release(self) -> None:
        """Let the engine end, now and from now on."""
        self.gate.touch()

    @property
    def runs(self) -> list[dict[str, object]]:
        """How often and how the engine was started."""
        return runs(self.record)

    def wait_for_run(self, count: int = 1, timeout_s: float = 30.0) -> None:
        wait_until(lambda: len(self.runs) >= count, f"run {count} of the engine", timeout_s)

    def assert_ended_well(self, task_id: int, *, started: int = 1, timeout_s: float = 60.0) -> None:
        """The task succeeds, and the engine was started exactly so often."""
        row = self.farm.wait_for_end(task_id, timeout_s)
        assert (row["is_running"], row["is_success"]) == (0, 1), row
        assert row["start_time"] is not None
        assert row["start_time"] <= row["end_time"]
        assert len(self.runs) == started
