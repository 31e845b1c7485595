"""A stand-in for RenderAPI's end of the link: enrols machines, welcomes them, writes down what they say."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from renderonline.protocol.link import LINK_PATH, PROTOCOL, Ack, Assign, ExpectedOutput, Limits, encode
from tests.support.pinned_certificates import Certificate

DEADLINE_S = 20.0
REPORTS = frozenset({"started", "result", "exited"})


@dataclass
class FakeRenderAPI:
    """Listens on loopback. `keep` None keeps whatever a machine names; `acknowledge` answers every report at once."""

    keep: tuple[int, ...] | None = None
    acknowledge: bool = True
    protocol: int = PROTOCOL
    refusal: dict[str, Any] | None = None
    certificate: Certificate | None = None
    log_offsets: dict[str, int] = field(default_factory=dict)
    hellos: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Everything but hellos, in order of arrival."""
    frames: list[int] = field(default_factory=list)
    """How many messages each frame had."""

    def __post_init__(self) -> None:
        self._server: Server | None = None
        self._links: list[ServerConnection] = []
        self._applied: dict[str, int] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "FakeRenderAPI":
        tls = self.certificate.server_context() if self.certificate else None
        self._server = await serve(self._link, "127.0.0.1", 0, ssl=tls, compression=None, process_request=self._http)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"

    # -- speaking

    async def send(self, message: Any) -> None:
        """Send a link message (a Struct or plain values), or a list of them, over the newest link."""
        text = json.dumps(message) if isinstance(message, (dict, list)) else encode(message)
        await self._links[-1].send(text)

    async def assign(self, attempt: int, argv: list[str], directory: Path, **more: Any) -> Assign:
        """Assign an attempt of engine `sh` unless told otherwise."""
        more.setdefault("engine", "sh")
        more.setdefault("limits", Limits(grace_s=0.5))
        expected = tuple(ExpectedOutput(name) for name in more.pop("names", ()))
        assign = Assign(
            attempt,
            f"token-{attempt}",
            1,
            attempt,
            argv=tuple(argv),
            directory=str(directory),
            expected=expected,
            **more,
        )
        await self.send(assign)
        return assign

    async def ack(self) -> None:
        """Acknowledge everything that has come."""
        await self.send(Ack(max(message["seq"] for message in self.reports())))

    async def cut(self) -> None:
        """Drop the link without a word."""
        self._links[-1].transport.abort()

    # -- listening

    def reports(self, attempt: int | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The reports that came, repeated ones too."""
        return [
            message
            for message in self.messages
            if message["type"] in REPORTS
            and (attempt is None or message["attempt"] == attempt)
            and (kind is None or message["type"] == kind)
        ]

    async def report(self, attempt: int, kind: str) -> dict[str, Any]:
        """Wait for the newest report of this kind."""
        await self.until(lambda: bool(self.reports(attempt, kind)), f"{kind} of attempt {attempt}")
        return self.reports(attempt, kind)[-1]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds; looked at whenever a message comes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} within {DEADLINE_S} s; came: {self.messages[-10:]}") from None

    async def linked(self, times: int = 1) -> Mapping[str, Any]:
        """Wait until a machine has said hello so often; gives its newest hello."""
        await self.until(lambda: len(self.hellos) >= times, f"hello number {times}")
        return self.hellos[-1]

    def log_text(self, attempt: int) -> str:
        """The log as it came, by offset."""
        text = b""
        for message in self.messages:
            if message["type"] == "log" and message["attempt"] == attempt:
                text = text[: message["offset"]] + message["text"].encode()
        return text.decode()

    # -- serving

    async def _link(self, link: ServerConnection) -> None:
        hello = json.loads(await link.recv())
        if self.refusal is not None:
            self.hellos.append(hello)
            self._changed.set()
            await link.send(json.dumps({"type": "refused", **self.refusal}))
            return
        keep = [held["attempt"] for held in hello["held"]] if self.keep is None else list(self.keep)
        welcome = {"type": "welcome", "protocol": self.protocol, "keep": keep, "log_offsets": self.log_offsets}
        await link.send(json.dumps({**welcome, "last_seq": self._applied.get(hello["instance"], 0)}))
        self._links.append(link)
        self.hellos.append(hello)
        self._changed.set()
        try:
            async for text in link:
                frame = json.loads(text)
                messages = frame if isinstance(frame, list) else [frame]
                self.frames.append(len(messages))
                for message in messages:
                    await self._take(link, hello["instance"], message)
        except ConnectionClosed:
            return

    async def _take(self, link: ServerConnection, instance: str, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["type"] in REPORTS and self.acknowledge:
            self._applied[instance] = message["seq"]
            await link.send(encode(Ack(message["seq"])))
        self._changed.set()

    async def _http(self, link: ServerConnection, request: Request) -> Response | None:
        return None if request.path == LINK_PATH else link.respond(HTTPStatus.NOT_FOUND, "")
