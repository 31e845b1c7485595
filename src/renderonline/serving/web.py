"""Runs a web application in one uvicorn process with TLS, deadlines and a clean shutdown (`serve`), finds its address
for other computers (`reach`), and packs this program as a wheel, so that machines install the farm's version.
"""

import asyncio
import base64
import contextlib
import ctypes
import gc
import hashlib
import io
import ipaddress
import os
import platform
import signal
import socket
import ssl
import sys
import threading
import zipfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import structlog
import uvicorn
from starlette.applications import Starlette

import renderonline
from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.serving.admission import Acceptor, Admission, Guest, most_connections
from renderonline.serving.bodies import THREADS
from renderonline.serving.deadlines import patient
from renderonline.serving.message_sockets import LinkProtocol

log = structlog.get_logger(__name__)
T = TypeVar("T")

_SOMEWHERE: Final = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737). The local address of a route to it is ours; nothing is sent."""
USUAL_PORT: Final = 5000
MAX_LINK_MESSAGE: Final = 4 * 1024 * 1024
"""The largest WebSocket message that is read, in bytes."""
SWITCH_S: Final = 0.0002
BODY_THREADS: Final = 8
GLIBC: Final = {-3: 32 << 20, -1: 64 << 20, -2: 4 << 20}
"""mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD. Buffers that are allocated again and again reuse our memory,
instead of getting it from the kernel page by page each time."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The two PEM files of a server's certificate, as in `RenderAPI.json`."""

    fullchain_pem_path: Path
    priv_pem_path: Path


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on the fastest event loop available."""
    # Database threads and the event loop switch many times during a request.
    sys.setswitchinterval(SWITCH_S)
    if platform.libc_ver()[0] == "glibc":
        for option, value in GLIBC.items():
            ctypes.CDLL(None).mallopt(option, value)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def serve(
    app: Starlette,
    *,
    host: str,
    port: int,
    certificate: TlsFiles | None = None,
    on_ready: Callable[[str], None],
    on_stop: Callable[[], None] | None = None,
    grace_s: float = 10.0,
    is_proxy: Callable[[str], bool] = lambda _address: False,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then end cleanly within about `grace_s` seconds.

    The application's lifespan encloses everything; an error in its startup is raised unchanged. `on_ready(url)` is
    called when requests are answered; port 0 selects any free port. `on_stop` is called when the shutdown begins,
    before open connections are waited for (endless streams should end then). `is_proxy`: whether an address is that of
    a trusted proxy, whose connections have many clients.
    """
    with contextlib.closing(_listen(host, port)) as listener:
        tls = _tls(certificate)
        async with app.router.lifespan_context(app):
            url = _url(listener, host, secure=tls is not None)
            admission = Admission(most_connections(), is_proxy)
            server = _Server(_config(app, admission, grace_s), admission, tls, lambda: on_ready(url))
            with _stopping(server, on_stop):
                try:
                    await server.serve(sockets=[listener])
                finally:
                    server.abort()


