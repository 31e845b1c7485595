"""The scheduler alone: 100,000 waiting chunks of 1,000 tasks and 50 users, 1,000 machines of four kinds.

One plan gives every machine a chunk. For the matches a second the index is kept: what was given is taken out, the
machines are free again, and the next plan is made, until 20,000 chunks are given. Seconds are those of one processor.
"""

import gc
import time
import tracemalloc

from renderonline.farm.needs import Ability, Needs
from renderonline.farm.ready import ReadyIndex, ReadyTask, Shape, Signature
from renderonline.farm.scheduling import Allowance, FreeSlots, Policy, Usage, plan, reserve

CHUNKS = 100_000
TASKS = 1_000
USERS = 50
MACHINES = 1_000
MATCHES = 20_000
KINDS = (
    Needs(),
    Needs(tags=("gpu",), gpus=1),
    Needs(memory_mib=32_000),
    Needs(engine_version="5.0"),
    Needs(pool="film"),
)


def run() -> None:
    """Print the time of one plan and how many chunks are given a second."""
    tracemalloc.start()
    gc.freeze()  # as RenderAPI does at its start: what is loaded already is not looked through again
    index = _index()
    a_chunk = tracemalloc.get_traced_memory()[0] / CHUNKS
    tracemalloc.stop()
    policy = Policy.of(map(_machine, range(1, MACHINES + 1)), {user: Allowance(1 + user % 3) for user in range(USERS)})
    free = [FreeSlots(ability) for ability in policy.machines.values()]
    begun, given, best = time.process_time(), 0, float("inf")
    while given < MATCHES:
        before = time.process_time()
        reserved = reserve(index, free, Usage(), policy, 0, {})
        assignments = plan(index, free, Usage(), policy, reserved)
        best = min(best, time.process_time() - before)
        for assignment in assignments:
            index.remove(assignment.chunk_id)
        given += len(assignments)
    passed = time.process_time() - begun
    print(
        f"scheduling, {CHUNKS:,} waiting chunks ({a_chunk:.0f} bytes each), {MACHINES:,} machines:"
        f" {given / passed:,.0f} matches/s, one plan for all machines {best * 1000:.1f} ms"
    )


def _index() -> ReadyIndex:
    index, each = ReadyIndex(), CHUNKS // TASKS
    for number in range(TASKS):
        task = ReadyTask(number, number % USERS, 10 * (number % 3), number, running_limit=number % 2 * 50)
        places = [(number * each + place, place) for place in range(each)]
        index.add_many(task, places, Signature("blender", Shape.PIECE, needs=KINDS[number % len(KINDS)]))
    return index


def _machine(number: int) -> Ability:
    engines = (("blender", "5.0.1" if number % 2 else "4.2.3"),)
    tags = frozenset({"gpu"} if number % 4 == 0 else ())
    return Ability(number, engines, True, tags, "film" if number % 5 == 0 else "", 64_000, len(tags))
