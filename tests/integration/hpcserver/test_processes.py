"""The spawner with real processes (R8 Process trees): starting, output, stopping, and leaving nothing behind."""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from renderonline.hpcserver import process_table
from renderonline.hpcserver.processes import CantStart, Ended, EngineProcess, Processes
from tests.support.machines import kill, until

HOME = secrets.token_hex(8)
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    opened = Processes(HOME)
    await opened.open()
    yield opened
    await opened.close()
    assert not process_table.marked(process_table.mark(HOME))


class Shell:
    """Starts shell scripts and keeps their output."""

    def __init__(self, processes: Processes, directory: Path) -> None:
        self._processes = processes
        self._directory = directory
        self.lines: list[str] = []

    async def start(self, script: str, name: str = "1", **more: Any) -> EngineProcess:
        return await self._processes.start(
            name,
            ["/bin/sh", "-c", script],
            directory=self._directory,
            environment=ENVIRONMENT,
            on_lines=self.lines.extend,
            **more,
        )

    async def says(self, line: str) -> None:
        await until(lambda: line in self.lines, f"line {line}")


@pytest.fixture
def shell(processes: Processes, tmp_path: Path) -> Shell:
    return Shell(processes, tmp_path)


async def test_exit_code_and_output_arrive_in_order(shell: Shell) -> None:
    process = await shell.start("echo one; echo two >&2; printf 'a\\rb\\r\\nrest'; exit 7")
    ended = await process.wait()
    assert ended.code == 7
    assert shell.lines == ["one", "two", "a", "b", "rest"]


async def test_engine_gets_exactly_the_environment_and_the_mark(shell: Shell) -> None:
    await (await shell.start("env")).wait()
    names = {line.partition("=")[0] for line in shell.lines}
    assert names - {"PWD", "OLDPWD", "_", "SHLVL"} == {"PATH", process_table.MARK, process_table.KEY}
    assert f"{process_table.MARK}={HOME}/1/" in shell.lines


async def test_engine_has_its_own_session_its_directory_no_input_and_no_file_of_ours(
    shell: Shell, tmp_path: Path
) -> None:
    sees = "pwd; cut -d' ' -f5,6 /proc/$$/stat; readlink /proc/$$/fd/0; ls /proc/$$/fd; cat"
    for name in ("1", "2"):
        shell.lines.clear()
        process = await shell.start(f"({sees})", name)
        assert (await process.wait()).code == 0
        assert shell.lines[:3] == [str(tmp_path), f"{process.pid} {process.pid}", "/dev/null"]
        assert shell.lines[3:] == ["0", "1", "2"]


async def test_engine_without_a_directory_is_refused_and_the_next_one_starts(shell: Shell, tmp_path: Path) -> None:
    shell._directory = tmp_path / "gone"
    with pytest.raises(CantStart, match="gone"):
        await shell.start("exit 0")
    shell._directory = tmp_path
    assert (await (await shell.start("exit 0")).wait()).code == 0


