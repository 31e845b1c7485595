"""What users do meanwhile: many short tasks, some of them canceled, paused, deleted, over a bad network."""

import contextlib
import json
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from renderonline.farm.errors import Conflict, NotFound, RenderOnlineError
from renderonline.rnoclient.sdk.client import Client
from tests.faults.farm import FaultFarm, wait_until

IN_FLIGHT: Final = 6
FRAME_S: Final = 0.04
ODD: Final = 0.08
LONG: Final = 0.2
LONG_FRAMES: Final = 30
"""Of a task whose chunks machines hold ahead (R9.1 Work ahead)."""
SUBMITTED_S: Final = 60.0
ENDED: Final = frozenset({"succeeded", "failed", "canceled"})


class Workload:
    """Submits in a thread until it is stopped. `frames`: file name -> number of frames of all that was submitted;
    `free`: those that somebody canceled or deleted, or tried to."""

    def __init__(self, farm: FaultFarm, seed: str) -> None:
        self.frames: dict[str, int] = {}
        self.free: set[str] = set()
        self.errors: list[str] = []
        self._farm = farm
        self._chance = random.Random(seed)
        self._going, self._closing, self._resting = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def go(self) -> None:
        """Submit, now and from now on."""
        self._resting.clear()
        self._going.set()

    def rest(self) -> None:
        """Submit nothing more; returns when nothing is under way."""
        self._going.clear()
        assert self._resting.wait(SUBMITTED_S), "The client hangs in a call."

    def close(self) -> None:
        self._closing.set()
        self._going.set()
        self._thread.join(SUBMITTED_S)

    def _work(self) -> None:
        with contextlib.closing(self._farm.client(self._farm.client_proxy.url)) as client:
            while not self._closing.is_set():
                if not self._going.is_set():
                    self._resting.set()
                    self._going.wait()
                    continue
                try:
                    self._turn(client)
                except RenderOnlineError as error:  # tried for its whole patience: told, and expected to be sound
                    self.errors.append(error.reason_code)
                self._closing.wait(0.05)

    def _turn(self, client: Client) -> None:
        unfinished = [task for task in client.tasks(limit=50) if task["status"] not in ENDED]
        if len(unfinished) < IN_FLIGHT:
            self._submit(client)
        elif unfinished and self._chance.random() < 0.1:
            task = self._chance.choice(unfinished)
            self._act(client, int(task["task_id"]), str(task["file_name"]), paused=bool(task["paused"]))

    def _submit(self, client: Client) -> None:
        key, is_long = f"task-{len(self.frames)}", self._chance.random() < LONG
        count = LONG_FRAMES if is_long else self._chance.randint(2, 12)
        scene = self._farm.directory / f"{key}.scene"
        scene.write_text(json.dumps({"key": f"{key} of {self._farm.directory}", "frame_s": FRAME_S, "odd": ODD}))
        self.frames[scene.name] = count
        try:
            limit, size = (0, 1) if is_long else (self._chance.choice((0, 0, 1, 2)), self._chance.randint(1, 3))
            client.submit(scene, engine="fake", frames=f"1-{count}", chunk_size=size, running_limit=limit)
        except RenderOnlineError:
            self.free.add(scene.name)  # perhaps it is there
            raise

    def _act(self, client: Client, task_id: int, name: str, *, paused: bool) -> None:
        anew = partial(client.requeue, frames="1-2")
        actions: tuple[Callable[[int], object], ...] = (client.cancel, client.delete, client.pause, anew)
        action = client.resume if paused else self._chance.choice(actions)
        if action in (client.cancel, client.delete):
            self.free.add(name)
        with contextlib.suppress(NotFound, Conflict):
            action(task_id)

    def settle(self, timeout_s: float) -> None:
        """Nothing is submitted any more: wait until every task has ended, and try again what the faults used up."""
        with contextlib.closing(self._farm.client()) as client:
            wait_until(lambda: self._all_ended(client), "end of every task", timeout_s)

    def _all_ended(self, client: Client) -> bool:
        ended = True
        for task in list(client.tasks()):
            task_id, name, status = int(task["task_id"]), str(task["file_name"]), task["status"]
            wanted = name not in self.free
            with contextlib.suppress(RenderOnlineError):
                if task["paused"] and status not in ENDED:
                    client.resume(task_id)
                elif wanted and status in ("failed", "canceled"):
                    client.retry(task_id)
            ended = ended and (status == "succeeded" or (status in ENDED and not wanted))
        return ended
