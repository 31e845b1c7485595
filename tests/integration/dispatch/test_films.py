"""Chunks of kind film: when they are ready, on which machines, and what becomes of an older film."""

from functools import partial
from typing import Any

import pytest

from renderonline.database.listing_rows import TaskFilter, TaskView, list_tasks
from renderonline.database.queue_rows import AttemptFacts
from renderonline.database.schema import subscriptions
from renderonline.database.submission_rows import NewChunk, assign
from renderonline.farm.errors import Conflict, LimitReached, NotFound
from renderonline.farm.frames import FrameRange
from renderonline.farm.needs import Needs
from renderonline.farm.result_names import FILM_ENGINE, Film
from renderonline.farm.tasks import ChunkKind, TaskStatus
from tests.support.dispatching import Machine, Rig, joined, until

BOTH = ("Fake", FILM_ENGINE)


async def with_film(rig: Rig, count: int, **more: Any) -> int:
    ids = await rig.ids.next_chunk_ids(count + 1)
    renders = [NewChunk(ids[at], FrameRange(at + 1, at + 1)) for at in range(count)]
    film = NewChunk(ids[-1], None, ChunkKind.FILM, stage=1)
    return await rig.submit(f"1-{count}", 1, chunks=[*renders, film], film="mp4@24", **more)


async def film_row(rig: Rig, task_id: int) -> Any:
    return next(one for one in await rig.chunks(task_id) if one.kind == ChunkKind.FILM)


@pytest.mark.both_databases
async def test_a_film_is_made_after_the_frames_by_a_machine_that_can(rig: Rig) -> None:
    renderer = await joined(rig)
    maker = await joined(rig, engines=(FILM_ENGINE,))
    task_id = await with_film(rig, 3)
    assert (await rig.ended(task_id)).is_success == 1
    assert len(renderer.assigned) == 3
    (given,) = maker.assigned.values()
    scene = await rig.scene_of(task_id)
    assert given.engine == FILM_ENGINE
    assert given.argv == (str(scene.parent), "frame_####.png", "1-3", "mp4@24", "a.mp4")
    assert [one.name for one in given.expected] == ["a.mp4"]
    assert (scene.parent / "a.mp4").is_file()
    assert (await rig.task(task_id)).frames_done == 3
    await rig.assert_sound()


async def test_without_a_machine_for_films_the_task_waits_and_says_why(rig: Rig) -> None:
    await joined(rig)
    task_id = await with_film(rig, 2)

    async def only_the_film_waits() -> bool:
        return [one.state for one in await rig.chunks(task_id)] == ["succeeded", "succeeded", "waiting"]

    await until(only_the_film_waits, "frames")
    await until(lambda: rig.farm.memory.waits(task_id), "film in memory")
    assert "no engine film" in " ".join(await rig.explain(task_id, user_id=rig.user_id))
    await joined(rig, engines=(FILM_ENGINE,))
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_needs_of_the_frames_are_none_of_the_film_but_pool_and_box(rig: Rig) -> None:
    task_id = await with_film(rig, 1, needs=Needs("2.0", ("gpu",), "night", 1000, 1, "bwrap"), paused=True)
    await rig.control.resume(task_id, user_id=rig.user_id)
    task = rig.farm.memory.tasks[task_id]
    assert task.chunk_count == 1
    assert task.signature(film=True).needs == Needs(pool="night", sandbox="bwrap")
    assert task.signature(film=True).engine == FILM_ENGINE


