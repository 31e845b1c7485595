"""Graphics cards as a need: what a task asks for, and which machines have it."""

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import NO_DEVICE, Card, CardLoad, check_cards, with_device
from renderonline.farm.needs import NOTHING, Ability, Needs
from renderonline.farm.ready import ReadyIndex, ReadyTask, Shape, Signature
from renderonline.farm.scheduling import RESERVE_US, FreeSlots, Policy, Usage, plan, reserve
from renderonline.farm.settling import MOST_NO_DEVICE, Ending, Tried, settle
from renderonline.farm.tasks import ChunkState, Outcome

ENGINES = (("blender", "5.0"),)
GPU_SCENE = {"engine": "CYCLES", "device": "gpu"}


def machine(number: int, *cards: tuple[str, int]) -> Ability:
    largest_first = tuple(sorted(cards, key=lambda card: -card[1]))
    return Ability(number, ENGINES, gpus=len(cards), cards=largest_first)


@pytest.mark.parametrize(
    ("device", "needs", "scene", "wanted"),
    [
        ("auto", NOTHING, GPU_SCENE, Needs(prefers_gpu=True, draws=False)),
        ("auto", NOTHING, {"engine": "CYCLES"}, Needs(draws=False)),
        ("auto", NOTHING, {}, NOTHING),
        ("auto", Needs(gpus=2), GPU_SCENE, Needs(gpus=2, draws=False)),
        ("gpu", NOTHING, {}, Needs(gpus=1)),
        ("gpu", Needs(gpus=2), {}, Needs(gpus=2)),
        ("cpu", NOTHING, GPU_SCENE, Needs(draws=False)),
        ("auto", Needs(draws=False), {"engine": "BLENDER_EEVEE_NEXT"}, NOTHING),
        ("auto", NOTHING, {"engine": "BLENDER_EEVEE", "device": "gpu"}, NOTHING),
        (None, Needs(gpus=1), GPU_SCENE, Needs(gpus=1)),
    ],
)
def test_device_of_a_task_is_a_need(device: str | None, needs: Needs, scene: dict[str, object], wanted: Needs) -> None:
    assert with_device(needs, {} if device is None else {"device": device}, scene) == wanted


def test_processor_and_cards_at_once_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="device is cpu"):
        with_device(Needs(gpus=1), {"device": "cpu"}, {})


def test_memory_of_a_card_asks_for_a_card() -> None:
    assert Needs(gpu_memory_mib=8000).checked() == Needs(gpus=1, gpu_memory_mib=8000)
    assert Needs(gpus=2, gpu_memory_mib=8).joined(Needs(gpu_memory_mib=9)) == Needs(gpus=2, gpu_memory_mib=9)
    with pytest.raises(InvalidRequest, match="gpu_memory_mib is a number"):
        Needs(gpu_memory_mib=-1).checked()


@pytest.mark.parametrize(
    ("ability", "needs", "reason"),
    [
        (machine(1), Needs(gpus=1), "0 graphics cards, not 1"),
        (machine(1, ("cuda", 8)), Needs(gpus=1, gpu_memory_mib=9), "0 graphics cards with 9 MiB of their own, not 1"),
        (machine(1, ("cuda", 8000), ("cuda", 9000)), Needs(gpus=1, gpu_memory_mib=9000), ""),
        (machine(1, ("cuda", 8000), ("hip", 9000)), Needs(gpus=2), "2 graphics cards, but not 2 of one kind"),
        (machine(1, ("cuda", 8000), ("hip", 9000)), Needs(gpus=1), ""),
        (Ability(1, ENGINES, gpus=2), Needs(gpus=2), ""),  # of an older version: its cards have names only
    ],
)  # fmt: skip
def test_machine_lacks_cards(ability: Ability, needs: Needs, reason: str) -> None:
    assert ability.lacks("blender", needs) == reason


