"""Every error that RenderOnline tells a person about.

    RenderOnlineError
    ├── InvalidRequest      400  what was sent can't be understood or breaks a rule
    │   └── Unfit           422  it can be understood, but what it names can't be
    ├── NotAuthenticated    401  who is asking is not known: wrong e-mail or token, or an account that is not active
    ├── NotAllowed          403  who is asking may not do this
    ├── NotFound            404  what is asked for does not exist (or is not theirs)
    ├── Conflict            409  it can't be done in the present state
    ├── TooLarge            413  more bytes than allowed
    ├── LimitReached        429  a queue or running limit stands in the way
    ├── NotAvailable        503  a part of the farm that is needed does not answer
    └── NoSpace             507  the disk is full

``code`` is stable and documented in ``docs/reference/errors.md``; ``status`` is the HTTP status.
"""

from typing import Any, ClassVar


class RenderOnlineError(Exception):
    """The base of all errors meant for users; the message says what to do next, `told` is for programs."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None, **told: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reason_code = code or self.code
        self.told = told


class InvalidRequest(RenderOnlineError):
    code, status = "invalid_request", 400


class Unfit(InvalidRequest):
    code, status = "unfit", 422


class NotAuthenticated(RenderOnlineError):
    code, status = "not_authenticated", 401


class NotAllowed(RenderOnlineError):
    code, status = "not_allowed", 403


class NotFound(RenderOnlineError):
    code, status = "not_found", 404


class Conflict(RenderOnlineError):
    code, status = "conflict", 409


class TooLarge(RenderOnlineError):
    code, status = "too_large", 413


class LimitReached(RenderOnlineError):
    code, status = "limit_reached", 429


class NotAvailable(RenderOnlineError):
    code, status = "not_available", 503


class NoSpace(RenderOnlineError):
    code, status = "no_space", 507
