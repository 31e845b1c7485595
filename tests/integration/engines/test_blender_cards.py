"""The real Blender on a computer without a graphics card: it says so, and obeys what was asked for."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from renderonline.engines.definition import parse_definition, shipped
from renderonline.protocol.link import to_wire
from tests.support.blender import blender_directory, blender_prefix, write_small_scene
from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import linked_node

pytestmark = [pytest.mark.blender, pytest.mark.timeout(300)]


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as server:
        yield server


async def test_real_blender_without_a_card_never_renders_on_the_processor_what_needs_one(
    api: FakeRenderAPI, tmp_path: Path
) -> None:
    """A machine whose settings name a card that is not there: Blender finds none, HPCServer sees the same by itself,
    and the card is given to nobody any more. Without a card the same scene renders on the processor, and says why."""
    blender_prefix()
    (tmp_path / "data" / "engines").mkdir(parents=True)
    (tmp_path / "data" / "engines" / "blender").symlink_to(blender_directory())
    write_small_scene(tmp_path / "shot.blend", 'scene.cycles.device = "GPU"')
    reading = to_wire(parse_definition(shipped()["blender"]).reading)

    async def render(number: int, **more: Any) -> dict[str, Any]:
        out = tmp_path / str(number)
        argv = ["-b", str(tmp_path / "shot.blend"), "-o", f"{out}/frame_####", "-F", "PNG", "-x", "1", "-f", "1"]
        about = {"engine": "blender", "names": ["frame_0001.png"], "reading": reading, "root": str(tmp_path), **more}
        await api.assign(number, argv, out, **about)
        return await api.report(number, "exited")

    with linked_node(tmp_path, api, cards=["cuda:GPU-none:8000:no such card"], rendering_engines=[]):
        await api.linked()
        needing = await render(1, cards=1, environment={"RENDERONLINE_BLENDER_DEVICE": "auto"})
        assert (needing["outcome"], needing["failure"]) == ("failed", "no_device"), needing
        assert api.reports(1, "result") == []
        plain = await render(2, cards=0, environment={"RENDERONLINE_BLENDER_DEVICE": "auto"})
        assert plain["outcome"] == "succeeded", plain
        assert any("asks for a graphics card" in one for one in plain["warnings"])
        assert api.reports(2, "result")[0]["facts"]["device"] == "CPU: no card found"
        again = await render(3, cards=1)
        assert (again["outcome"], again["failure"]) == ("canceled", "handed_back")
