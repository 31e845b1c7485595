"""One RenderAPI as the SDK's user: where it is, as whom to call it, and which calls are repeated."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

from renderonline.farm import errors
from renderonline.protocol.calls import Advice, Busy, Caller, Reply, Trust, backoff

BASE: Final = "/renderapi/v2"
PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
ADVICE: Final = Advice(
    unreachable="Is it running? Start one here with `renderonline up`, or give its address with --url.",
    untrusted="Give its authority with --ca-file, or trust exactly this certificate with --fingerprint sha256:…",
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Login:
    """Where a RenderAPI is and as whom to speak to it.

    `url` may name several, separated by commas, of which one dispatches while the others stand by (R10 Standby).
    `ca_file` replaces the system's certificate authorities; `fingerprint` (`sha256:<hex>`, colons allowed) trusts
    exactly the certificate with that digest and no other, whoever signed it.

    Spaces and line ends around the e-mail and the token are dropped. `InvalidRequest` when they can't be sent; what the
    token is, is never said.
    """

    url: str
    email: str = ""
    token: str = field(default="", repr=False)
    ca_file: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name in ("email", "token"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if not self.email.isprintable():
            raise errors.InvalidRequest(
                "The e-mail holds a line break or another sign that can't be seen. Type it again."
            )
        odd = next((place for place, sign in enumerate(self.token, 1) if not "\x20" <= sign <= "\x7e"), 0)
        if odd:
            raise errors.InvalidRequest(
                f"The token can't be right: character {odd} of {len(self.token)} is no ASCII letter, digit or "
                "sign. Perhaps a program put curly quotes or a line break there. Copy it again."
            )


class Connection(Caller):
    """Calls below `/renderapi/v2` of one farm, as the user of a `Login`.

    GET is repeated with backoff for `patience_s` seconds when the network or RenderAPI fails for a moment. The others
    are sent once, so that what was carried out is never carried out twice; except submissions, which their key makes
    count once.
    """

    def __init__(self, login: Login, *, patience_s: float = 5.0, sleep: Callable[[float], None] = time.sleep) -> None:
        self.login = login
        self._patience_s = patience_s
        self._sleep = sleep
        urls = [_tidied(url) for url in login.url.split(",")]
        encrypted = any(url.startswith("https:") for url in urls)
        super().__init__(urls, Trust.of(login.ca_file, login.fingerprint) if encrypted else Trust(), advice=ADVICE)

    def call(self, method: str, path: str, *, query: Mapping[str, object] | None = None, data: object = None) -> Reply:
        """The whole answer to one call. Statuses of 300 and more are raised as `farm.errors` classes."""
        wanted = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = f"{path}?{urlencode(wanted)}" if wanted else path
        body = None if data is None else json.dumps(data).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        safe = method == "GET"

        def once() -> Reply:
            return self.ask(method, target, body=body, headers=headers, keep=safe)

        return self.patiently(once) if safe else once()

    def patiently(self, action: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Run `action` again while the network or RenderAPI fails for a moment, with backoff and full jitter."""
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        pauses = backoff(PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return action()
            except errors.NotAvailable as error:
                wait = max(next(pauses), error.retry_after_s if isinstance(error, Busy) else 0.0)
                if time.monotonic() + wait > deadline:
                    raise
            self._sleep(wait)

    @contextmanager
    def open(
        self, method: str, path: str, *, headers: Mapping[str, str | bytes] | None = None, **options: Any
    ) -> Iterator[HTTPResponse]:
        """The answer to one call, to be read as it comes; `options` and errors as of `Caller.open`."""
        identity = {"email": self.login.email.encode(), "token": self.login.token.encode()}
        known = {name: value for name, value in identity.items() if value} | dict(headers or {})
        with super().open(method, BASE + path, headers=known, **options) as response:
            yield response


def _tidied(url: str) -> str:
    """An address with its scheme, and without credentials and the API's own path. `InvalidRequest` for none."""
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise errors.InvalidRequest(f"{url!r} is no address of a RenderAPI; write it like http://farm:5000 .")
    path = re.sub(r"(/renderapi(/v\d+)?)?/*$", "", parts.path)
    return parts._replace(path=path, netloc=parts.netloc.rpartition("@")[2]).geturl()
