"""Graphics cards as the plan sees them: who gets one, who waits, who renders on the processor."""

from typing import Any

import pytest

from renderonline.database import administration_rows
from renderonline.farm.machines import Card, CardLoad
from renderonline.farm.needs import Needs
from renderonline.protocol.link import Heartbeat
from tests.support.dispatching import DEFINITION, Machine, Rig, joined, until

WITH_DEVICE = DEFINITION.replace("[frames]", '[[arguments]]\nid = "device"\ntype = "word"\ndefault = "auto"\n[frames]')
SMALL, LARGE = Card("GPU-small", "RTX 3060", "cuda", 12288), Card("GPU-large", "RTX 4090", "cuda", 24576)
CARDS = {"cards": (SMALL, LARGE), "gpus": ("RTX 3060", "RTX 4090")}
PREFERS = Needs(prefers_gpu=True)


async def told(rig: Rig, task_id: int) -> str:
    return " ".join(await rig.explain(task_id, user_id=None))


async def says(machine: Machine, *unusable: str) -> None:
    """A heartbeat that says how the cards are doing."""
    loads = [CardLoad(card.id, 0.5, 1024, "Error: no device" if card.id in unusable else "") for card in (SMALL, LARGE)]
    await machine.send(Heartbeat(cards=tuple(loads)))


async def with_device(rig: Rig) -> None:
    await rig.database.write(lambda c: administration_rows.change_engine(c, rig.engine_id, {"definition": WITH_DEVICE}))


async def test_machine_gives_as_many_chunks_a_card_as_it_has_cards(rig: Rig) -> None:
    await with_device(rig)
    machine = await joined(rig, works=False, slots=4, hello=CARDS, mute=True)
    await rig.submit("1-4", needs=Needs(gpus=1))
    await machine.given(2)
    plain = await rig.submit("1-4")
    await machine.given(4)  # the other slots take work for the processor
    assert sorted(one.cards for one in machine.assigned.values()) == [0, 0, 1, 1]
    first = next(key for key, one in machine.assigned.items() if one.cards)
    await machine.render(first)
    await machine.given(5)
    assert sum(one.cards for one in machine.assigned.values()) == 3
    assert "being rendered" in await told(rig, plain)
    await rig.restart()
    await rig.assert_sound()


async def test_scene_that_prefers_a_card_gets_one_where_there_is_one(rig: Rig) -> None:
    await with_device(rig)
    plain = await joined(rig)
    able = await joined(rig, works=False, hello=CARDS, mute=True)
    await rig.ended(await rig.submit("1"))  # what needs no card leaves the machine with cards free
    assert (len(plain.assigned), len(able.assigned)) == (1, 0)
    plain.assigned.clear()
    first = await rig.submit("1", needs=PREFERS)
    await able.given(1)
    waiting = await rig.submit("1", needs=PREFERS)
    assert "it has no graphics card, and another machine has one" in await told(rig, waiting)
    assert not plain.assigned
    await says(able, "GPU-small")  # one is left: it goes on
    assert "another machine has one" in await told(rig, waiting)
    await says(able, "GPU-small", "GPU-large")
    assert (await rig.ended(waiting)).is_success == 1
    assert [one.cards for one in plain.assigned.values()] == [0]
    assert [one.cards for one in able.assigned.values()] == [1]
    await able.render(next(iter(able.assigned)))
    assert (await rig.ended(first)).is_success == 1


@pytest.mark.both_databases
async def test_task_that_must_have_a_card_waits_and_is_told_why(rig: Rig) -> None:
    await with_device(rig)
    able = await joined(rig, hello=CARDS, mute=True)
    await says(able, "GPU-small", "GPU-large")
    await until(lambda: rig.farm.machines.policy.machines[able.machine_id].gpus == 0, "heartbeat")
    must = await rig.submit("1", needs=Needs(gpus=1).checked())
    assert "0 graphics cards, not 1" in await told(rig, must)
    large = await rig.submit("1", needs=Needs(gpu_memory_mib=16000).checked())
    await says(able, "GPU-large")
    assert (await rig.ended(must)).is_success == 1
    assert "0 graphics cards with 16000 MiB of their own, not 1" in await told(rig, large)
    await says(able)
    assert (await rig.ended(large)).is_success == 1
    assert [(one.cards, one.card_memory_mib) for one in able.assigned.values()] == [(1, 0), (1, 16000)]


async def test_card_that_does_not_work_costs_the_chunk_no_try(rig: Rig) -> None:
    await with_device(rig)
    broken = await joined(rig, works=False, hello=CARDS, mute=True)
    task_id = await rig.submit("1", needs=Needs(gpus=1))
    for times in range(1, 6):  # more than three tries
        await broken.given(times)
        if times == 5:
            await says(broken, "GPU-small", "GPU-large")
        await broken.exit(list(broken.assigned)[-1], "failed", failure="no_device", reason="Error: no device")

    async def waits() -> bool:
        (chunk,) = await rig.chunks(task_id)
        assert chunk.tries == 0
        return bool(chunk.state == "waiting")

    await until(waits, "chunk that waits")
    other = await joined(rig, hello=CARDS, mute=True)
    assert (await rig.ended(task_id)).is_success == 1
    assert len(other.assigned) == 1
    await rig.assert_sound()


async def test_engine_without_a_device_sees_all_cards_unless_some_are_asked_for(rig: Rig) -> None:
    machine = await joined(rig, slots=2, hello={"gpus": ("card",)})  # of an older version
    await rig.ended(await rig.submit("1"))
    await rig.ended(await rig.submit("1", needs=Needs(gpus=1)))
    assert [one.cards for one in machine.assigned.values()] == [-1, 1]


async def test_cards_are_shown_with_load_and_memory(rig: Rig) -> None:
    machine = await joined(rig, hello=CARDS, mute=True)
    await says(machine, "GPU-small")

    def seen() -> list[dict[str, Any]]:
        (view,) = [one.view() for one in rig.farm.machines]
        cards: list[dict[str, Any]] = view["cards"]
        return cards if not cards[0]["usable"] else []

    small, large = await until(seen, "heartbeat")
    assert small == {
        "id": "GPU-small", "name": "RTX 3060", "kind": "cuda", "memory_mib": 12288, "usable": False,
        "unusable": "Error: no device", "load": 0.5, "memory_used_mib": 1024,
    }  # fmt: skip
    assert (large["usable"], large["unusable"]) == (True, "")
