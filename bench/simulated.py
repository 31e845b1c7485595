"""Simulated machines: many links in one process, for what a farm costs by the number of its machines.

A simulated machine greets, beats like HPCServer, and reports start and end of each assignment at once; it starts no
process. When its link breaks it dials again as HPCServer does.

    python -m bench.simulated URL FIRST_ID COUNT SLOTS      prints a line of JSON for each second: links, ended chunks

The secret of machine N is `secret_of(N)`; `enroll` writes the rows, because joining one after another takes minutes.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import uvloop
import websockets

from renderonline.hpcserver.farm_link import seconds_to_next_dial
from renderonline.protocol import link as wire
from renderonline.serving.admission import raise_descriptors

FIRST_ID = 5000
MOST_DIALLING = 64
"""Machines of one studio are started one after another, not in the same instant."""


def secret_of(machine: int) -> str:
    """The secret of a simulated machine."""
    return f"simulated-{machine}"


def enroll(database: Path, count: int) -> None:
    """Write the rows of `count` machines, numbered from `FIRST_ID`, into RenderAPI's SQLite file."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        columns = "machine_id, ip_address, port, name, secret_hash, wish, wish_reason, instance, last_seq, created_us"
        rest = "seen_us, tags, pool, hours, benched_us, bench_reason, slots_allowed"
        connection.executemany(
            f"INSERT INTO machines ({columns}, {rest}) VALUES"
            " (?, '', 0, ?, ?, 'active', '', '', 0, 1, 0, '', '', '', 0, '', 0)",
            [
                (machine, f"sim{machine}", hashlib.sha256(secret_of(machine).encode()).hexdigest())
                for machine in range(FIRST_ID, FIRST_ID + count)
            ],
        )
        connection.commit()


class Machines:
    """All simulated machines of one process."""

    def __init__(self, url: str, slots: int) -> None:
        self.linked = self.ended = 0
        self._url = url.replace("http", "ws", 1) + wire.LINK_PATH
        self._tls = _believes_all() if url.startswith("https") else None
        self._slots = slots
        self._turn = asyncio.Semaphore(MOST_DIALLING)

    async def keep_linked(self, machine: int) -> None:
        """Dial, serve, dial again, without end."""
        instance, failures, seq = f"{random.getrandbits(64):016x}", 0, 0
        while True:
            is_refused = False
            try:
                async with self._turn:
                    link = await websockets.connect(
                        self._url, ssl=self._tls, compression=None, max_size=16 << 20, open_timeout=30
                    )
                async with link:
                    await link.send(wire.encode(self._hello(machine, instance)))
                    welcome = wire.decode(await link.recv(), wire.Welcome | wire.Refused)
                    if isinstance(welcome, wire.Refused):
                        raise ConnectionError(welcome.message)
                    failures = 0
                    seq = await self._serve(link, seq)
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                is_refused = isinstance(error, ConnectionRefusedError)
            await asyncio.sleep(seconds_to_next_dial(failures, is_refused=is_refused))
            failures += 1

    def _hello(self, machine: int, instance: str) -> wire.Hello:
        return wire.Hello(
            protocol=wire.PROTOCOL,
            machine_id=machine,
            secret=secret_of(machine),
            instance=instance,
            boot="simulated",
            version="0",
            name=f"sim{machine}",
            slots=self._slots,
            engines=(wire.EngineOffer("nothing"),),
            cpu_count=2,
            memory_mib=4000,
            platform="simulated",
        )

    async def _serve(self, link: websockets.ClientConnection, seq: int) -> int:
        self.linked += 1
        beats = asyncio.create_task(self._beat(link))
        try:
            async for frame in link:
                content = orjson.loads(frame)
                reports = []
                for message in content if isinstance(content, list) else [content]:
                    if message["type"] == "assign":
                        reports += _reports(message, seq)
                        seq += 2
                for text in wire.frames(map(wire.encode, reports), wire.PROTOCOL):
                    await link.send(text)
                self.ended += len(reports) // 2
        finally:
            beats.cancel()
            self.linked -= 1
        return seq

    async def _beat(self, link: websockets.ClientConnection) -> None:
        await asyncio.sleep(random.uniform(0, wire.HEARTBEAT_S))
        while True:
            await link.send(wire.encode(wire.Heartbeat(load=0.5, memory_free_mib=1000, disk_free_mib=1000)))
            await asyncio.sleep(wire.HEARTBEAT_S)


def _believes_all() -> ssl.SSLContext:
    """For a certificate that was made just now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reports(assign: dict[str, object], seq: int) -> list[object]:
    now_us = time.time_ns() // 1000
    attempt = {"attempt": assign["attempt"], "token": assign["token"], "at_us": now_us}
    return [
        wire.from_wire(wire.Started, {"seq": seq + 1, **attempt, "pid": 1}),
        wire.from_wire(wire.Exited, {"seq": seq + 2, **attempt, "outcome": "succeeded", "exit_code": 0}),
    ]


@contextlib.contextmanager
def simulated(url: str, count: int, slots: int) -> Iterator["Simulation"]:
    """`count` machines with rows, in a process of their own."""
    words = [sys.executable, "-m", "bench.simulated", url, str(FIRST_ID), str(count), str(slots)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield Simulation(process)
    finally:
        process.terminate()
        process.wait()


class Simulation:
    """The process of simulated machines, and what it says of them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait_for(self, linked: int, since: float = 0.0) -> float:
        """Wait until `linked` machines are linked after the time `since`; returns when that was."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if said["linked"] >= linked and said["at"] >= since:
                return float(said["at"])
        raise RuntimeError("The simulated machines have ended")


async def main(url: str, first: int, count: int, slots: int) -> None:
    """Keep machines linked, and say four times a second how many are."""
    raise_descriptors()
    machines = Machines(url, slots)
    tasks = [asyncio.create_task(machines.keep_linked(machine)) for machine in range(first, first + count)]
    while not any(task.done() for task in tasks):
        print(json.dumps({"at": time.time(), "linked": machines.linked, "ended": machines.ended}), flush=True)
        await asyncio.sleep(0.25)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:])))
