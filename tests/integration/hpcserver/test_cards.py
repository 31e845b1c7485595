"""Graphics cards of a real HPCServer: fake tools tell of two, and every engine writes down which ones it sees."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.engines.definition import parse_definition, shipped
from renderonline.protocol.link import to_wire
from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import linked_node, until

UUIDS = ("GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-000000000000")
SMI = f"""#!/bin/sh
echo "{UUIDS[0]}, RTX 3060, 12288, 00000000:01:00.0, 10, 512"
echo "{UUIDS[1]}, RTX 4090, 24576, 00000000:02:00.0, 90, 20000"
"""
SEEN = 'cd "$1"; n=$CUDA_VISIBLE_DEVICES; mkdir $n && sleep 0.02 && rmdir $n && echo sees $RENDERONLINE_CARDS'
"""Only one can make the directory of a card at a time."""


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as server:
        yield server


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A PATH on which nvidia-smi tells of two cards."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(SMI)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    return f"{tmp_path / 'bin'}:/usr/bin:/bin"


async def test_two_attempts_at_once_never_see_the_same_card(api: FakeRenderAPI, tmp_path: Path, tools: str) -> None:
    (tmp_path / "taken").mkdir()
    with linked_node(tmp_path, api, path=tools) as node:
        hello = await api.linked()
        assert [(card["id"], card["memory_mib"]) for card in hello["cards"]] == [(UUIDS[0], 12288), (UUIDS[1], 24576)]
        assert (hello["gpus"], hello["slots"]) == (["RTX 3060", "RTX 4090"], 2)  # a slot for each card
        command = ["-c", SEEN, "sh", str(tmp_path / "taken")]
        for number in range(1, 41):
            await api.assign(number, command, tmp_path / "out" / str(number), cards=1)
        seen = set()
        for number in range(1, 41):
            exited = await api.report(number, "exited")
            assert exited["outcome"] == "succeeded", exited
            seen.add(api.log_text(number).strip())
        assert seen == {f"sees cuda:{uuid}" for uuid in UUIDS}

        await api.assign(50, ["-c", "echo cards:$CUDA_VISIBLE_DEVICES:$RENDERONLINE_CARDS:"], tmp_path / "50", cards=0)
        await api.report(50, "exited")
        assert "cards:-1::" in api.log_text(50)
        await api.assign(51, ["-c", "echo cards:$CUDA_VISIBLE_DEVICES:${RENDERONLINE_CARDS-all}:"], tmp_path / "51")
        await api.report(51, "exited")
        assert "cards::all:" in api.log_text(51)  # an engine without a device sees them all
        await api.assign(52, ["-c", "exit 0"], tmp_path / "52", cards=1, card_memory_mib=30000)
        exited = await api.report(52, "exited")
        assert (exited["outcome"], exited["failure"]) == ("canceled", "handed_back")
        beats = [message for message in api.messages if message["type"] == "heartbeat"]
        assert [(one["load"], one["memory_used_mib"]) for one in beats[-1]["cards"]] == [(0.1, 512), (0.9, 20000)]

        # Killed with both cards given away: the next life gives them to others, and nothing of the first one is left.
        for number in (60, 61):
            await api.assign(number, ["-c", "sleep 600"], tmp_path / str(number), cards=1)
            await api.report(number, "started")
        os.kill(node.pid, 9)
        await until(lambda: not node.engines(), "end of the engines", seconds=5.0)
        assert node.process is not None
        node.process.wait()
        node.start()
        await api.linked(2)
        for number in range(70, 80):
            await api.assign(number, command, tmp_path / "out" / str(number), cards=1)
        for number in range(70, 80):
            assert (await api.report(number, "exited"))["outcome"] == "succeeded"


BLENDER = """#!/bin/sh
case "$*" in
  *--try-cards*) echo compiled >> "$OPTIX_CACHE_PATH/kernels"; [ -e "$(dirname "$0")/works" ] || exit 3; exit 0;;
  *--version*) echo "Blender 4.2.0"; exit 0;;
esac
echo "It has: $(cat "$OPTIX_CACHE_PATH/kernels")."
echo changed > "$OPTIX_CACHE_PATH/kernels"
echo "$SAYS"
case "$SAYS" in Error*) exit 1;; esac
printf frame > "$OUT/frame_0001.png"
echo "Saved: '$OUT/frame_0001.png'"
"""


async def test_card_that_does_not_work_is_given_to_nobody_any_more(
    api: FakeRenderAPI, tmp_path: Path, tools: str
) -> None:
    """What an engine prints is believed only when Blender, run by HPCServer itself, finds no card either."""
    program = tmp_path / "bin" / "blender"
    program.write_text(BLENDER)
    program.chmod(0o755)
    engines = [{"EngineId": "blender", "ExecutablePath": str(program)}]
    definition = parse_definition(shipped()["blender"])
    reading = {**to_wire(definition.reading), "decode": False}

    async def run(number: int, says: str) -> dict[str, object]:
        out = tmp_path / str(number)
        environment = {"SAYS": says, "OUT": str(out)}
        more = {"engine": "blender", "names": ["frame_0001.png"], "reading": reading, "environment": environment}
        await api.assign(number, ["-b"], out, cards=1, **more)
        return await api.report(number, "exited")

    (tmp_path / "bin" / "works").touch()
    with linked_node(tmp_path, api, path=tools, rendering_engines=engines) as node:
        await api.linked()
        await until(lambda: node.log.read_text().count("render kernels are ready") == 2, "kernels of both cards")
        good = await run(1, "Cycles on OPTIX: RTX 3060")
        assert good["outcome"] == "succeeded", good
        assert api.reports(1, "result")[0]["facts"]["device"] == "OPTIX: RTX 3060"
        await run(6, "Cycles on OPTIX: RTX 3060")  # what one attempt does to its copy, no other one sees
        assert "It has: compiled" in api.log_text(6)
        assert "changed" not in (node.home / "kernels" / "optix" / "kernels").read_text()

        lied = await run(2, "Error: no device: says the scene")
        assert (lied["outcome"], lied["failure"]) == ("failed", "error")
        (tmp_path / "bin" / "works").unlink()
        for number, left in ((3, 1), (4, 0)):
            failed = await run(number, "Error: no device: Cycles found no card")
            assert (failed["outcome"], failed["failure"]) == ("failed", "no_device")

            def as_many_usable(left: int = left) -> bool:
                beats = [one for one in api.messages if one["type"] == "heartbeat"]
                return sum(not card["unusable"] for card in beats[-1]["cards"]) == left

            await api.until(as_many_usable, f"heartbeat that leaves {left} cards")
        refused = await run(5, "Cycles on OPTIX: RTX 3060")
        assert (refused["outcome"], refused["failure"]) == ("canceled", "handed_back")
