"""A small HTTP proxy for tunnels (CONNECT) that knows names which nobody else knows."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """`names`: host:port -> the real address. With `credentials` (`user:password`) it lets only those through who send
    them. `asked`: every place that was wanted, `refused` those of them without the right credentials."""

    names: Mapping[str, tuple[str, int]]
    credentials: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator["ConnectProxy"]:
        """Serve in a thread of its own."""
        ready, loop = threading.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def live() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(serve())
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.close()

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, place, _ = first.split(" ")
            self.asked.append(place)
            wanted = base64.b64encode(self.credentials.encode()).decode()
            if self.credentials and f"proxy-authorization: basic {wanted}".casefold() not in map(str.casefold, headers):
                self.refused.append(place)
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            elif method != "CONNECT" or place not in self.names:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            else:
                far_reader, far = await asyncio.open_connection(*self.names[place])
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with contextlib.closing(far):
                    await asyncio.gather(_pump(reader, far), _pump(far_reader, writer))
            await writer.drain()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await source.read(65536):
            sink.write(block)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof() if sink.can_write_eof() else sink.close()