async def test_bound_of_files_holds_from_the_first_instruction_on(shell: Shell) -> None:
    for number, file_bytes in enumerate((5 << 20, 9 << 20)):  # 100 starts each: the bound comes with the process
        starts = [await shell.start("ulimit -f", f"{number}.{one}", file_bytes=file_bytes) for one in range(100)]
        await asyncio.gather(*(process.wait() for process in starts))
        assert set(shell.lines[-100:]) == {str(file_bytes // 512)}


async def test_engine_is_not_born_deaf_to_signals(shell: Shell) -> None:
    process = await shell.start("grep Sig[IB] /proc/self/status; exec sleep 60")
    await until(lambda: len(shell.lines) >= 2, "masks")
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in shell.lines}
    assert masks["SigBlk"] == 0
    assert masks["SigIgn"] & ((1 << 14) | (1 << 1) | 1 | (1 << 12)) == 0  # SIGTERM, SIGINT, SIGHUP, SIGPIPE
    process.stop("SIGTERM", 30.0)
    assert (await process.wait()).code == -15


async def test_program_that_is_not_there_is_named(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(CantStart, match="/no/such/program"):
        await processes.start("1", ["/no/such/program"], directory=tmp_path, environment={}, on_lines=lambda _: None)
    with pytest.raises(CantStart, match="null byte"):
        await processes.start("1", ["/bin/sh", "\0"], directory=tmp_path, environment={}, on_lines=lambda _: None)


async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(shell: Shell) -> None:
    process = await shell.start("trap '' TERM; echo ready; sleep 60; sleep 60")
    await shell.says("ready")
    began = time.monotonic()
    process.stop("SIGTERM", 0.3)
    ended = await process.wait()
    assert ended.code == -9
    assert 0.3 <= time.monotonic() - began < 3.0


async def test_stop_again_shortens_the_grace(shell: Shell) -> None:
    process = await shell.start("trap '' TERM; echo ready; sleep 60; sleep 60")
    await shell.says("ready")
    began = time.monotonic()
    process.stop("SIGTERM", 60.0)
    process.stop("SIGKILL", 0.0)
    assert (await process.wait()).code == -9
    assert time.monotonic() - began < 5.0


async def test_stopped_engine_still_ends(shell: Shell) -> None:
    process = await shell.start("echo ready; kill -STOP $$; sleep 60")
    await shell.says("ready")
    await until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", "stopped engine")
    process.stop("SIGTERM", 30.0)
    assert (await process.wait()).code == -15


@pytest.mark.parametrize(
    "script",
    [
        "sleep 600 & echo child $!; exit 0",
        "setsid sleep 600 & echo child $!; exit 0",
        "(setsid sh -c 'echo child $$; exec sleep 600' &) ; sleep 0.2; exit 0",
        "(setsid env -i sh -c 'echo child $$; exec sleep 600' &) ; sleep 0.2; exit 0",
    ],
    ids=["child", "own session", "orphan in its own session", "orphan without the mark"],
)
async def test_nothing_outlives_an_engine_that_ended(shell: Shell, script: str) -> None:
    process = await shell.start(script)
    assert (await process.wait()).code == 0
    children = [int(line.split()[1]) for line in shell.lines if line.startswith("child ")]
    assert len(children) == 1
    assert not process_table.is_running(children[0])


async def test_killing_an_engine_kills_a_grandchild_in_its_own_session(shell: Shell) -> None:
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo grandchild $$; sleep 600' & sleep 600; sleep 600"
    process = await shell.start(script)
    await until(lambda: any(line.startswith("grandchild") for line in shell.lines), "grandchild")
    process.stop("SIGTERM", 0.1)
    assert (await process.wait()).code == -9
    assert not process_table.is_running(int(shell.lines[0].split()[1]))
    assert not process_table.marked(process_table.mark(HOME, "1"))


async def test_end_of_one_engine_leaves_the_other_ones_orphans_alone(shell: Shell) -> None:
    other = await shell.start("(setsid sleep 600 &) ; echo ready; sleep 600", name="2")
    await shell.says("ready")
    mark = process_table.mark(HOME, "2")
    await until(lambda: len(process_table.marked(mark)) == 3, "engine, its sleep and its orphan")
    await (await shell.start("exit 0")).wait()
    assert len(process_table.marked(mark)) == 3
    other.stop("SIGKILL", 0.0)
    await other.wait()
    assert not process_table.marked(mark)


async def test_nobody_outlives_an_engine_by_another_ones_mark(shell: Shell) -> None:
    other = await shell.start("echo ready; sleep 600", name="2")
    await shell.says("ready")
    forged = f"{process_table.MARK}={process_table.mark(HOME, '2')} {process_table.KEY}=guessed"
    engine = await shell.start(f"({forged} setsid sh -c 'echo $$; echo stray; exec sleep 600' &); sleep 600")
    await shell.says("stray")
    stray = int(shell.lines[shell.lines.index("stray") - 1])
    engine.stop("SIGKILL", 0.0)
    await engine.wait()
    assert not process_table.is_running(stray)
    assert other.is_running


async def test_flood_of_output_is_slowed_down_not_dropped(shell: Shell) -> None:
    process = await shell.start("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    assert (await process.wait()).code == 0
    assert len(shell.lines) == 20000
    assert shell.lines[-1] == "line 19999"


async def test_endless_line_is_cut_into_pieces(shell: Shell) -> None:
    process = await shell.start("head -c 100000 /dev/zero | tr '\\0' x")
    await process.wait()
    assert sum(map(len, shell.lines)) == 100000
    assert max(map(len, shell.lines)) <= 8192


async def test_output_of_a_reader_that_fails_does_not_stop_the_others(processes: Processes, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise ValueError("reader")

    process = await processes.start("1", ["/bin/echo", "x"], directory=tmp_path, environment=ENVIRONMENT, on_lines=fail)
    assert (await process.wait()).code == 0


async def test_death_of_the_spawner_kills_its_engines_and_a_new_one_goes_on(processes: Processes, shell: Shell) -> None:
    process = await shell.start("(setsid sleep 600 &) ; echo ready; sleep 600")
    await shell.says("ready")
    first = processes.spawner_pid
    assert first is not None
    kill(first)
    assert await process.wait() == Ended(None)
    assert not process_table.marked(process_table.mark(HOME))
    assert (await (await shell.start("exit 5", name="2")).wait()).code == 5
    assert processes.spawner_pid != first


async def test_closing_the_pipe_kills_every_tree(tmp_path: Path) -> None:
    processes = Processes(HOME)
    await processes.open()
    shell = Shell(processes, tmp_path)
    process = await shell.start("trap '' TERM; setsid sleep 600 & echo ready; sleep 600; sleep 600")
    await shell.says("ready")
    await processes.close()
    assert (await process.wait()).code is None
    assert not process_table.marked(process_table.mark(HOME))


async def test_spawner_first_kills_what_an_earlier_one_left(tmp_path: Path) -> None:
    environment = {**os.environ, process_table.MARK: process_table.mark(HOME, "7")}
    stranger = {**os.environ, process_table.MARK: process_table.mark("f" * 16, "7")}
    left = await asyncio.create_subprocess_exec("/bin/sleep", "600", env=environment)
    theirs = await asyncio.create_subprocess_exec("/bin/sleep", "600", env=stranger)
    try:
        await until(lambda: left.pid in process_table.marked(process_table.mark(HOME)), "stray")
        processes = Processes(HOME)
        await processes.open()
        assert await left.wait() == -9
        assert process_table.is_running(theirs.pid)
        await processes.close()
        assert process_table.is_running(theirs.pid)
    finally:
        theirs.kill()
        await theirs.wait()


async def test_peak_memory_is_reported(processes: Processes, tmp_path: Path) -> None:
    process = await processes.start(
        "1",
        [sys.executable, "-I", "-S", "-c", "x = bytearray(200 << 20)"],
        directory=tmp_path,
        environment=ENVIRONMENT,
        on_lines=lambda _: None,
    )
    assert 180 <= (await process.wait()).peak_memory_mib <= 400
