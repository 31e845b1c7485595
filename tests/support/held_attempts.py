"""An attempt that a test holds over a link of its own, with a real RenderAPI."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from renderonline.protocol.link import Ack, Assign, EngineOffer, Exited, FromRenderAPI, Hello, Welcome, decode, encode
from tests.support.renderapi import Reply, Running


@dataclass
class Held:
    """An attempt that a machine has, and its link."""

    api: Running
    machine_id: int
    link: ClientConnection
    assign: Assign
    seq: int = 0
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": f"Attempt {self.assign.token}"}

    @property
    def directory(self) -> Path:
        return Path(self.assign.directory)

    async def call(self, method: str, path: str, *, headers: dict[str, str] | None = None, **more: Any) -> Reply:
        """With the attempt's token and nothing else."""
        given = {**self.headers, **(headers or {})}
        return await self.api.call(method, f"/attempts/{self.assign.attempt}/{path}", who={}, headers=given, **more)

    async def send(self, name: str, data: bytes, **headers: str) -> Reply:
        """Send a file, with its right digest unless told otherwise."""
        digest = hashlib.blake2b(data, digest_size=32).hexdigest()
        return await self.call("PUT", f"outputs/{name}", data=data, headers={"X-Digest": digest, **headers})

    async def report(self, *reports: Any) -> None:
        """Reports, and wait until they are acknowledged."""
        for one in reports:
            await self.link.send(encode(one))
        async with asyncio.timeout(20):
            while True:
                message = decode(await self.link.recv(), FromRenderAPI)
                if isinstance(message, Ack) and message.seq >= reports[-1].seq:
                    return

    async def exit(self, outcome: str = "canceled") -> None:
        assign = self.assign
        await self.report(Exited(9, assign.attempt, assign.token, 2, outcome))


@contextlib.asynccontextmanager
async def held_attempt(
    api: Running, definition: str, scene: tuple[str, bytes], who: Mapping[str, str] | None = None
) -> AsyncIterator[Held]:
    """A task of one frame, submitted by the administrator or `who`, whose attempt some machine has."""
    assert (await api.call("POST", "/engines", {"definition": definition})).status == 201
    code = (await api.call("POST", "/machines/invite", {})).json()["code"]
    joined = (await api.call("POST", "/machines/enroll", {"code": code, "name": "far"}, who={})).json()
    url = f"{api.url.replace('http', 'ws')}/renderapi/v2/link"
    tls = {"ssl": ssl._create_unverified_context()} if url.startswith("wss") else {}
    async with connect(url, compression=None, **tls) as link:
        offers = (EngineOffer("fake"), EngineOffer("writer"))
        me = (joined["machine_id"], joined["secret"], "instance", "boot", "0", "far", 1)
        await link.send(encode(Hello(1, *me, engines=offers)))
        assert isinstance(decode(await link.recv(), FromRenderAPI), Welcome)
        engine = "fake" if "fake" in definition else "writer"
        reply = await api.submit({"engine": engine, "frames": "1"}, scene, version=2, who=who)
        assert reply.status == 201, reply.body
        async with asyncio.timeout(20):
            assign = decode(await link.recv(), FromRenderAPI)
        assert isinstance(assign, Assign)
        yield Held(api, joined["machine_id"], link, assign)
