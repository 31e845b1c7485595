"""Reports of several machines in one operation."""

from sqlalchemy import select, update

from renderonline.database.administration_rows import add_v1
from renderonline.database.door import Database
from renderonline.database.queue_rows import AttemptFacts
from renderonline.database.report_rows import Applied, EndedStep, Mark, Reported, StartedStep, apply_steps
from renderonline.database.schema import machines
from renderonline.database.submission_rows import NewChunk, assign
from renderonline.database.task_rows import Moment, look
from renderonline.farm.frames import FrameRange
from renderonline.farm.settling import Ending, RetryPolicy
from renderonline.farm.tasks import Outcome
from tests.support.farm_rows import add_engine, add_user, submit

CHUNKS = 6
MOMENT = Moment.at(1e9)
END = Ending(Outcome.SUCCEEDED, exit_code=0)


def steps(*numbers: int, token: str = "token") -> list[StartedStep | EndedStep]:
    return [
        step
        for number in numbers
        for step in (
            StartedStep(number, token, at_us=1),
            EndedStep(number, token, END, wanted=(), at_us=2),
        )
    ]


async def test_reports_of_several_machines_are_applied_together(database: Database) -> None:
    await database.write(add_engine)
    user_id = (await database.write(add_user)).user_id
    new = [NewChunk(number, FrameRange(number, number)) for number in range(1, CHUNKS + 1)]
    task_id = await database.write(lambda c: submit(c, user_id, chunks=new, frames_total=CHUNKS).task_id)
    ids = [(await database.write(lambda c, ip=f"10.0.0.{n}": add_v1(c, ip, 1, now_us=1))).machine_id for n in (1, 2, 3)]
    await database.write(lambda c: c.execute(update(machines).values(instance="instance")) and None)
    attempts = [
        AttemptFacts(number, "token", number, task_id, user_id, ids[number % 3], "/nowhere", frames=FrameRange(1, 1))
        for number in range(1, CHUNKS + 1)
    ]
    assigned = await database.write(lambda c: assign(c, attempts, MOMENT))
    assert len(assigned.leases) == CHUNKS
    reported = [
        Reported(steps(3, 6), ids[0], Mark("instance", 4)),
        Reported(steps(1, 3), ids[1], Mark("instance", 2)),  # 3 is not its own
        Reported(steps(2, token="wrong"), ids[2], Mark("another", 9)),
        Reported(steps(4), ids[1], Mark("instance", 5)),
    ]

    def apply(connection: object) -> Applied:
        return apply_steps(connection, reported, MOMENT, RetryPolicy())  # type: ignore[arg-type]

    applied = await database.write(apply)
    assert sorted(ended.attempt.attempt_id for ended in applied.ended) == [1, 3, 4, 6]
    assert (sorted(applied.started), applied.dropped) == ([1, 3, 4, 6], 4)
    (state,) = applied.tasks
    assert (state.counters.succeeded, state.counters.assigned) == (4, 2)
    assert await database.read(lambda c: look(c, task_id)) == state
    query = select(machines.c.last_seq).order_by(machines.c.machine_id)
    assert await database.read(lambda c: list(c.scalars(query))) == [4, 5, 0]
