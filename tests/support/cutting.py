"""A TCP proxy that counts what passes and does something when so many bytes have passed."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

PIECE = 1 << 16


class CuttingProxy:
    """Forwards connections to `url`; `sent` and `received` count bytes from and to clients.

    `events`: when so many bytes in all have passed, call this; `cuts`: reset every connection then. `pace_s`: each
    64 KiB take at least so long, so that there is a middle.
    """

    def __init__(
        self,
        url: str,
        *,
        cuts: Iterable[int] = (),
        events: Iterable[tuple[int, Callable[[], object]]] = (),
        pace_s: float = 0.0,
    ) -> None:
        self.sent = self.received = 0
        self.cuts = 0
        self._target = int(url.rpartition(":")[2])
        self._pace_s = pace_s
        self._events = sorted([*((at, self.cut) for at in cuts), *events], key=lambda event: event[0])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def passed(self) -> int:
        return self.sent + self.received

    def cut(self) -> None:
        """Reset every connection."""
        self.cuts += 1
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
        back.start()
        self._pump(client, server, True)
        back.join()
        self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, to: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                to.sendall(data)
                self._count(len(data), up)
                time.sleep(self._pace_s * len(data) / PIECE)
        for one in (source, to):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int, up: bool) -> None:
        with self._lock:
            self.sent += size if up else 0
            self.received += 0 if up else size
            due = [act for at, act in self._events if at <= self.passed]
            del self._events[: len(due)]
        for act in due:
            act()
