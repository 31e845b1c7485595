"""A join code that was typed does not stay where every user of the computer can read it (R12 Tokens)."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import until
from tests.support.scripted_server import Answer, Asked, ScriptedServer

CODE = "ABCD-EFGH-JKMN"


def farm(asked: Asked) -> Answer:
    """Lets everybody join, and answers nothing else."""
    if asked.path.endswith("/machines/enroll"):
        return Answer(201, json.dumps({"machine_id": 1000, "secret": "secret"}).encode())
    return Answer(404)


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@contextlib.contextmanager
def node(home: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "renderonline.cli.main", "node", "--data-directory", str(home), *words]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("given", [["--code", CODE], [f"--code={CODE}"]])
async def test_code_is_gone_from_the_command_line_when_the_machine_has_joined(tmp_path: Path, given: list[str]) -> None:
    with (
        ScriptedServer(farm).running() as server,
        node(tmp_path / "home", "--join", server.url, *given, "--name", "far") as process,
    ):
        await until(lambda: any(one.path.endswith("/link") for one in server.asked), "first dial")
        assert process.poll() is None
        words = command_line(process.pid)
    (joined,) = [json.loads(one.body) for one in server.asked if one.body]
    assert joined == {"code": CODE, "name": "far"}
    assert not [word for word in words if CODE in word or "--code" in word]
    assert {"node", "--join", server.url, "--name", "far"} <= set(words)