async def test_frames_that_failed_for_good_do_not_keep_a_film_back(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await with_film(rig, 2)
    for number in range(2):
        given = (await machine.given(number + 1))[-1]
        await machine.start(given.attempt)
        if number:
            await machine.exit(given.attempt, "failed", failure="scene", reason="no camera")
        else:
            await machine.render(given.attempt)
    film = (await machine.given(3))[-1]
    assert film.engine == FILM_ENGINE
    await machine.start(film.attempt)
    await machine.exit(film.attempt, "failed", failure="film", reason="no frame")
    row = await rig.ended(task_id)
    assert row.is_success == 0
    assert "no camera" in row.reason  # and not what the film says
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_retried_frames_make_a_new_film_of_which_there_is_one(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await with_film(rig, 2)
    first = (await machine.given(1))[-1]
    await machine.start(first.attempt)
    await machine.exit(first.attempt, "failed", failure="scene")
    second = (await machine.given(2))[-1]
    machine.works = True
    await machine.render(second.attempt)
    await rig.ended(task_id)
    films = sum(one.engine == FILM_ENGINE for one in machine.assigned.values())
    await rig.control.retry(task_id, user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1
    assert sum(one.engine == FILM_ENGINE for one in machine.assigned.values()) == films + 1
    assert (await rig.landed(task_id)).count("a.mp4") == 1
    await rig.control.requeue(task_id, frames="2", user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1
    assert sum(one.engine == FILM_ENGINE for one in machine.assigned.values()) == films + 2
    assert (await rig.landed(task_id)).count("a.mp4") == 1
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_a_film_on_demand_comes_at_once_and_again_at_the_end(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await rig.submit("1-2", 1)
    with pytest.raises(Conflict, match="No frame"):
        await rig.control.film(task_id, Film("mp4"), user_id=rig.user_id)
    first = (await machine.given(1))[-1]
    await machine.render(first.attempt)
    await machine.all_acked()
    second = (await machine.given(2))[-1]
    with pytest.raises(NotFound):
        await rig.control.film(task_id, Film("mp4"), user_id=rig.user_id + 1)
    await rig.control.film(task_id, Film("webm"), user_id=rig.user_id)
    assert (await rig.task(task_id)).film == "webm@24"
    other = await joined(rig, engines=BOTH)
    await until(lambda: other.assigned, "film")
    assert next(iter(other.assigned.values())).argv[-1] == "a.webm"

    async def landed() -> bool:
        return "a.webm" in await rig.landed(task_id)

    await until(landed, "film")
    assert not (await rig.task(task_id)).end_us
    await machine.render(second.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    await until(lambda: sum(len(one.assigned) for one in (machine, other)) == 4, "second film")
    assert (await rig.landed(task_id)).count("a.webm") == 1
    await rig.assert_sound()


async def test_a_film_of_a_finished_task_counts_against_the_limit_and_is_repeatable(rig: Rig) -> None:
    await joined(rig, engines=BOTH)
    task_id = await rig.submit("1-2", 1)
    await rig.ended(task_id)
    for film in ("mp4@10", "mp4@12"):
        await rig.control.film(task_id, Film.parse(film), user_id=rig.user_id)
        row = await rig.ended(task_id)
        assert (row.is_success, row.film) == (1, film)
    assert [one.kind for one in await rig.chunks(task_id)].count("film") == 1
    waiting = [await rig.submit("1", 1, paused=True) for _ in range(await _room(rig))]
    with pytest.raises(LimitReached):
        await rig.control.film(task_id, Film("mp4"), user_id=rig.user_id)
    assert waiting
    await rig.assert_sound()


async def _room(rig: Rig) -> int:
    return int((await rig.rows(subscriptions))[0].queue_limit)


@pytest.mark.both_databases
async def test_a_film_survives_a_restart(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    await with_film(rig, 1)
    await machine.render((await machine.given(1))[-1].attempt)
    film = (await machine.given(2))[-1]
    await machine.start(film.attempt)
    await machine.all_acked()
    await rig.restart()
    found = rig.farm.memory.attempts[film.attempt]
    assert found.film
    order = await rig.farm.reports.order_of(film.attempt)
    assert order is not None
    assert order.assign.argv == film.argv


async def test_a_v1_machine_that_takes_it_whole_leaves_the_film_to_others(rig: Rig) -> None:
    row = await with_film(rig, 3, paused=True)
    task = await rig.task(row)
    assert task.chunks_waiting == 4
    await rig.control.resume(row, user_id=rig.user_id)
    chunk = next(one for one in await rig.chunks(row) if one.kind == ChunkKind.RENDER)
    machine_id = await rig.add_machine()
    new = AttemptFacts(2**41, "token", chunk.chunk_id, row, rig.user_id, machine_id, "/nowhere", whole=True)
    done = await rig.database.write(partial(assign, wanted=[new], moment=rig.farm.clocks.now()))
    assert done.leases[2**41].frames == FrameRange(1, 3)
    kinds = [one.kind for one in await rig.chunks(row)]
    assert sorted(kinds) == ["film", "render"]
    await rig.assert_sound()


async def canceled_after_one_frame(rig: Rig, machine: Machine) -> int:
    task_id = await rig.submit("1-3", 1)
    first = (await machine.given(1))[-1]
    await machine.render(first.attempt)
    await machine.all_acked()
    second = (await machine.given(2))[-1]
    await rig.control.cancel(task_id, user_id=rig.user_id)
    await machine.exit(second.attempt, "canceled")
    return task_id


async def test_film_of_a_canceled_task_leaves_it_canceled(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await canceled_after_one_frame(rig, machine)
    assert (await rig.control.film(task_id, Film("mp4"), user_id=rig.user_id)).status == "queued"
    film = (await machine.given(3))[-1]
    await machine.start(film.attempt)
    await machine.all_acked()
    assert [one.status for one in await _with_status(rig, TaskStatus.RUNNING)] == ["running"]
    await machine.render(film.attempt)
    await rig.ended(task_id)
    assert "a.mp4" in await rig.landed(task_id)
    assert [event["status"] for event in rig.events.of("task")][-1] == "canceled"
    assert [one.task_id for one in await _with_status(rig, TaskStatus.CANCELED)] == [task_id]
    await rig.assert_sound()
    await rig.control.retry(task_id, user_id=rig.user_id)
    machine.works = True
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_frame_of_a_canceled_task_that_is_rendered_again_leaves_it_canceled(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await canceled_after_one_frame(rig, machine)
    await rig.control.requeue(task_id, frames="1", user_id=rig.user_id)
    again = (await machine.given(3))[-1]
    await machine.render(again.attempt)
    row = await rig.ended(task_id)
    assert (row.canceled, row.frames_done) == (1, 1)
    assert [event["status"] for event in rig.events.of("task")][-1] == "canceled"
    await rig.assert_sound()


async def _with_status(rig: Rig, status: TaskStatus) -> tuple[TaskView, ...]:
    page = await rig.database.read(lambda c: list_tasks(c, TaskFilter(status=status)))
    return page.items


async def test_film_of_a_paused_task_is_made_at_once_and_nothing_else(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await rig.submit("1-3", 1)
    first = (await machine.given(1))[-1]
    await rig.control.pause(task_id, user_id=rig.user_id)
    await machine.render(first.attempt)
    await machine.all_acked()
    machine.works = True
    await rig.control.film(task_id, Film("webm"), user_id=rig.user_id)

    async def landed() -> bool:
        return "a.webm" in await rig.landed(task_id)

    await until(landed, "film")
    await machine.all_acked()
    assert len(machine.assigned) == 2
    assert [one.status for one in await _with_status(rig, TaskStatus.PAUSED)] == ["paused"]
    await rig.control.resume(task_id, user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_film_of_a_paused_task_says_what_it_waits_for_and_survives_a_restart(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-2", 1)
    first = (await machine.given(1))[-1]
    await rig.control.pause(task_id, user_id=rig.user_id)
    await machine.render(first.attempt)
    await machine.all_acked()
    await rig.control.film(task_id, Film("webm"), user_id=rig.user_id)
    reasons = " ".join(await rig.explain(task_id, user_id=rig.user_id))
    assert "It is paused" in reasons
    assert "no engine film" in reasons
    await rig.restart()
    maker = await joined(rig, engines=(FILM_ENGINE,))
    await until(lambda: maker.assigned, "film")


async def test_film_of_a_task_that_ended_while_paused_is_made_at_once(rig: Rig) -> None:
    machine = await joined(rig, engines=BOTH, works=False)
    task_id = await rig.submit("1", 1)
    only = (await machine.given(1))[-1]
    await rig.control.pause(task_id, user_id=rig.user_id)
    machine.works = True
    await machine.render(only.attempt)
    await rig.ended(task_id)
    await rig.control.film(task_id, Film("mp4"), user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1
    assert "a.mp4" in await rig.landed(task_id)
    await rig.assert_sound()
