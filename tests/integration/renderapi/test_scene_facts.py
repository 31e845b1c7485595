"""What a scene says of itself, from the submission to what people read; and scenes that no machine could render."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from renderonline.engines.definition import parse_definition, shipped
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import NOTHING, Needs
from renderonline.renderapi.scene_surveys import SceneFacts
from renderonline.sandbox.box import probe
from tests.support.blend_files import TINY, Blend, File, Scene
from tests.support.renderapi import Running, renderapi

SCENE = Blend((Scene("Shot", start=10, end=20, step=5, fps=30, imtype=4),), (File("//tex/wood.png"),)).write()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data", reads_scenes=True) as running:
        yield running


def facts_of(machines: list[Any]) -> SceneFacts:
    """What reads scenes, in a box, on a farm without directories of its own."""

    async def nowhere() -> tuple[Path, ...]:
        return ()

    return SceneFacts(lambda: machines, lambda: probe("auto"), nowhere)


async def submit(api: Running, scene: bytes, **request: Any) -> Any:
    reply = await api.submit({"engine": "blender", **request}, ("shot.blend", scene), version=2)
    assert reply.status == 201, reply.body
    return reply.json()


async def test_the_scene_gives_what_the_user_leaves_out(api: Running) -> None:
    task = await submit(api, SCENE)
    values = {name: task["arguments"][name] for name in ("start_frame", "end_frame", "frame_step", "format")}
    assert values == {"start_frame": "10", "end_frame": "20", "frame_step": "5", "format": "JPEG"}
    assert (task["frames"], task["frames_total"]) == ("10-20x5", 3)
    assert (task["facts"]["version"], task["facts"]["scenes"][0]["fps"]) == ("4.5", 30.0)


async def test_what_the_user_says_counts_more(api: Running) -> None:
    task = await submit(api, SCENE, frames="3-4", arguments={"format": "PNG"})
    assert (task["frames"], task["arguments"]["format"]) == ("3-4", "PNG")
    task = await submit(api, SCENE, arguments={"end_frame": "15"})
    assert task["frames"] == "10,15"


async def test_a_scene_that_asks_for_cards_prefers_one_unless_the_user_says_more(api: Running) -> None:
    scene = Blend((Scene(device="GPU"),)).write()
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"gpus": 0, "prefers_gpu": True, "draws": False}),
        ({"arguments": {"device": "cpu"}}, {"gpus": 0, "prefers_gpu": False}),
        ({"arguments": {"device": "gpu"}}, {"gpus": 1, "prefers_gpu": False}),
        ({"arguments": {"engine": "BLENDER_EEVEE"}}, {"prefers_gpu": False, "draws": True}),
        ({"needs": {"gpu_memory_mib": 8000}}, {"gpus": 1, "gpu_memory_mib": 8000, "prefers_gpu": False}),
    ]
    for request, needs in cases:
        task = await submit(api, scene, **request)
        assert task["needs"] | needs == task["needs"], request


async def test_v1_clients_get_the_frames_of_the_scene_too(api: Running) -> None:
    request = {"EngineId": 1, "Arguments": [{"ArgTypeId": "format", "Value": "PNG"}]}
    reply = await api.submit(request, ("shot.blend", SCENE))
    assert reply.status == 200, reply.body
    task = (await api.call("GET", "/tasks/1")).json()
    assert (task["frames"], task["warnings"]) == ("10-20x5", ["tex/wood.png is not there: submit with --with tex"])


async def test_files_that_are_missing_are_told_everywhere(api: Running) -> None:
    task = await submit(api, SCENE)
    assert task["missing_inputs"] == ["tex/wood.png"]
    reasons = (await api.call("GET", f"/tasks/{task['task_id']}/explain")).json()["reasons"]
    assert reasons[0] == "tex/wood.png is not there: submit with --with tex"
    assert task["warnings"] == ["tex/wood.png is not there: submit with --with tex"]
    listed = (await api.call("GET", "/tasks")).json()["items"]
    assert listed[0]["warnings"] == task["warnings"]


@pytest.mark.parametrize("setting", [False, True])
async def test_a_strict_submission_of_an_incomplete_scene_is_refused_and_leaves_nothing(
    tmp_path: Path, *, setting: bool
) -> None:
    async with renderapi(tmp_path / "data", reads_scenes=True, strict_scenes=setting) as api:
        before = api.tree()
        request = {"engine": "blender", **({} if setting else {"strict": True})}
        reply = await api.submit(request, ("shot.blend", SCENE), version=2)
        assert (reply.status, reply.json()["code"]) == (400, "strict")
        assert "tex/wood.png is not there: submit with --with tex" in reply.json()["detail"]
        assert api.tree() == before
        whole = await api.submit(request, ("shot.blend", TINY), version=2)
        assert (whole.status, whole.json()["warnings"]) == (201, [])
        reply = await api.submit({"EngineId": "1", "Arguments": []}, ("shot.blend", SCENE))
        assert reply.status == 200, reply.body
        task = (await api.call("GET", f"/tasks/{reply.json()['TaskId']}")).json()
        assert len(task["warnings"]) == 1


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("scene", [SCENE[:-50], b"no scene at all", b"", TINY[:200]])
async def test_a_broken_scene_is_refused_and_leaves_nothing(api: Running, scene: bytes, version: int) -> None:
    before = api.tree()
    request = {"EngineId": "1", "Arguments": []} if version == 1 else {"engine": "blender"}
    reply = await api.submit(request, ("shot.blend", scene), version=version)
    assert reply.status == 400
    assert b"shot.blend can't be rendered: it " in reply.body
    assert version == 1 or reply.json()["code"] == "broken_scene"
    assert api.tree() == before
    assert (await api.call("GET", "/tasks")).json()["items"] == []


async def test_other_engines_files_are_not_looked_at(api: Running) -> None:
    reply = await api.submit({"engine": "povray"}, ("a.pov", b"BLENDER nonsense"), version=2)
    assert reply.json()["facts"] == {}


async def upload(api: Running, **files: bytes) -> str:
    """An upload whose files are all there."""
    names = {name.replace("_", "."): content for name, content in files.items()}
    listed = [{"name": name, "size": len(content)} for name, content in names.items()]
    made = (await api.call("POST", "/uploads", {"files": listed})).json()
    for index, content in enumerate(names.values()):
        path = f"/uploads/{made['upload_id']}/files/{index}"
        assert (await api.call("PATCH", path, data=content, headers={"Upload-Offset": "0"})).status == 204
    return str(made["upload_id"])


async def test_an_uploads_scene_is_told_before_it_is_submitted(api: Running) -> None:
    scene = Blend((Scene(end=7),), (File("//wood.png"), File("//lib.blend", "LI", "Library"), File("//no.png"))).write()
    library = Blend(files=(File("//cloth.png"),)).write()
    number = await upload(api, shot_blend=scene, lib_blend=library, wood_png=b"wood")
    told = (await api.call("GET", f"/uploads/{number}/facts?name=shot.blend")).json()
    assert (told["scenes"][0]["end"], told["missing_inputs"]) == (7, ["no.png", "cloth.png"])
    assert (await api.call("GET", f"/uploads/{number}/facts?name=other.blend")).status == 404
    assert (await api.call("GET", f"/uploads/{number}/facts?name=wood.png")).json() == {}
    other = await api.new_user("eve@example.org")
    assert (await api.call("GET", f"/uploads/{number}/facts?name=shot.blend", who=other)).status == 404
    request = {"engine": "blender", "upload": number, "scene": "shot.blend"}
    task = (await api.call("POST", "/tasks", request)).json()
    assert (task["frames"], task["missing_inputs"]) == ("1-7", ["no.png", "cloth.png"])


async def test_a_broken_upload_can_be_looked_at_and_is_refused(api: Running) -> None:
    number = await upload(api, shot_blend=SCENE[:100])
    reply = await api.call("GET", f"/uploads/{number}/facts?name=shot.blend")
    assert (reply.status, reply.json()["code"]) == (400, "broken_scene")
    refused = await api.call("POST", "/tasks", {"engine": "blender", "upload": number})
    assert (refused.status, refused.json()["code"]) == (400, "broken_scene")


def machine(*offers: str) -> Any:
    """A machine with these versions of Blender; it is away, and said so before."""
    return SimpleNamespace(offers={}, facts={"engines": [{"name": "Blender", "version": one} for one in offers]})


@pytest.mark.parametrize(
    ("machines", "needs"),
    [
        ([], NOTHING),
        ([machine("")], NOTHING),
        ([machine("4.2"), machine("")], NOTHING),
        ([machine("5.0.1")], Needs(engine_version="5.0")),
        ([machine("4.2"), machine("5.1"), machine()], Needs(engine_version="5.0")),
    ],
)
async def test_only_machines_that_can_open_the_scene_get_it(machines: list[Any], needs: Needs) -> None:
    facts, definition = facts_of(machines), parse_definition(shipped()["blender"])
    assert facts._version_needs(definition, "shot.blend", "5.0") == needs


async def test_a_scene_that_is_newer_than_every_machine_is_refused() -> None:
    facts = facts_of([machine("4.5.3"), machine("5.0.1")])
    definition = parse_definition(shipped()["blender"])
    with pytest.raises(InvalidRequest, match=r"saved by Blender 5\.2; the machines have 4\.5\.3, 5\.0\.1\.") as refused:
        facts._version_needs(definition, "shot.blend", "5.2")
    assert refused.value.reason_code == "scene_too_new"


def with_renderers(*renderers: str) -> Any:
    engines = [{"name": "Blender", "version": "5.0", "renderers": list(renderers)}]
    return SimpleNamespace(offers={}, facts={"engines": engines})


@pytest.mark.parametrize(
    ("machines", "renderer", "needs", "doubt"),
    [
        ([], "OCTANE", Needs(renderer="OCTANE"), False),
        ([with_renderers()], "OCTANE", Needs(renderer="OCTANE"), False),
        ([with_renderers("CYCLES"), machine("5.0")], "OCTANE", Needs(renderer="OCTANE"), False),
        ([with_renderers("CYCLES"), with_renderers("CYCLES", "OCTANE")], "OCTANE", Needs(renderer="OCTANE"), False),
        ([with_renderers("CYCLES"), machine()], "OCTANE", NOTHING, True),
        ([with_renderers("CYCLES")], "CYCLES", Needs(renderer="CYCLES"), False),
        ([with_renderers("CYCLES")], "BLENDER_EEVEE_NEXT", NOTHING, False),
        ([with_renderers("CYCLES")], "no engine\x1b", NOTHING, False),
    ],
)
async def test_a_scene_goes_where_its_render_engine_may_be(
    machines: list[Any], renderer: str, needs: Needs, *, doubt: bool
) -> None:
    facts, definition = facts_of(machines), parse_definition(shipped()["blender"])
    found, why = facts._renderer_needs(definition, renderer)
    assert (found, bool(why)) == (needs, doubt)
    if doubt:
        assert why.startswith(
            "no machine's Blender has the render engine OCTANE, only CYCLES: set up a Blender that has it"
        )


async def test_a_render_engine_that_no_machine_has_is_refused_to_all_but_v1(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("renderonline.renderapi.scene_surveys.offered", lambda _: {"blender": "5.0"})
    monkeypatch.setattr("renderonline.renderapi.scene_surveys.renderers_said", lambda _: {"blender": ("CYCLES",)})
    assert (await api.call("POST", "/machines", {"ip_address": "10.0.0.1", "port": 5001})).status == 201
    scene = Blend((Scene(engine="OCTANE"),)).write()
    refused = await api.submit({"engine": "blender"}, ("shot.blend", scene), version=2)
    assert (refused.status, refused.json()["code"]) == (400, "no_render_engine")
    taken = await api.submit({"EngineId": "1", "Arguments": []}, ("shot.blend", scene))
    assert taken.status == 200, taken.body
    (warning,) = (await api.call("GET", f"/tasks/{taken.json()['TaskId']}")).json()["warnings"]
    assert warning.startswith("no machine's Blender has the render engine OCTANE")


async def stays() -> None:
    """An asker that does not go."""
    await asyncio.Event().wait()


async def test_a_reader_that_dies_is_started_again_and_one_that_hangs_refuses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a.blend"
    path.write_bytes(SCENE)
    facts = facts_of([])
    readers = facts._readers["blender"]

    async def read(state: str) -> dict[str, Any]:
        return await facts.read(1, "blender", "a.blend", lambda: {"a.blend": (str(path), state)}, stays)

    try:
        first = await read("1")
        for child in readers._ready:
            assert child._child is not None
            child._child.kill()
            child._child.wait()
        assert await read("2") == first
        for child in readers._ready:
            child.time_s = 0.0
        (warning,) = (await read("3"))["warnings"]
        assert warning.startswith("not looked at: frames of a.blend and files that it needs (it could not be read ")
    finally:
        await facts.close()


async def test_a_look_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    (tmp_path / "a.blend").write_bytes(SCENE)
    facts, path = facts_of([]), str(tmp_path / "a.blend")

    async def missing(user_id: int, state: str, **others: str) -> Any:
        files = {name: (path, state) for name, state in {"a.blend": state, **others}.items()}
        return (await facts.read(user_id, "blender", "a.blend", lambda: files, stays))["missing_inputs"]

    try:
        assert await missing(1, "1") == ["tex/wood.png"]
        (tmp_path / "a.blend").write_bytes(Blend().write())
        assert await missing(1, "1") == ["tex/wood.png"]  # was not read again
        assert await missing(2, "1") == []  # what others have seen helps nobody
        assert await missing(1, "2") == []
        (tmp_path / "a.blend").write_bytes(SCENE)
        assert await missing(1, "1", **{"tex/wood.png": "1"}) == []
    finally:
        await facts.close()
