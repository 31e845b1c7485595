"""Accepts the connections of a server, so that each is counted from its first moment: also those that never finish
their TLS handshake, and those that come when there is no descriptor left."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from renderonline.serving.admission import Admission, Guest

log = structlog.get_logger(__name__)

HANDSHAKE_S: Final = 10.0
"""A TLS handshake takes no longer; asyncio alone would wait for a minute."""
AT_ONCE: Final = 64
"""Connections that are accepted before others get their turn."""
PAUSE_S: Final = 0.05
"""Without a descriptor nothing can be accepted; those that were closed for it need a moment to go."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Entrance:
    """Where connections come in. `make_protocol` gives what serves a guest."""

    def __init__(
        self,
        listener: socket.socket,
        admission: Admission,
        make_protocol: Callable[[Guest], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener, self._admission, self._make_protocol, self._tls = listener, admission, make_protocol, tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept(), name="accept")
        self._told = False

    def close(self) -> None:
        """Let nobody in any more."""
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                self._welcome(*await self._loop.sock_accept(self._listener))
                with contextlib.suppress(BlockingIOError):
                    for _ in range(AT_ONCE):
                        self._welcome(*self._listener.accept())
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._tell(error)
                    self._admission.relieve()
                    await asyncio.sleep(PAUSE_S)
                # All others are about the one connection, which is gone.

    def _tell(self, error: OSError) -> None:
        if not self._told:
            log.error("there is no room for another connection", reason=error.strerror)
        self._told = True

    def _welcome(self, connection: socket.socket, peer: tuple[object, ...]) -> None:
        connection.setblocking(False)
        guest = self._admission.arrive(connection, str(peer[0]))
        guest.end = partial(_hang_up, connection)
        task = self._loop.create_task(self._join(guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, guest: Guest) -> None:
        patience = HANDSHAKE_S if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(
                partial(self._make_protocol, guest), guest.socket, ssl=self._tls, ssl_handshake_timeout=patience
            )
        except OSError:  # no handshake; nobody is there to hear why
            self._admission.leave(guest)
        except BaseException:
            self._admission.leave(guest)
            raise


def _hang_up(connection: socket.socket) -> None:
    """Close a connection before its protocol is there."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
