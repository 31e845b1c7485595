"""Orders cost the same in every task, and directories that nobody needs any more are removed together."""

import asyncio
import time
from pathlib import Path
from typing import cast

from renderonline.database.door import Database
from renderonline.database.queue_rows import AttemptFacts, TaskFacts
from renderonline.farm.frames import FrameRange
from renderonline.renderapi.orders import AttemptFiles, Folder, Orders
from renderonline.storage.landing import attempt_directory

ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".txt"]
template = "nothing $RENDERONLINE:@task_first_frame $RENDERONLINE:@task_last_frame $RENDERONLINE:first"
split = "frames"

[[arguments]]
id = "first"
type = "natural"
default = "1"

[[arguments]]
id = "last"
type = "natural"
default = "1"

[frames]
first = "first"
last = "last"
"""
NO_DATABASE = cast("Database", None)


def facts(task_id: int, frames: str) -> TaskFacts:
    return TaskFacts(
        task_id=task_id, engine="nothing", definition=ENGINE, scene="/farm/1/2/a.txt", arguments="", frames=frames,
        file_name="a.txt", film="", results_in="", strict=0, values={},
        template=("nothing", "$RENDERONLINE:@task_first_frame", "$RENDERONLINE:@task_last_frame",
                  "$RENDERONLINE:first"),
    )  # fmt: skip


def attempt(task_id: int, frame: int) -> AttemptFacts:
    directory = attempt_directory("/farm", frame)
    return AttemptFacts(frame, "token", frame, task_id, 1, 1000, directory, frames=FrameRange(frame, frame))


def test_order_names_the_first_and_last_frame_of_its_task() -> None:
    orders = Orders(NO_DATABASE)
    orders.learn(facts(1, "7,3,20-30"))
    assert orders.write(attempt(1, 7)).assign.argv == ("3", "30", "7")


def test_order_of_a_large_task_costs_as_much_as_that_of_a_small_one() -> None:
    orders = Orders(NO_DATABASE)
    orders.learn(facts(1, "1-10"))
    orders.learn(facts(2, "1-100000"))

    def cost(task_id: int) -> float:
        begun = time.perf_counter()
        for frame in range(1, 11):
            orders.write(attempt(task_id, frame))
        return time.perf_counter() - begun

    small, large = (min(cost(task_id) for _ in range(20)) for task_id in (1, 2))
    assert large < 5 * small


def test_directories_of_many_attempts_are_removed_in_one_turn(tmp_path: Path) -> None:
    for number in range(1, 16):  # the others were never made
        directory = Path(attempt_directory(str(tmp_path), number))
        directory.mkdir(parents=True)
        if number < 10:
            (directory / "left").write_text("x")

    async def removed() -> None:
        removing = asyncio.get_running_loop().create_future()
        files = AttemptFiles(NO_DATABASE, removing.set_result)  # fails when it is called twice
        for number in range(1, 21):
            files.know(number, Folder(attempt_directory(str(tmp_path), number), 1000, "token"))
            files.remove(1000, (number,))
        await (await removing)

    asyncio.run(removed())
    assert not any((tmp_path / ".attempts").iterdir())
