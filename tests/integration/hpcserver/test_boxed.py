"""Attempts in a box, of each kind that this computer makes: what an engine can't do, and what goes on as before."""

import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.protocol.link import Limits
from renderonline.sandbox.box import probe
from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import Node, linked_node, until

TREE = "trap '' TERM; setsid sleep 600 & echo ready; sleep 600; sleep 600"
CROWD = """
import os, threading, time
for _ in range(11):
    if os.fork() == 0:
        os.setsid()
        break
threading.stack_size(65536)
for _ in range(360):
    threading.Thread(target=time.sleep, args=(600,)).start()
"""
CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3)"


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as opened:
        yield opened


@pytest.fixture(params=["bwrap", "landlock"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(probe(request.param).kind)


@pytest.fixture
async def node(api: FakeRenderAPI, tmp_path: Path, kind: str) -> AsyncIterator[Node]:
    with linked_node(tmp_path, api, sandbox=kind, sandbox_write=[]) as running:
        assert (await api.linked())["sandbox"] == kind
        yield running


async def test_a_hostile_command_reaches_nothing_but_its_task(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    root, other, output = tmp_path / "task", tmp_path / "other", tmp_path / "attempts" / "1"
    for directory in (root, other):
        directory.mkdir()
        (directory / "scene").write_text(directory.name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        tries = {
            "other": f"cat {other}/scene",
            "write": f"echo x >{other}/scene",
            "scene": f"echo x >{root}/scene",
            "unlink": f"rm -f {root}/scene && test ! -e {root}/scene",
            "secret": f"cat {node.home}/machine.json",
            "list": f"ls {tmp_path}/attempts/.. | grep other",
            "process": f"cat /proc/{node.pid}/environ",
            "network": f'{sys.executable} -I -S -c "{CONNECT}" {server.getsockname()[1]}',
        }
        script = "".join(f"if {line} >/dev/null 2>&1; then echo OPEN {name}; fi\n" for name, line in tries.items())
        script += f"echo x >{node.home}/new\n"  # in bubblewrap into its own /tmp
        script += f'cat {root}/scene >result; echo x >"$HOME/x" && echo x >"$TMPDIR/x" && echo done'
        python = (sys.prefix, sys.base_prefix)
        await api.assign(1, ["-c", script], output, root=str(root), inputs=(f"{root}/scene",), sandbox_read=python)
        exited = await api.report(1, "exited")
    await api.until(lambda: "done" in api.log_text(1), "log")
    assert (exited["outcome"], exited["reason"]) == ("succeeded", "")
    assert "OPEN" not in api.log_text(1)
    assert not (node.home / "new").exists()
    assert (await api.report(1, "result"))["name"] == "result"
    assert (output / "result").read_text() == "task"
    assert (root / "scene").read_text() == "task"


async def test_what_the_operator_or_the_definition_opens_is_open(api: FakeRenderAPI, tmp_path: Path, kind: str) -> None:
    for name in ("read", "write", "task", "definition"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    opened = {"sandbox_read": [str(tmp_path / "read")], "sandbox_write": [str(tmp_path / "write")]}
    with linked_node(tmp_path, api, sandbox=kind, **opened), socket.create_server(("127.0.0.1", 0)) as server:
        await api.linked()
        connect = f'{sys.executable} -I -S -c "{CONNECT}" {server.getsockname()[1]}'
        script = (
            f"cd {tmp_path} && cat read/file definition/file && echo new >write/file && {connect}; ! echo x >read/file"
        )
        more = {"sandbox_read": (str(tmp_path / "definition"), sys.prefix, sys.base_prefix), "network": True}
        await api.assign(1, ["-c", f"set -e; {script}"], tmp_path / "1", root=str(tmp_path / "task"), **more)
        exited = await api.report(1, "exited")
    assert exited["outcome"] == "succeeded", (exited, api.log_text(1))
    assert (tmp_path / "write" / "file").read_text() == "new\n"
    assert (tmp_path / "read" / "file").read_text() == "read"


async def test_cancel_and_limits_end_the_whole_tree_in_its_box(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.assign(1, ["-c", TREE], tmp_path / "1")
    await until(lambda: len(node.engines()) == 3, "processes")
    await api.send({"type": "cancel", "attempt": 1, "reason": "enough"})
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["reason"]) == ("canceled", "enough")
    assert not node.engines()
    hungry = ["-I", "-S", "-c", "x = bytearray(300 << 20); import time; time.sleep(600)"]
    await api.assign(2, hungry, tmp_path / "2", engine="python", limits=Limits(memory_mib=100, grace_s=0.5))
    exited = await api.report(2, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "out_of_memory")
    assert exited["peak_memory_mib"] > 100
    assert not node.engines()


CODES = (
    ("exit 7", 7, "error"),
    ("kill -SEGV $$", -11, "crash"),
    ("kill -KILL $$", -9, "crash"),
    ("ulimit -c; ulimit -c unlimited 2>/dev/null; test $(ulimit -Hc) = 0 && exit 5", 5, "error"),
)


async def test_codes_and_signals_are_told_as_without_a_box(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    for number, (script, code, failure) in enumerate(CODES, 1):
        await api.assign(number, ["-c", script], tmp_path / str(number))
        exited = await api.report(number, "exited")
        assert (exited["exit_code"], exited["failure"]) == (code, failure), script


async def test_the_stop_signal_reaches_the_engine_and_not_its_box(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    script = "trap 'echo goodbye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    await api.assign(1, ["-c", script], tmp_path / "1", limits=Limits(grace_s=30.0))
    await api.until(lambda: "ready" in api.log_text(1), "first line")
    await api.send({"type": "cancel", "attempt": 1, "reason": "enough"})
    assert (await api.report(1, "exited"))["exit_code"] == 3
    await api.until(lambda: "goodbye" in api.log_text(1), "last line")


async def test_too_many_processes_end_the_attempt_that_has_them(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.assign(1, ["-I", "-S", "-c", CROWD], tmp_path / "1", engine="python")
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "too_many_processes")
    assert not node.engines()
    await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
    assert (await api.report(2, "exited"))["outcome"] == "succeeded"


async def test_a_box_that_cannot_be_made_is_the_machines_failure(api: FakeRenderAPI, tmp_path: Path) -> None:
    """Its own `bwrap`, that works when HPCServer starts and does not any more later."""
    if shutil.which("bwrap") is None:
        pytest.skip("no bubblewrap here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bwrap").write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/broken ] && {{ echo "bwrap: no namespaces"; exit 1; }}\nexec /usr/bin/bwrap "$@"\n'
    )
    (tmp_path / "bin" / "bwrap").chmod(0o755)
    with linked_node(tmp_path, api, sandbox="bwrap", path=f"{tmp_path}/bin:/usr/bin:/bin"):
        await api.linked()
        (tmp_path / "broken").touch()
        await api.assign(1, ["-c", "exit 0"], tmp_path / "1")
        exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "no_engine")
    assert "bwrap: no namespaces" in exited["reason"]


async def test_a_file_outside_is_told_with_the_directory_to_open(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    texture = tmp_path / "tex" / "wood.png"
    texture.parent.mkdir()
    texture.write_text("wood")
    advice = f"{texture} is outside of the box: add {texture.parent} to SandboxRead."
    await api.assign(1, ["-c", f"cat {texture} >result || exit 4"], tmp_path / "1")
    exited = await api.report(1, "exited")
    assert exited["reason"].endswith(advice)
    await api.assign(2, ["-c", f"cat {texture}; echo fine >result"], tmp_path / "2")
    assert (await api.report(2, "exited"))["outcome"] == "succeeded"
    await api.until(lambda: f"RenderOnline: warning: {advice}" in api.log_text(2), "warning")


async def test_no_engine_writes_a_file_larger_than_the_disk_has_room_for(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    script = "truncate -s 10000G hole; exit $?"
    await api.assign(1, ["-c", f"exec sh -c '{script}'"], tmp_path / "1")
    exited = await api.report(1, "exited")
    assert exited["outcome"] == "failed"
    assert not (tmp_path / "1" / "hole").exists() or (tmp_path / "1" / "hole").stat().st_size == 0


async def test_a_definition_that_preloads_code_starts_nothing(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.assign(1, ["-c", "exit 0"], tmp_path / "1", environment={"LD_PRELOAD": "/tmp/x.so"})
    exited = await api.report(1, "exited")
    assert (exited["failure"], exited["reason"]) == (
        "command",
        "The engine's definition sets LD_PRELOAD, which is refused.",
    )
    assert not api.reports(1, "started")