def test_chunk_that_prefers_a_card_goes_to_the_processor_only_when_nobody_has_one() -> None:
    plain, able, other_pool = machine(1), machine(2, ("cuda", 8000)), machine(3, ("cuda", 8000))._replace(pool="film")
    wanted = Signature("blender", Shape.PIECE, needs=Needs(prefers_gpu=True))
    assert not Policy.of([plain, able], {}).takes(plain, wanted)
    assert Policy.of([plain, able], {}).takes(able, wanted)
    assert Policy.of([plain, other_pool], {}).takes(plain, wanted)
    failed_there = Signature("blender", Shape.PIECE, frozenset({2}), Needs(prefers_gpu=True))
    assert Policy.of([plain, able], {}).takes(able, failed_there)
    v1 = plain._replace(linked=False)
    whole = Signature("blender", Shape.WHOLE, needs=Needs(prefers_gpu=True))
    assert Policy.of([v1], {}).takes(v1, whole)
    assert not Policy.of([v1], {}).takes(v1, Signature("blender", Shape.WHOLE, needs=Needs(gpus=1)))


def planned(ability: Ability, needs: Needs, chunks: int, slots: int) -> list[Needs]:
    index = ReadyIndex()
    index.add_many(ReadyTask(1, 1, 50, 1), [(number, number) for number in range(chunks)],
                   Signature("blender", Shape.PIECE, needs=needs))  # fmt: skip
    policy = Policy.of([ability], {})
    return [one.needs for one in plan(index, [FreeSlots(ability, slots)], Usage(), policy)]


def test_plan_gives_as_many_cards_as_there_are() -> None:
    two = machine(1, ("cuda", 8000), ("cuda", 24000))
    assert planned(two, Needs(prefers_gpu=True), 4, 4) == [Needs(gpus=1)] * 2
    assert planned(machine(1), Needs(prefers_gpu=True), 4, 4) == [NOTHING] * 4
    assert planned(two, Needs(gpus=1, gpu_memory_mib=9000), 4, 4) == [Needs(gpus=1, gpu_memory_mib=9000)]
    assert planned(two, Needs(gpus=2), 4, 4) == [Needs(gpus=2)]
    busy = FreeSlots(two, 3).less(Needs(gpus=1))
    assert busy.missing(Needs(gpus=1, gpu_memory_mib=9000)) == (0, 0)  # the smaller card was enough
    assert busy.less(Needs(gpus=1, gpu_memory_mib=9000)).missing(Needs(gpus=1)) == (1, 0)


def test_chunks_for_one_card_reserve_no_machine_and_its_other_slots_go_on() -> None:
    one = machine(1, ("cuda", 8000))
    busy = [FreeSlots(one, 4).less(Needs(gpus=1))]
    for needs, kept in ((Needs(gpus=1), {}), (Needs(prefers_gpu=True), {}), (Needs(gpus=1, gpu_memory_mib=8), {1: 8})):
        index = ReadyIndex()
        index.add_many(ReadyTask(1, 1, 50, 1), [(1, 1)], Signature("blender", Shape.PIECE, needs=needs))
        reserved = reserve(index, busy, Usage(), Policy.of([one], {}), RESERVE_US + 10, {})
        assert {key: signature.needs.gpu_memory_mib for key, signature in reserved.items()} == kept


def test_card_that_does_not_work_is_no_try_until_its_machine_never_learns() -> None:
    ending = Ending(Outcome.FAILED, NO_DEVICE, "Error: no device")

    def after(times: int) -> tuple[ChunkState, bool]:
        before = [Tried(7, Outcome.FAILED, NO_DEVICE)] * times
        verdict = settle(ending, tries=2, named=True, missing=["a"], fraction=0.5, machine_id=7, before=before)
        return verdict.chunk, verdict.counts

    assert after(0) == after(MOST_NO_DEVICE - 2) == (ChunkState.WAITING, False)
    assert after(MOST_NO_DEVICE - 1) == (ChunkState.FAILED, True)


def test_what_a_machine_says_of_its_cards_has_bounds() -> None:
    check_cards((Card("a"), CardLoad("b", 0.5, 1)))
    for wrong in (
        (Card("a"), Card("a")),
        (Card("a", "n" * 201),),
        (CardLoad("a", float("nan")),),
        (Card("a", "", "", -2),),
    ):
        with pytest.raises(InvalidRequest):
            check_cards(wrong)
