"""A TCP proxy on loopback that treats its connections badly when told to."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque

PIECE = 1 << 16
LOOK_S = 0.02
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to `127.0.0.1:target` until it is closed.

    `delay_s`: every byte comes so much later. `stalled`: nothing moves, all of it comes later. `swallowing`: what is
    sent is lost while both sides believe that they are connected (half-open); `heal` then resets these connections.
    `refusing`: new connections are closed at once.
    """

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self.stalled = self.swallowing = self.refusing = False
        self._target = target
        self._closing = False
        self._cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name=f"proxy {self.port}", daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection that is open now."""
        self._cut += 1

    def heal(self) -> None:
        """A good network again; what was half-open is reset."""
        if self.swallowing:
            self.cut()
        self.delay_s = 0.0
        self.stalled = self.swallowing = self.refusing = False

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _reset(client)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            _reset(client)
            return
        born = self._cut
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(10)
        back = threading.Thread(target=self._pump, args=(server, client, born), daemon=True)
        back.start()
        self._pump(client, server, born)
        back.join()
        for one in (client, server):
            if self._cut != born:
                _reset(one)
            one.close()

    def _pump(self, source: socket.socket, to: socket.socket, born: int) -> None:
        """One direction of a connection, to its end."""
        waiting: deque[tuple[float, bytes]] = deque()
        ended = False
        with contextlib.suppress(OSError):
            while self._cut == born and not self._closing:
                if self.stalled:
                    time.sleep(LOOK_S)
                    continue
                patience = 0.002 if waiting else LOOK_S
                if ended:
                    time.sleep(patience)
                elif select.select([source], [], [], patience)[0] and not self.stalled:
                    data = source.recv(PIECE)
                    ended = not data
                    waiting.append((time.monotonic() + self.delay_s, data))
                while waiting and waiting[0][0] <= time.monotonic():
                    data = waiting.popleft()[1]
                    if self.swallowing:
                        continue
                    if not data:
                        to.shutdown(socket.SHUT_WR)
                        return
                    to.sendall(data)
            return
        for one in (source, to):  # an error on one side ends both
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()
