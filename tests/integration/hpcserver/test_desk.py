"""A real HPCServer at whose desk somebody works."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import linked_node


@pytest.fixture(name="terminal")
def _terminal() -> Iterator[int]:
    """A terminal that is used just now."""
    ours, theirs = os.openpty()
    yield ours
    os.close(ours)
    os.close(theirs)


async def test_machine_says_that_somebody_is_at_the_desk(terminal: int, tmp_path: Path) -> None:
    async with FakeRenderAPI() as api:
        with linked_node(tmp_path, api, idle_minutes=1440.0, heartbeat_s=0.1):
            assert "somebody is at the desk" in (await api.linked())["full"]
            beats = [message for message in api.messages if message["type"] == "heartbeat"]
            assert all("somebody is at the desk" in beat["full"] for beat in beats)
            await api.assign(1, ["-c", "exit 0"], tmp_path / "1")  # sent before RenderAPI knew
            assert (await api.report(1, "exited"))["outcome"] == "succeeded"


async def test_machine_is_free_again_when_others_let_it(tmp_path: Path) -> None:
    async with FakeRenderAPI() as api:
        with linked_node(tmp_path, api, max_load=4000.0, heartbeat_s=0.1):
            assert (await api.linked())["full"] == ""
            await api.until(lambda: any(message["type"] == "heartbeat" for message in api.messages), "heartbeat")
            assert not any(message["full"] for message in api.messages if message["type"] == "heartbeat")