def is_loopback(host: str) -> bool:
    """Return whether only programs on this computer can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


class Reach(NamedTuple):
    """The address for other computers. `first`: what must be changed before it works there, "" for nothing."""

    url: str
    first: str = ""


def reach(asked: str, *, public_url: str, listens: str, is_doubtful: bool = False) -> Reach:
    """Return the address for other computers of a server that listens on the host `listens` and was called as `asked`.
    `public_url`: the one that an administrator has set, or "". `is_doubtful`: the call came through a proxy that is
    not trusted."""
    if public_url:
        return Reach(public_url.rstrip("/"))
    url, there = asked.rstrip("/"), urlsplit(asked)
    if is_doubtful:
        return Reach(url, "A proxy that is not trusted passed this on: name it in TrustedProxies, or set PublicUrl.")
    if not is_loopback(there.hostname or ""):
        return Reach(url)
    if is_loopback(listens):
        port = f" --port {there.port}" if there.port not in (None, USUAL_PORT) else ""
        why = f"Only this computer itself reaches {url}. For others start the farm so that they do"
        return Reach(url, f"{why}: renderonline up --host 0.0.0.0{port}")
    return Reach(f"{there.scheme}://{_bracketed(_own_address())}{f':{there.port}' if there.port else ''}")


def _own_address() -> str:
    """Return the address by which others in the network reach this computer, or its name when it is not known."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(_SOMEWHERE)
        return str(asking.getsockname()[0])
    return socket.gethostname()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Server(uvicorn.Server):
    """uvicorn's server that accepts by an `Acceptor`, without its own signal handling, which would raise the signal
    again at the end."""

    def __init__(
        self, config: uvicorn.Config, admission: Admission, tls: ssl.SSLContext | None, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._admission, self._tls = admission, tls
        self._on_ready = on_ready
        self._state = {THREADS: ThreadPoolExecutor(BODY_THREADS, "body", step_back)}
        self._acceptors: list[Acceptor] = []
        self._ends = asyncio.Event()

    def end(self) -> None:
        """Accept nothing more, and let open connections finish."""
        self.should_exit = True
        self._ends.set()

    async def main_loop(self) -> None:
        """Update the date of the answers once a second until `end`, where uvicorn wakes up ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ends.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        gc.freeze()  # loaded modules stay, and examining them would delay requests
        for listener in sockets or ():
            self._acceptors.append(Acceptor(listener, self._admission, self._protocol, self._tls))
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._close()
        await super().shutdown(sockets)

    def abort(self) -> None:
        """Close all open connections, also when serving was canceled."""
        self._close()
        self._admission.end()
        for task in list(self.server_state.tasks):
            task.cancel()

    def _close(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()

    def _protocol(self, guest: Guest) -> asyncio.BaseProtocol:
        make: Callable[..., asyncio.BaseProtocol] = self.config.http_protocol_class
        return make(guest=guest, config=self.config, server_state=self.server_state, app_state=self._state)


def step_back() -> None:
    """Lower the priority of this thread, which copies or hashes bytes, below threads that answer requests."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _config(app: Starlette, admission: Admission, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=patient(admission),  # type: ignore[arg-type]
        ws=LinkProtocol,
        ws_max_size=MAX_LINK_MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # machines say something every 5 s (R1.3 Silence)
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(f"Can't listen on {host}:{port}: the address is not known here.") from error
    family, _, _, _, address = found[0]
    try:
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise NotAvailable(
            f"Can't listen on {host}:{port}: {why}. Choose another port, or end the program that uses it."
        ) from error
    listener.setblocking(False)
    # Connections inherit it. uvloop sets it itself; with other loops every answer would wait 40 ms for its body.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _tls(files: TlsFiles | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.fullchain_pem_path, files.priv_pem_path, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        names = f"{files.fullchain_pem_path} and {files.priv_pem_path}"
        raise InvalidRequest(f"The certificate can't be used ({error}). Check {names}.") from error
    return context


def _no_password() -> str:
    # Without it OpenSSL would ask on the terminal and the server would hang.
    raise InvalidRequest("The certificate's private key is encrypted; give one without a password.")


def _url(listener: socket.socket, host: str, *, secure: bool) -> str:
    address, port = listener.getsockname()[:2]
    shown = "localhost" if ipaddress.ip_address(address).is_unspecified else host
    return f"{'https' if secure else 'http'}://{_bracketed(shown)}:{port}"


@contextlib.contextmanager
def _stopping(server: _Server, on_stop: Callable[[], None] | None) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the server; a second SIGINT does not wait for open connections."""
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if server.should_exit and number == signal.SIGINT:
            server.force_exit = True
        elif not server.should_exit:
            server.end()
            if on_stop is not None:
                on_stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    elsewhere = contextlib.suppress(RuntimeError, ValueError)  # only the main thread handles signals
    with elsewhere:
        for number in before:
            loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        with elsewhere:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


_TAG: Final = "py3-none-any"
_KIND: Final = f"Wheel-Version: 1.0\nGenerator: renderonline\nRoot-Is-Purelib: true\nTag: {_TAG}\n"


def wheel_name() -> str:
    """Return the wheel's file name; "" if this program is not installed as a package."""
    try:
        return f"renderonline-{metadata.version('renderonline')}-{_TAG}.whl"
    except metadata.PackageNotFoundError:
        return ""


def make_wheel() -> bytes:
    """Return the wheel (PyPA's binary distribution format) of the package's installed files and metadata. Blocks."""
    folder, installed = f"{wheel_name().removesuffix(f'-{_TAG}.whl')}.dist-info", metadata.distribution("renderonline")
    contents = dict(_package())
    for name in ("METADATA", "entry_points.txt"):
        contents[f"{folder}/{name}"] = (installed.read_text(name) or "").encode()
    contents[f"{folder}/WHEEL"] = _KIND.encode()
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items()]
    contents[f"{folder}/RECORD"] = "".join([*lines, f"{folder}/RECORD,,\n"]).encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _package() -> Iterator[tuple[str, bytes]]:
    root = Path(renderonline.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"renderonline/{path.relative_to(root).as_posix()}", path.read_bytes()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
